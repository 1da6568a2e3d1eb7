"""Files of a checkpoint that are whole by their sums and hold something else: one line, and the one before is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.command import Dudi

from dudi.errors import DudiError
from dudi.run.pipeline import resume_stage
from dudi.training import checkpoints
from dudi.training.trainer import DistillationTrainer

Change = Callable[[Any], Any]


def made(folder: Path) -> DistillationTrainer:
    """Two steps, a checkpoint after each."""
    return kit.trainer(folder, {"name": "sft"}, epochs=2.0, save_every=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    made(folder).train()
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A training that was stopped after its first step; the second checkpoint is aside."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "second")
    return tmp_path / "run"


# ── the list of files ────────────────────────────────────────────────────────────────────────────────────────────────
LISTS: dict[str, tuple[str | bytes, str]] = {
    "a list": ("[]", "lists no files"),
    "a number": ("3", "lists no files"),
    "nothing": ("null", "lists no files"),
    "empty": ("{}", "lists no files"),
    "not JSON": ("{", "no readable complete.json"),
    "not text": (b"\xff\xfe", "no readable complete.json"),
    "too deep": ("[" * 100_000, "no readable complete.json"),
    "tables too deep": ('{"a":' * 100_000, "no readable complete.json"),
    "an entry that is a list": ('{"config.json": []}', "has no size and sha256 for 'config.json'"),
    "an entry that is nothing": ('{"config.json": null}', "has no size and sha256 for 'config.json'"),
    "no sum": ('{"config.json": {"size": 3}}', "has no size and sha256"),
    "no size": ('{"config.json": {"sha256": "x"}}', "has no size and sha256"),
    "a size in words": ('{"config.json": {"size": "3", "sha256": "x"}}', "has no size and sha256"),
    "a size alone": ('{"config.json": 3}', "has no size and sha256"),
    "a size that is true": ('{"config.json": {"size": true, "sha256": "x"}}', "has no size and sha256"),
    "a size without end": ('{"config.json": {"size": Infinity, "sha256": "x"}}', "has no size and sha256"),
    "a sum that is a number": ('{"config.json": {"size": 3, "sha256": 3}}', "has no size and sha256"),
    "a name that leads out": ('{"../x": {"size": 3, "sha256": "x"}}', "has no size and sha256 for '../x'"),
    "a name from the root": ('{"/etc/passwd": {"size": 3, "sha256": "x"}}', "has no size and sha256 for '/etc/passwd'"),
    "a name too long": (json.dumps({"x" * 5000: {"size": 3, "sha256": "x"}}), "has no size and sha256 for 'xxx"),
    "a name of two lines": ('{"a\\nb": {"size": 3, "sha256": "x"}}', "has no size and sha256"),
    "half a letter": ('{"\\ud800": {"size": 3, "sha256": "x"}}', "has no size and sha256"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_files_that_is_none(name: str, folder: Path) -> None:
    """It is damage, in one line; the checkpoint before is used."""
    text, said = LISTS[name]
    (folder.parent / "second").rename(folder / "checkpoint-2")
    file = folder / "checkpoint-2" / checkpoints.MANIFEST
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    fault = checkpoints.damage(folder / "checkpoint-2")
    assert fault is not None and said in fault and fault.isprintable() and len(fault) < 200
    lines: list[str] = []
    assert checkpoints.newest(folder, lines.append) == folder / "checkpoint-1"
    assert lines == [f"  checkpoint-2 is damaged ({fault}): skipped"]


def test_a_file_that_cannot_be_read_is_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints, "sha256", fail)
    assert str(checkpoints.damage(folder / "checkpoint-1")).endswith(" cannot be read (Input/output error)")


# ── files whose sums fit ─────────────────────────────────────────────────────────────────────────────────────────────
def torn(change: Change) -> Callable[[Path], None]:
    """A file of torch's with another content."""

    def edit(file: Path) -> None:
        state = torch.load(file, weights_only=False)
        torch.save(change(state) or state, file)

    return edit


def table(change: Change) -> Callable[[Path], None]:
    """A file of JSON with another content."""

    def edit(file: Path) -> None:
        state = json.loads(file.read_text())
        file.write_text(json.dumps(change(state) or state))

    return edit


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(data) and None


def moments(change: Change) -> Callable[[Path], None]:
    return torn(lambda state: change(state["state"][0]) and None)


