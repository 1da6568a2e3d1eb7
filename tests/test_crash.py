"""`kill -9` at the worst moments, in a process of its own; then the same end as undisturbed, bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from workers import common

from dudi import checkpoints
from dudi.config import Recipe, dump_recipe
from dudi.rollouts.local import LocalSampler
from dudi.train import run

DUDI = {"name": "dudi"}
SDFT = {"name": "sdft", "ema_rate": 0.3}
NO_COLD_START = {"cold_start": {"method": {"name": "none"}}}


def recipe(folder: Path, method: Mapping[str, Any], output: str, **tables: Any) -> Recipe:
    """Six steps; checkpoints at 2, 4 and 6, metrics at 3 and 6."""
    training = {"save_every": 2, "log_every": 3, "keep_checkpoints": 2}
    return common.recipe(folder, method, output=output, training=training, **{**NO_COLD_START, **tables})


def killed(folder: Path, r: Recipe, place: str) -> Path:
    """Run a recipe in another process that kills itself; the folder it left."""
    file = folder / f"{Path(r.output).name}.toml"
    file.write_text(dump_recipe(r), encoding="utf-8")
    status, text = common.start("crash.py", str(file), place)
    assert status == -signal.SIGKILL, text
    left = Path(r.output)
    assert not (left / "summary.json").exists()
    return left


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash")


@pytest.fixture(scope="module")
def straight(folder: Path) -> dict[str, Path]:
    """Undisturbed runs, by method."""
    methods = {"dudi": DUDI, "sdft": SDFT}
    return {name: run(recipe(folder, m, f"{name}-straight"), say=lambda *_: None) for name, m in methods.items()}


def newest(stage: Path) -> list[str]:
    return [c.name for c in checkpoints.complete(stage)]


def test_killed_within_a_checkpoint(folder: Path, straight: dict[str, Path]) -> None:
    """Half of an optimizer file of step 4 is left, in a folder aside; SDFT, whose average is in the checkpoint too."""
    r = recipe(folder, SDFT, "sdft-optimizer")
    left = killed(folder, r, "optimizer:4")
    stage = left / "1-sdft"
    assert newest(stage) == ["checkpoint-2"]
    assert (stage / "staging" / "checkpoint-4" / "optimizer.pt").is_file()
    assert not (stage / "checkpoint-4").exists()
    common.assert_same_end(straight["sdft"], run(r, resume=True, say=lambda *_: None))
    assert not (stage / "staging").exists()


def test_killed_within_an_epoch(folder: Path, straight: dict[str, Path]) -> None:
    """In step 5, after its backward pass: the second step of the second epoch."""
    r = recipe(folder, DUDI, "dudi-step")
    left = killed(folder, r, "step:5")
    assert newest(left / "1-dudi") == ["checkpoint-2", "checkpoint-4"]
    assert [line["step"] for line in common.metrics(left / "1-dudi")] == [3]
    common.assert_same_end(straight["dudi"], run(r, resume=True, say=lambda *_: None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "there"),
    [
        ("optimizer:2", []),
        ("flush:4", ["checkpoint-2"]),
        ("renamed:4", ["checkpoint-2", "checkpoint-4"]),
        ("renamed:6", ["checkpoint-2", "checkpoint-4", "checkpoint-6"]),
        ("result", ["checkpoint-4", "checkpoint-6"]),
        ("step:1", []),
    ],
)
def test_killed_elsewhere(place: str, there: list[str], folder: Path, straight: dict[str, Path]) -> None:
    r = recipe(folder, DUDI, f"dudi-{place.replace(':', '-')}")
    left = killed(folder, r, place)
    assert newest(left / "1-dudi") == there
    common.assert_same_end(straight["dudi"], run(r, resume=True, say=lambda *_: None))


@pytest.mark.slow
def test_killed_twice(folder: Path, straight: dict[str, Path]) -> None:
    """Once more while it resumes, from the same checkpoint."""
    r = recipe(folder, DUDI, "dudi-twice")
    left = killed(folder, r, "step:3")
    file = folder / "again.toml"
    file.write_text(dump_recipe(r), encoding="utf-8")
    status, text = common.start("crash.py", str(file), "optimizer:4", "resume")
    assert status == -signal.SIGKILL, text
    assert newest(left / "1-dudi") == ["checkpoint-2"]
    common.assert_same_end(straight["dudi"], run(r, resume=True, say=lambda *_: None))


def test_killed_in_a_generation_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SeqKD: the teacher's finished batches survive, only the missing one is sampled, the same responses come out."""
    method = {"name": "seqkd"}
    undisturbed = run(recipe(folder, method, "seqkd-straight"), say=lambda *_: None)
    r = recipe(folder, method, "seqkd-batch")
    here = killed(folder, r, "batch:2") / "1-seqkd-responses" / "train"
    assert sorted(f.name for f in here.iterdir()) == [
        ".batch-000002.jsonl.tmp",
        "batch-000000.jsonl",
        "batch-000001.jsonl",
    ]
    kept = {f: f.stat().st_mtime_ns for f in here.glob("batch-*.jsonl")}
    asked: list[tuple[Any, ...]] = []
    before = LocalSampler.__call__

    def sample(self: LocalSampler, model: Any, requests: Any) -> Any:
        asked.extend(request.key for request in requests)
        return before(self, model, requests)

    monkeypatch.setattr(LocalSampler, "__call__", sample)
    common.assert_same_end(undisturbed, run(r, resume=True, say=lambda *_: None))
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    assert len(asked) == 3 and {key[:2] for key in asked} == {("teacher", "train")}
