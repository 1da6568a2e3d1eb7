"""A run on several sources: what each gives is said before and after, and a row that is there twice is two rows."""

from __future__ import annotations

import json
from pathlib import Path

import kit
import pytest
from kit import runs
from kit.trainers import Forced

from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Recipe
from dudi.run.pipeline import run
from dudi.run.plan.plan import plan


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    table = runs.recipe(tmp_path, {"name": "sft"}, training={"epochs": 1.0}).model_dump(mode="json", exclude_none=True)
    rows = kit.short_rows(20)
    kit.write_rows(tmp_path / "a.jsonl", rows[:4])
    kit.write_rows(tmp_path / "b.jsonl", rows[4:9])
    sources = [{"source": str(tmp_path / "a.jsonl"), "weight": 2.0}, {"source": str(tmp_path / "b.jsonl")}]
    return parse_recipe(table | {"data": {"sources": sources}}, "test")


def test_what_each_source_gives_is_said(tmp_path: Path, recipe: Recipe) -> None:
    said: list[str] = []
    folder = run(recipe, say=said.append)
    lines = [line for line in said if "training rows an epoch" in line]
    assert [line.partition(" (")[0] for line in lines] == [
        f"{tmp_path / 'a.jsonl'}: 4 rows read, weight 2: 8 training rows an epoch",
        f"{tmp_path / 'b.jsonl'}: 5 rows read, weight 1: 5 training rows an epoch",
    ]
    assert all(f"- {line}\n" in (folder / "summary.md").read_text() for line in lines)
    assert json.loads((folder / "summary.json").read_text())["sources"][0]["weight"] == 2.0
    metrics = (folder / "1-sft" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 4, "13 rows in batches of four"
    assert [line for line in plan(recipe).said if "training rows an epoch" in line] == lines


def test_a_row_that_is_there_twice_is_two_rows(tmp_path: Path) -> None:
    """Each with responses of its own; of what is fixed, teacher and reference say the same of both, read or kept."""
    rows = kit.short_rows(3)
    losses = []
    for cache in ("off", "memory"):
        made = kit.trainer(
            tmp_path / cache, {"name": "dudi"}, examples=[*rows, rows[0], rows[0]], cache=cache, micro_batch=2
        )
        forced = Forced(made.job.builder.chat)
        assert len({forced.response(row.index, "y_tilde") for row in made.job.rows}) == 5
        losses.append(kit.step(made)[0])
        assert made.meter.sums[f"signal/sequence/{rows[0].l}/count"] >= 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