OPTIMIZER, SCHEDULE, RNG, STATE = "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"
GARBAGE: list[tuple[str, str, Callable[[Path], None]]] = [
    *((file, "empty", raw(b"")) for file in (OPTIMIZER, SCHEDULE, RNG, STATE, "dudi.json", "model.safetensors")),
    *((file, "noise", raw(bytes(range(256)) * 9)) for file in (OPTIMIZER, SCHEDULE, RNG, STATE, "model.safetensors")),
    *((file, "a list", torn(lambda s: [1, 2])) for file in (OPTIMIZER, SCHEDULE, RNG)),
    *((file, "an empty table", torn(lambda s: {"x": 1})) for file in (OPTIMIZER, SCHEDULE, RNG)),
    (OPTIMIZER, "no groups", torn(lambda s: s.update(param_groups=[]))),
    (OPTIMIZER, "a rate in words", torn(lambda s: s["param_groups"][0].update(lr="fast"))),
    (OPTIMIZER, "one beta", torn(lambda s: s["param_groups"][0].update(betas=(0.9,)))),
    (OPTIMIZER, "moments of another size", moments(lambda m: m.update(exp_avg=torch.zeros(2)) or True)),
    (OPTIMIZER, "no second moment", moments(lambda m: m.pop("exp_avg_sq") is not None)),
    (OPTIMIZER, "a step in words", moments(lambda m: m.update(step="two") or True)),
    (SCHEDULE, "a step in words", torn(lambda s: s.update(last_epoch="two"))),
    (SCHEDULE, "three groups", torn(lambda s: s.update(base_lrs=[1.0, 1.0, 1.0]))),
    (SCHEDULE, "a method", torn(lambda s: s.update(step=3))),
    (SCHEDULE, "the optimizer", torn(lambda s: s.update(optimizer=3))),
    (RNG, "numbers of another kind", torn(lambda s: s.update(cpu=torch.zeros(3)))),
    (RNG, "no state of Python's", torn(lambda s: s.update(python=None))),
    (STATE, "a list", raw(b"[]")),
    (STATE, "too deep", raw(b"[" * 100_000)),
    (STATE, "an unknown key", table(lambda s: s.update(unknown=1))),
    (STATE, "a step in words", table(lambda s: s.update(global_step="two"))),
    (STATE, "another step", table(lambda s: s.update(global_step=2))),
    (STATE, "no steps", table(lambda s: s.update(max_steps=0))),
    (STATE, "a checkpoint every 0 steps", table(lambda s: s.update(save_steps=0))),
    (STATE, "a history that is a number", table(lambda s: s.update(log_history=3))),
    (STATE, "no callbacks", table(lambda s: s.update(stateful_callbacks={}))),
    (STATE, "a best one that is a list", table(lambda s: s.update(best_model_checkpoint=[]))),
    ("dudi.json", "a list", raw(b"[]")),
    ("dudi.json", "sums in words", table(lambda s: s.update(meter=[dict.fromkeys(s["meter"][0], "x")]))),
    ("dudi.json", "sums of no process", table(lambda s: s.update(meter=s["meter"][0]))),
    ("dudi.json", "no warnings", table(lambda s: s.pop("collapse") and None)),
]  # fmt: skip


def again(checkpoint: Path) -> None:
    """Publish a checkpoint once more, so that its sums fit what is in it."""
    (checkpoint / checkpoints.MANIFEST).unlink()
    checkpoints.publish(checkpoint.rename(checkpoint.parent.parent / "staged"), checkpoint)


@pytest.mark.parametrize(("name", "what", "change"), GARBAGE, ids=[f"{name}: {what}" for name, what, _ in GARBAGE])
def test_a_file_that_holds_something_else(name: str, what: str, change: Callable[[Path], None], folder: Path) -> None:
    change(folder / "checkpoint-1" / name)
    again(folder / "checkpoint-1")
    assert checkpoints.damage(folder / "checkpoint-1") is None
    with pytest.raises(DudiError, match="not what this training saved") as error:
        resume_stage(made(folder))
    said = {"model.safetensors": "the weights", "rng_state.pth": "rng_state*.pth"}.get(name, name)
    assert f"{folder / 'checkpoint-1'}: " in str(error.value) and said in str(error.value)
    assert error.value.status == 2 and str(error.value).isprintable() and "weights_only" not in str(error.value)
    assert [c.name for c in checkpoints.complete(folder)] == ["checkpoint-1"], "nothing is written over it"


def test_untouched_it_is_gone_on_with(folder: Path, trained: Path) -> None:
    again(folder / "checkpoint-1")
    resume_stage(made(folder))
    ends = (torch.load(run / "checkpoint-2" / OPTIMIZER, weights_only=True) for run in (folder, trained))
    one, other = (end["state"][0]["exp_avg"] for end in ends)
    assert torch.equal(one, other)


@pytest.mark.slow
def test_by_the_command_it_is_one_line(dudi: Dudi) -> None:
    assert dudi("run", str(dudi.file)) == 0
    (stage,) = dudi.out.glob("2-*")
    shutil.rmtree(stage / "model")
    raw(b"no archive")(stage / "checkpoint-1" / OPTIMIZER)
    again(stage / "checkpoint-1")
    (stage / "checkpoint-2" / checkpoints.MANIFEST).write_text("[]")
    line = dudi.refused("run", str(dudi.file), "--resume")
    assert "checkpoint-1: optimizer.pt or scheduler.pt cannot be resumed from (" in line
