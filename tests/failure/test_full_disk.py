"""A disk that is full: one line, what is complete is kept, and the run can be resumed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from kit.command import Dudi, write_recipe
from kit.runs import digests

from dudi import files
from dudi.data import rows
from dudi.files import read_lines
from dudi.run import pipeline as train
from dudi.training import checkpoints


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for(name: str, whole: Any) -> Any:
    """A function that finds the disk full where a path with `name` in it is written."""

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        return no_space() if name in str(first) else whole(first, *args, **kwargs)

    return call


@pytest.mark.parametrize("name", ["recipe.toml", "lengths.json", "environment.json"])
@pytest.mark.parametrize("call", ["replace", "open", "fsync"])
def test_no_space_when_a_run_begins(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, name: str, call: str) -> None:
    if call == "replace":
        monkeypatch.setattr(os, "replace", full_for(name, os.replace))
    elif call == "open":
        monkeypatch.setattr(Path, "write_bytes", full_for(name, Path.write_bytes))
    else:
        monkeypatch.setattr(files, "flush", full_for(name, files.flush))
    assert "No space left on device; nothing was left there" in dudi.run_refused()


def test_an_empty_folder_may_be_used_and_stays_if_the_run_is_refused(dudi: Dudi, monkeypatch: Any) -> None:
    dudi.out.mkdir()
    monkeypatch.setattr(rows.os, "rename", no_space)
    assert "No space left on device" in dudi.refused("run", str(dudi.file))
    assert list(dudi.out.iterdir()) == []


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_no_space_for_the_rows(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(rows.os, call, no_space if call == "rename" else full_later())
    line = dudi.run_refused()
    assert "No space left on device" in line and "nothing was left there" in line


def full_later(calls: int = 5) -> Any:
    """`os.fsync`, until the disk is full."""
    left, whole = [calls], os.fsync

    def call(handle: int) -> None:
        left[0] -= 1
        return whole(handle) if left[0] > 0 else no_space()

    return call


def half_written(self: Any, folder: Any, *args: Any, **kwargs: Any) -> None:
    """`save_pretrained` that runs out of space within a file."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "model.safetensors").write_bytes(b"half")
    no_space()


@pytest.mark.slow
def test_no_space_for_a_checkpoint_keeps_the_one_before(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dudi("run", str(dudi.file), "--output", str(dudi.folder / "whole")) == 0
    publish, calls = checkpoints.publish, []

    def second(staged: Path, final: Path) -> None:
        calls.append(final.name)
        return no_space() if len(calls) == 2 else publish(staged, final)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", second)
        line = dudi.refused("run", str(dudi.file))
    assert calls == ["checkpoint-1", "checkpoint-2"]
    assert "checkpoint-2: cannot be written" in line and "No space left on device" in line and "--resume" in line
    stage = dudi.out / "1-cold-start"
    assert [c.name for c in checkpoints.complete(stage)] == ["checkpoint-1"]
    assert not (stage / "model").exists() and not (dudi.out / "2-dudi").exists()
    assert dudi("run", str(dudi.file), "--resume") == 0
    assert same_results(dudi.out, dudi.folder / "whole")


def same_results(one: Path, other: Path) -> bool:
    """Metrics and weights, byte for byte."""
    a, b = digests(one), digests(other)
    names = [n for n in a if n.endswith("metrics.jsonl") or n.endswith("model/model.safetensors")]
    return len(names) == 4 and all(a[name] == b[name] for name in names)


@pytest.mark.slow
def test_no_space_within_the_first_checkpoint(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", half_written)
        line = dudi.refused("run", str(dudi.file))
    assert "checkpoint-1: cannot be written" in line
    assert checkpoints.complete(dudi.out / "1-cold-start") == []
    assert dudi("run", str(dudi.file), "--resume") == 0


@pytest.mark.parametrize(
    "error", ["os", *(pytest.param(one, marks=pytest.mark.slow) for one in ("safetensors", "torch"))]
)
def test_no_space_for_the_result_keeps_the_checkpoints(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    from safetensors import SafetensorError

    errors = {
        "os": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "torch": RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device\nmore"),
    }

    whole = train.DistillationTrainer._save

    def fail(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        if Path(folder).name == checkpoints.STAGING:  # checkpoints are staged one folder deeper
            raise errors[error]
        whole(self, folder, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train.DistillationTrainer, "_save", fail)
        line = dudi.refused("run", str(dudi.file))
    assert "1-cold-start/model: cannot be written" in line and "No space left on device" in line
    stage = dudi.out / "1-cold-start"
    assert [c.name for c in checkpoints.complete(stage)] == ["checkpoint-1", "checkpoint-2"]
    assert not (stage / "model").exists()
    steps = read_lines(stage / "metrics.jsonl")
    assert dudi("run", str(dudi.file), "--resume") == 0
    assert read_lines(stage / "metrics.jsonl") == steps, "nothing is trained again"


@pytest.mark.slow
def test_no_space_for_metrics(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    from dudi.training import monitors

    whole, calls = monitors.append_line, []

    def third(path: Path, entry: Any) -> None:
        calls.append(path)
        return no_space() if len(calls) == 5 else whole(path, entry)

    monkeypatch.setattr(monitors, "append_line", third)
    line = dudi.refused("run", str(dudi.file))
    assert "No space left on device; what is complete is kept: continue with --resume" in line
    assert dudi("run", str(dudi.file), "--resume") == 0


def test_no_space_for_generated_responses(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_recipe(dudi.folder, dudi.models, method='name = "seqkd"')
    argv = ("run", str(file), "--set", "cold_start.method.name=none")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_for("batch-000001", os.replace))
        line = dudi.refused(*argv)
    assert "continue with --resume" in line
    files = sorted(f.name for f in (dudi.out / "1-seqkd-responses" / "train").iterdir())
    assert files == ["batch-000000.jsonl"], "no half-written batch"
    assert dudi(*argv, "--resume") == 0
