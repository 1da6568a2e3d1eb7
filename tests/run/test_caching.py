"""What a run says of its cache before it begins, or is refused for, and what is left of it in the end."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kit
import pytest
from kit import runs
from transformers import TrainerCallback

from dudi.errors import DudiError
from dudi.recipe.schema import Recipe
from dudi.run.caching import amount, caches
from dudi.run.pipeline import run
from dudi.run.prepare import prepare
from dudi.run.rehearsal import rehearse_recipe
from dudi.training.cache import FOLDER, InMemory
from dudi.training.trainer import DistillationTrainer

NONE = {"method": {"name": "none"}}
METHODS: dict[str, dict[str, Any]] = {
    "dudi": {"name": "dudi"},
    "gkd": {"name": "gkd"},
    "spin": {"name": "spin", "iterations": 1},
    "seqkd": {"name": "seqkd", "variant": "jsd"},
}


def recipe(folder: Path, method: dict[str, Any], **training: Any) -> Recipe:
    training = {"cache": "memory", **training}
    data = {"eval_rows_per_language": 1}
    return runs.recipe(folder, method, number=22, training=training, cold_start=NONE, data=data)


def said(made: Recipe, processes: int = 1) -> list[str]:
    return caches(prepare(made), Path(made.output), processes)


def taken(made: Recipe) -> int:
    """Bytes that a run's cache has kept, of its last training."""
    found: list[DistillationTrainer] = []
    kit.watched(made, lambda t, title: found.append(t) or TrainerCallback())  # type: ignore[func-returns-value]
    store = found[-1].cache.store
    assert isinstance(store, InMemory) and store._groups
    return sum(t.numel() * t.element_size() for group in store._groups.values() for t in group.values())


# ── the size ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["dudi", "spin", "seqkd"])
def test_the_size_that_is_said_is_the_size_that_is_taken(method: str, precision: str, tmp_path: Path) -> None:
    made = recipe(tmp_path, METHODS[method], max_steps=1)
    made = made.model_copy(update={"models": made.models.model_copy(update={"precision": precision})})
    (line,) = said(made)
    real = taken(made)
    training = made.training.model_copy(update={"cache_limit": (real - 1) / 1e9})
    with pytest.raises(DudiError, match=r"training\.cache_limit"):
        said(made.model_copy(update={"training": training}))
    if method == "seqkd":  # what the teacher will write is not known
        assert line.startswith("cache: at most ")
        return
    assert f"cache: {amount(real)} in memory (" in line
    training = made.training.model_copy(update={"cache_limit": real / 1e9})
    assert said(made.model_copy(update={"training": training})) == [line]


def test_amounts() -> None:
    assert [amount(n) for n in (12, 4_000, 1_250_000, 28_900_000_000)] == ["0.0 kB", "4.0 kB", "1.2 MB", "28.9 GB"]


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_line(tmp_path: Path) -> None:
    prepared = prepare(recipe(tmp_path, METHODS["dudi"]))
    tokens = sum(len(row.y) for row in (*prepared.train.rows, *prepared.eval.rows))
    what = f"(the teacher's hidden states at {tokens:,} tokens and the reference's log-probabilities)"
    size = amount(tokens * 64 * 4 + 22 * 8)
    assert said(recipe(tmp_path, METHODS["dudi"])) == [f"cache: {size} in memory {what}"]
    assert said(recipe(tmp_path, METHODS["dudi"]), 2) == [f"cache: {size} in memory of each of 2 processes {what}"]
    assert said(recipe(tmp_path, METHODS["dudi"], cache="disk"), 2) == [f"cache: {size} on disk {what}"]
    assert said(recipe(tmp_path, METHODS["dudi"], cache="off")) == []


def test_a_cache_that_saves_nothing(tmp_path: Path) -> None:
    (line,) = said(recipe(tmp_path, METHODS["gkd"], epochs=1.0))
    assert line.endswith(": in stage 'gkd' no row is read twice, so that it saves nothing")
    (line,) = said(recipe(tmp_path, METHODS["gkd"], epochs=1.0, eval_every=1))
    assert "saves nothing" not in line
    assert said(recipe(tmp_path, {"name": "sdft"})) == [
        "cache: method sdft reads nothing frozen twice: nothing is kept"
    ]


def test_it_is_said_by_the_run(tmp_path: Path) -> None:
    lines: list[str] = []
    out = run(recipe(tmp_path, METHODS["gkd"], cache="disk", max_steps=2), say=lines.append)
    assert len([line for line in lines if line.startswith("cache: ")]) == 1
    assert not list(out.rglob(FOLDER)), "gone with the result"


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_cache_over_the_limit_is_refused_before_anything(tmp_path: Path) -> None:
    made = recipe(tmp_path, METHODS["dudi"], cache_limit=1e-5)
    for begin in (lambda: run(made, say=lambda _: None), lambda: rehearse_recipe(made)):
        with pytest.raises(DudiError) as caught:
            begin()
        text = str(caught.value)
        assert text.startswith("training.cache = \"memory\" of stage 'dudi' needs ")
        assert text.endswith(
            'more than training.cache_limit = 1e-05 GB: raise the limit, or set training.cache = "off"'
        )
        assert not Path(made.output).exists()


def test_the_cold_start_has_a_limit_of_its_own(tmp_path: Path) -> None:
    cold = {"method": {"name": "seqkd", "variant": "jsd"}, "training": {"cache": "disk", "cache_limit": 1e-6}}
    made = runs.recipe(tmp_path, METHODS["dudi"], number=22, cold_start=cold)
    with pytest.raises(DudiError, match=r'cold_start.training.cache = "disk" of stage .cold-start.'):
        said(made)


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000))
    with pytest.raises(DudiError, match=r"has 5.0 kB free: free disk space, or set training.cache = .off."):
        said(recipe(tmp_path, METHODS["dudi"], cache="disk"))
    assert said(recipe(tmp_path, METHODS["dudi"], cache="memory"))
