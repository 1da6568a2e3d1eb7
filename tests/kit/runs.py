"""What worker scripts and the tests that start them share: small recipes from folders on disk, and how runs compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kit
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dudi.data.rows import as_line
from dudi.example import Example
from dudi.recipe.read import Recipe, parse_recipe

TESTS = Path(__file__).resolve().parent.parent
LIMITS = {"prompt": 400, "verbalizer": 300, "total": 600, "rollout": 8, "teacher_prompt": 2000}


def rows(number: int = 11) -> list[Example]:
    """Short rows of all languages, some with a system turn or with several turns."""
    shipped = kit.builtin()
    return (shipped[1::9] + shipped[2::9])[:number]


def write_data(file: Path, examples: Sequence[Example]) -> str:
    """Rows as chat JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(map(as_line, examples)), encoding="utf-8")
    return str(file)


def recipe(folder: Path, method: Mapping[str, Any], *, output: str = "run", number: int = 11, **tables: Any) -> Recipe:
    """A recipe on tiny models and few rows, saved under `folder` when they are not there yet; float32 unless told.

    Eleven rows in batches of four: three steps an epoch, the last one ragged.
    """
    if not (folder / "student").is_dir():
        tok = kit.tokenizer()
        kit.save(folder / "student", kit.model(1, rows=kit.VOCAB + 6, dtype=torch.float32), tok)
        kit.save(folder / "teacher", kit.model(2, hidden=64, rows=kit.VOCAB + 20, dtype=torch.float32), tok)
    data = folder / f"rows-{number}.jsonl"
    if not data.is_file():
        write_data(data, rows(number))
    training = {"lr": 1e-3, "batch": 4, "micro_batch": 2, "epochs": 2.0, "log_every": 1, "overlap_every": 2}
    table: dict[str, Any] = {
        "name": "small",
        "output": str(folder / output),
        "method": dict(method),
        "models": {"student": str(folder / "student"), "teacher": str(folder / "teacher"), "precision": "float32"},
        "data": {"source": str(data)},
        "limits": dict(LIMITS),
        "training": training,
    }
    for name, value in tables.items():
        table[name] = {**table.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_recipe(table, "test")


def weights(stage: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a stage's folder."""
    return load_file(stage / "model" / "model.safetensors")


def identical(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def furthest(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any weight."""
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


def moved(a: PreTrainedModel, b: Mapping[str, torch.Tensor]) -> float:
    """How far a model is from saved weights."""
    named = dict(a.named_parameters())
    return max(float((named[k].detach().double() - v.double()).abs().max()) for k, v in b.items())


def stages(run: Path) -> list[Path]:
    """The stage folders of a run, in order."""
    found = [f for f in run.iterdir() if f.is_dir() and f.name[0].isdigit()]
    return sorted(found, key=lambda f: int(f.name.split("-")[0]))


def assert_same_end(one: Path, other: Path) -> None:
    """Two runs ended alike, bit for bit: the same stages, responses, metrics and weights."""
    assert [s.name for s in stages(one)] == [s.name for s in stages(other)]
    compared = 0
    for a, b in zip(stages(one), stages(other), strict=True):
        for file in sorted(f for f in a.rglob("*.jsonl") if f.name != "times.jsonl"):
            twin = b / file.relative_to(a)
            assert twin.read_bytes() == file.read_bytes(), file
            compared += 1
        assert (a / "model").is_dir() == (b / "model").is_dir()
        if (a / "model").is_dir():
            assert identical(weights(a), weights(b)), a.name
            compared += 1
    assert compared >= 2
    assert (one / "summary.md").read_text().splitlines()[1:] == (other / "summary.md").read_text().splitlines()[1:]


def metrics(stage: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics, the evaluation's left out."""
    lines = (json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "eval" not in line]


def environment() -> dict[str, str]:
    """For a process of its own: tests importable, nothing left of a launcher."""
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    env = {k: v for k, v in os.environ.items() if k not in left_out}
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if Path("/sys/class/net/lo").exists():
        env["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name may not resolve
    return env


def start(script: str, *arguments: str, launcher: Sequence[str] = (), timeout: float = 240) -> tuple[int, str]:
    """Run a worker script; (exit status, what it wrote)."""
    command = [sys.executable, *launcher, str(TESTS / "workers" / script), *arguments]
    done = subprocess.run(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    return done.returncode, done.stdout
