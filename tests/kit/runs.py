"""Whole runs: small recipes from folders on disk, what a run leaves, and how two runs compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Recipe
from dudi.run.summary import TIME
from kit.models import save_models
from kit.rows import short_rows, write_rows

LIMITS = {"prompt": 400, "verbalizer": 300, "total": 600, "rollout": 8, "teacher_prompt": 2000}


def recipe(folder: Path, method: Mapping[str, Any], *, output: str = "run", number: int = 11, **tables: Any) -> Recipe:
    """A recipe on tiny models and few rows, saved under `folder` when they are not there yet; float32 unless told.

    Eleven rows in batches of four: three steps an epoch, the last one ragged.
    """
    if not (folder / "student").is_dir():
        save_models(folder)
    data = folder / f"rows-{number}.jsonl"
    if not data.is_file():
        write_rows(data, short_rows(number))
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
    mine, theirs = ((run / "summary.md").read_text().partition(TIME)[0].splitlines() for run in (one, other))
    assert mine[1:] == theirs[1:]


def metrics(stage: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics, the evaluation's left out."""
    lines = (json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "eval" not in line]


def assert_close(found: Any, wanted: Any, where: str = "") -> None:
    """Two lines of metrics, number by number."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_close(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9), where
    else:
        assert found == wanted, where


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path within the folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
