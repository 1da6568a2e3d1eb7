"""A rehearsal finds what would fail after hours, costs seconds, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.command import Dudi

from dudi.errors import DudiError
from dudi.methods import build_method
from dudi.models.reader import DecodingCopy
from dudi.recipe.read import load_recipe
from dudi.recipe.stages import plan
from dudi.run import rehearsal
from dudi.run.pipeline import Pipeline
from dudi.run.prepare import prepare


def broken_teacher(dudi: Dudi) -> Path:
    """A teacher that loads well, and whose logits are not numbers."""
    made = kit.model(2, hidden=64, rows=kit.VOCAB + 20, dtype=torch.float32)
    with torch.no_grad():
        made.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    return Path(kit.save(dudi.folder / "broken", made, kit.tokenizer()))


def test_a_teacher_that_cannot_be_read_is_found_before_the_cold_start(dudi: Dudi) -> None:
    teacher = f"models.teacher='{broken_teacher(dudi)}'"
    line = dudi.refused("run", str(dudi.file), "--rehearsal", "--set", teacher)
    assert line.startswith("rehearsal of stage 'dudi': teacher: the model's logits are not finite")
    assert not dudi.out.exists()
    assert dudi("run", str(dudi.file), "--no-rehearsal", "--set", teacher) == 2
    assert (dudi.out / "1-cold-start" / "model").is_dir(), "without one, the cold start is paid for"


def test_whatever_a_model_does_is_one_line(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setattr(DecodingCopy, "refreshed", fail)
    line = dudi.refused("run", str(dudi.file), "--rehearsal")
    assert "rehearsal of stage 'cold-start' (models " in line and line.endswith("IndexError: list index out of range")
    assert not dudi.out.exists()


@pytest.mark.slow
def test_a_rehearsal_changes_no_number_and_leaves_nothing(dudi: Dudi) -> None:
    one, two = dudi.folder / "one", dudi.folder / "two"
    assert dudi("run", str(dudi.file), "--rehearsal", "--output", str(one)) == 0, dudi.err
    assert dudi("run", str(dudi.file), "--no-rehearsal", "--output", str(two)) == 0, dudi.err
    for stage in ("1-cold-start", "2-dudi"):
        for name in ("metrics.jsonl", "model/model.safetensors"):
            assert (one / stage / name).read_bytes() == (two / stage / name).read_bytes()
    assert not list(dudi.folder.rglob(f"{rehearsal.FOLDER}*"))


def test_check_rehearses_and_keeps_nothing(dudi: Dudi) -> None:
    before = set(dudi.folder.rglob("*"))
    assert dudi("check", str(dudi.file), "--rehearse") == 0, dudi.err
    assert "rehearsed: every stage loads" in dudi.text and set(dudi.folder.rglob("*")) == before
    line = dudi.refused("check", str(dudi.file), "--rehearse", "--set", f"models.teacher='{broken_teacher(dudi)}'")
    assert line.startswith("rehearsal of stage 'dudi': teacher: ")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"name": "seqkd"}, marks=pytest.mark.slow),
        pytest.param({"name": "spin", "iterations": 3}, marks=pytest.mark.slow),
        pytest.param({"name": "sdft"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_goes_through_every_kind_of_stage(dudi: Dudi, method: dict[str, Any], monkeypatch: Any) -> None:
    seen: list[str] = []
    real = Pipeline.run
    monkeypatch.setattr(Pipeline, "run", lambda self, stage: seen.append(stage.name) or real(self, stage))
    table = ", ".join(f"{key} = {value!r}" for key, value in method.items()).replace("'", '"')
    rehearsal.rehearse_recipe(load_recipe(dudi.file, [f"method={{ {table} }}"]))
    name = method["name"]
    generated = [] if name == "sdft" else [f"{name}-responses"]
    assert seen == ["cold-start", *generated, name]


def test_both_sides_of_a_coin_are_rehearsed(dudi: Dudi) -> None:
    method = build_method({"name": "gkd", "lam": 0.3})
    steps = rehearsal.steps_for(method, 5)
    assert {s.name for step in range(steps) for s in method.active(5, step)} == {"off_policy", "on_policy"}
    assert steps > 1 == rehearsal.steps_for(build_method({"name": "gkd", "lam": 1.0}), 5)
    small = rehearsal.miniature(prepare(load_recipe(dudi.file, ["seed=5", 'method={name = "gkd", lam = 0.3}'])))
    assert small.recipe.training.max_steps == steps and len(small.train.rows) == rehearsal.ROWS


def test_a_disk_without_room_is_said_with_figures(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(dudi.file)
    rehearsal.check_room(recipe, plan(recipe), 2**20, dudi.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10 * 2**30})())
    wanted = r"10\.0 GiB are free, and the run needs about 11\.0 \(2 results, 3 checkpoints\)"  # of thrice their size
    with pytest.raises(DudiError, match=wanted):
        rehearsal.check_room(recipe, plan(recipe), 2**30, dudi.folder)
    rehearsal.check_room(recipe, plan(recipe), 2**30, dudi.folder, adapter=2**20)  # checkpoints are of it alone
