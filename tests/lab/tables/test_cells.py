"""A cell's recipe is the paper's with the lab over it; its key is of content alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dudi.lab.tables.cells import OVERLAY, Job, Lab, laid_over, make_job, shared_start
from dudi.lab.tables.grid import Pair, read_grid
from dudi.recipe.read import dump_recipe, load_recipe
from dudi.recipe.stages import plan

GRID = read_grid()
PAIRS = {
    "qwen2.5-0.5b": Pair("small", "teacher"),
    "qwen2.5-1.5b": Pair("large", "teacher"),
    "llama3.2-1b": Pair("other", "teacher"),
}
CONTENT: dict[str, Any] = {
    "data": "d",
    "benchmark": "b",
    "models": {"small": ["s", "f"], "large": ["l", "f"], "other": ["o", "f"], "teacher": ["t", "f"]},
}
LAID = load_recipe("lab/dudi", (), [OVERLAY])
TRAINED = [cell for cell in GRID.cells.values() if cell.recipe is not None and cell.pair in PAIRS]


def lab(folder: Path = Path("/lab"), changes: tuple[str, ...] = (), **content: Any) -> Lab:
    made = Lab(folder, GRID, PAIRS, changes)
    vars(made)["content"] = {**CONTENT, **content}  # what it would read from its folder
    return made


def job(name: str, seed: int = 0, of: Lab | None = None, runs: Path = Path("/runs")) -> Job:
    return make_job(of or lab(), GRID.cells[GRID.whole(name)], seed, runs)


@pytest.mark.parametrize("cell", TRAINED, ids=lambda cell: cell.name)
def test_the_method_is_the_paper_s_and_the_rest_the_lab_s(cell: Any) -> None:
    found, shipped, ours = laid_over(lab(), cell, 3, Path("/o")), load_recipe(cell.recipe), LAID
    assert found.to_method() == load_recipe(cell.recipe, cell.changes).to_method()
    assert found.cold_start.method == shipped.cold_start.method
    assert (found.limits, found.rollouts, found.generation) == (ours.limits, ours.rollouts, ours.generation)
    assert found.cold_start.training == ours.cold_start.training
    assert found.data == ours.data.model_copy(update={"source": "/lab/data"})
    assert (found.models.student, found.models.teacher) == (f"/lab/{PAIRS[cell.pair].student}", "/lab/teacher")
    assert (found.seed, found.output) == (3, "/o")


def test_all_methods_take_as_many_steps_and_cold_starts_theirs() -> None:
    ours = LAID
    for cell in TRAINED:
        found = laid_over(lab(), cell, 0, Path("/o"))
        method = found.to_method()
        wanted = ours.training.max_steps if method.cold_start else ours.cold_start.training.max_steps
        assert wanted is not None
        assert found.training.max_steps == wanted // method.iterations, cell.name  # SPIN's iterations share them
        if not method.cold_start:
            assert found.training == ours.cold_start.training


def test_cold_starts_are_shared_by_seed() -> None:
    starts = {cell.name: shared_start(laid_over(lab(), cell, 0, Path("/o")), cell) for cell in TRAINED}
    main = {name.partition("/")[2]: start for name, start in starts.items() if name.startswith(GRID.pair)}
    none = {
        "sft",
        "dft",
        "dudi-cold-start-teacher-generated",
        *(name for name in main if name.endswith("no-cold-start")),
    }
    assert {name for name, start in main.items() if start is None} == none
    assert {name for name, start in main.items() if start == f"{GRID.pair}/dft"} == {
        name for name in main if name.endswith("-cold-start-dft")
    }
    assert starts["llama3.2-1b/gkd"] == "llama3.2-1b/sft"
    found = job("gkd", 2)
    assert found.recipe is not None and found.start == f"{GRID.pair}/sft"
    assert found.recipe.cold_start.checkpoint == str(job("sft", 2).model) == "/runs/qwen2.5-0.5b/sft/2/run/1-sft/model"
    (stage,) = plan(found.recipe)
    assert stage.name == "gkd", "the cold start is not trained again"


def test_the_key_does_not_know_where_or_when() -> None:
    here, there = job("dudi"), job("dudi", of=lab(Path("/elsewhere")), runs=Path("/others"))
    assert here.key == there.key and here.settings == there.settings and here.folder != there.folder
    assert job("dudi", 1).key != here.key and job("dudi", 1).settings == here.settings
    assert job("gkd").key != here.key


@pytest.mark.parametrize(
    "other",
    [
        lab(data="e"),
        lab(benchmark="c"),
        lab(models={**CONTENT["models"], "teacher": ["u", "f"]}),
        lab(models={**CONTENT["models"], "small": ["s", "g"]}),
        lab(changes=("training.lr=1e-5",)),
        lab(changes=("cold_start.training.lr=1e-5",)),  # which dudi starts from
    ],
)
def test_the_key_knows_whatever_decides_about_numbers(other: Lab) -> None:
    assert job("dudi", of=other).key != job("dudi").key
    teacher = job("teacher", of=other)
    changed = other.content["benchmark"] != "b" or other.content["models"]["teacher"] != ["t", "f"]
    assert (teacher.key != job("teacher").key) is changed and teacher.seed is None and teacher.recipe is None


@pytest.mark.parametrize("cell", ["sft", "dft", "spin", "sdft", "seqkd", "gkd", "dudi"])
def test_the_key_knows_of_the_teacher_what_the_method_asks_it_for(cell: str) -> None:
    weights, files = (lab(models={**CONTENT["models"], "teacher": one}) for one in (["u", "f"], ["t", "g"]))
    asked = cell in ("seqkd", "gkd", "dudi")
    assert (job(cell, of=weights).key != job(cell).key) is asked
    assert job(cell, of=files).key != job(cell).key, "its chat template"


def test_a_cell_s_file_is_its_recipe(tmp_path: Path) -> None:
    made = job("spin", 1)
    assert made.recipe is not None
    (tmp_path / "r.toml").write_text(dump_recipe(made.recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "r.toml") == made.recipe
