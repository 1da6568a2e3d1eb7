"""The losses' peak memory at the real vocabulary, by the kernel's high-water mark of a fresh process.

V = 151,936, student hidden size 896, teacher 2,048; "above the inputs" is above hidden states and both heads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"
HEAD_GRADIENT_MB = 151_936 * 896 * 4 / 1e6
POSITION_MB = (896 + 896 + 2048) * 4 / 1e6  # its hidden states, and the gradient of the student's


def measure(case: str, tokens: int, needs_gb: float = 3.5) -> dict[str, Any]:
    if psutil.virtual_memory().available < needs_gb * 1e9:
        pytest.skip(f"needs {needs_gb} GB of free memory")
    command = [sys.executable, str(SCRIPT), "--case", case, "--tokens", str(tokens), "--threads", "1"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("tokens", [256, pytest.param(1024, marks=pytest.mark.slow)])
def test_reverse_kl_peaks_below_900_megabytes(tokens: int) -> None:
    """In float32, gradients included, however many chunks; most of it is the gradient of the head itself."""
    found = measure("chunked/reverse_kl/float32", tokens)
    assert HEAD_GRADIENT_MB < found["peak_mb"] < 900, found
    assert found["grad_hidden"] > 0 and found["grad_weight"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["forward_kl", "jsd", "dudi"])
def test_the_other_losses_peak_below_a_gigabyte_too(loss: str) -> None:
    """`dudi`: all three signals in one pass."""
    assert measure(f"chunked/{loss}/float32", 1024)["peak_mb"] < 1000


@pytest.mark.slow
def test_four_times_the_tokens_cost_their_own_gradients_only() -> None:
    """From 1,024 to 4,096 tokens the peak grows by no more than hidden states and their gradients do (47 MB), and by
    nothing of the size of the vocabulary (3,072 positions of logits: 1,867 MB)."""
    few, many = measure("chunked/reverse_kl/float32", 1024), measure("chunked/reverse_kl/float32", 4096)
    assert many["peak_mb"] < 1000
    assert many["peak_mb"] - few["peak_mb"] < 3072 * POSITION_MB, (few, many)


@pytest.mark.slow
def test_full_logits_cost_three_times_as_much() -> None:
    """What the ceiling is measured against: the same loss and gradients by autograd on all logits."""
    ours, naive = measure("chunked/reverse_kl/float32", 1024), measure("naive/reverse_kl/float32", 1024, needs_gb=6)
    assert naive["peak_mb"] > 2500 and naive["peak_mb"] > 3 * ours["peak_mb"], (ours, naive)
    for what in ("loss", "grad_hidden", "grad_weight"):
        assert ours[what] == pytest.approx(naive[what], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX2", reason="its bfloat16 products take more than ten minutes"
)
def test_autocast_casts_each_head_once() -> None:
    """bfloat16 products: the float32 gradient of the head, the head in bfloat16 (half its size), two narrow chunks."""
    assert measure("chunked/reverse_kl/bfloat16", 1024)["peak_mb"] < 2 * HEAD_GRADIENT_MB
