"""What a run asks of the machine, and what it says about it before it starts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging

from dudi.errors import DudiError
from dudi.recipe.schema import Recipe, Training

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
NATIVE = ("amx_bf16", "avx512_bf16")
"""Names of the CPU's own products of bfloat16 matrices."""
SPEED = 1.5
"""From this ratio on, bfloat16 is worth a line."""


def check_devices() -> None:
    """Several GPUs in one process would become DataParallel: refused, with the command to use."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        raise DudiError(
            f"{gpus} GPUs are visible, but only one process was started: use all with `dudi run ... --launch ddp` or"
            f" `torchrun --nproc-per-node {gpus} -m dudi run ...`, or choose one GPU with CUDA_VISIBLE_DEVICES=0"
        )


def quiet_library() -> None:
    """No word of transformers' own but errors, and no bars."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def deterministic(trainings: Sequence[Training]) -> Iterator[None]:
    """Only operations that give the same bits each time, where a recipe asks for it (`training.deterministic`).

    Raises `DudiError` for a GPU whose cuBLAS was not told so before the process began.
    """
    if not any(training.deterministic for training in trainings):
        yield
        return
    if torch.cuda.is_available() and os.environ.get(WORKSPACE) not in (":4096:8", ":16:8"):
        raise DudiError(
            f"training.deterministic = true on a GPU needs {WORKSPACE}=:4096:8 in the environment, which cuBLAS reads"
            f" when it starts: {WORKSPACE}=:4096:8 dudi run ..."
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def advice(recipe: Recipe) -> list[str]:
    """What would make a run faster on this machine, each in a line; nothing is changed for it."""
    return [line for line in (_bfloat16(recipe), _threads()) if line]


def _bfloat16(recipe: Recipe) -> str | None:
    if recipe.models.precision != "auto" or torch.cuda.is_available():
        return None
    native = [flag for flag in NATIVE if flag in _cpu_flags()]
    ratio = _ratio() if native else 0.0
    if ratio < SPEED:
        return None
    return (
        f'this CPU multiplies matrices {ratio:.1f} x faster in bfloat16 ({native[0]}): models.precision = "bfloat16"'
        ' uses that, "auto" is float32 on a CPU'
    )


def _cpu_flags() -> set[str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _ratio() -> float:
    """Seconds of a product in float32 to those in bfloat16, of the size of a small model's layer; at their best."""

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        return min(_timed(lambda: a @ b) for _ in range(5))

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _threads() -> str | None:
    """Threads that spin while they wait take the core from those they wait for."""
    load, cores = (
        os.getloadavg()[0],
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available() or not cores or load <= cores:
        return None
    return (
        f"the load of this machine is {load:.0f} on {cores} cores: threads that wait take them from each other; set"
        " OMP_WAIT_POLICY=PASSIVE, and OMP_NUM_THREADS to the cores that are free"
    )
