"""A cell under one seed: its recipe, what it starts from, and the key by which its numbers are known.

The key is of content alone: the recipe with every value spelled out, where paths are replaced by what lies there (data,
weights) and a cold start by its own key. So it does not change with the folder, the machine or the day.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dudi.errors import DudiError
from dudi.evals.respond import fingerprint
from dudi.files import sha256
from dudi.lab.tables.grid import Cell, Grid, Pair
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import folder_name, plan, teacher_asked
from dudi.records import benchmark_files

OVERLAY = "_lab-tables"
SHARED = ("sft", "dft")
"""Cold starts that are cells of their own: all that start from one share it."""
DECIDED = {
    "seed": "--seeds and --first",
    "name": "the grid",
    "output": "--runs",
    "models.student": "--lab or --weights",
    "models.teacher": "--lab or --weights",
    "data.source": "--lab",
    "data.sources": "--lab",
    "data.rows_per_language": "--lab (all its rows are taken)",
    "cold_start.checkpoint": "the cell that it starts from",
}
"""Keys of a recipe that the grid sets for each cell, and what decides them."""


@dataclass(frozen=True)
class Lab:
    """An exported lab, and what is the same for all its cells."""

    folder: Path
    grid: Grid
    pairs: Mapping[str, Pair]
    """Its models, by the paper's names."""
    changes: tuple[str, ...] = ()
    """Laid over every cell, as `--set`."""

    @cached_property
    def content(self) -> dict[str, Any]:
        """Hashes of data, benchmark and each model."""
        names = sorted({name for pair in self.pairs.values() for name in (pair.student, pair.teacher)})
        prints = {name: fingerprint(self.folder / name) for name in names}
        return {
            "data": data_sha256(self.folder / "data"),
            "benchmark": benchmark_files(self.folder / "benchmark").sha256,
            "models": {name: [one["weights_sha256"], one["files_sha256"]] for name, one in prints.items()},
        }


def data_sha256(folder: Path) -> str:
    """Of all rows, whatever version of a library wrote the files."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        if file.suffix == ".parquet":
            digest.update(json.dumps(pq.read_table(file).to_pylist(), sort_keys=True, default=str).encode())
        else:
            digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()


@dataclass(frozen=True)
class Job:
    """What is to be done for one line: a cell under a seed."""

    cell: Cell
    seed: int | None
    """None: a teacher, which is asked once."""
    folder: Path
    """Of its recipe, run and evaluation."""
    model: Path
    """What is evaluated."""
    settings: Mapping[str, Any]
    """What its numbers depend on beside the seed."""
    recipe: Recipe | None = None
    """None: a teacher, which is not trained."""
    start: str | None = None
    """The cell whose result its cold start is, if any."""

    @property
    def name(self) -> tuple[str, int | None]:
        """By which its line is looked for."""
        return self.cell.name, self.seed

    @property
    def key(self) -> str:
        """SHA-256 of settings and seed."""
        return hashed({"settings": self.settings, "seed": self.seed})


def result(run: Path, recipe: Recipe) -> Path:
    """The model folder of a run's last stage."""
    stages = plan(recipe)
    return run / folder_name(stages, stages[-1].name) / "model"


def hashed(value: Any) -> str:
    """SHA-256 of a value as JSON, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def folder_of(runs: Path, cell: Cell, seed: int | None) -> Path:
    """Where a cell is trained and evaluated."""
    return runs / cell.name / ("once" if seed is None else str(seed))


def make_job(lab: Lab, cell: Cell, seed: int, runs: Path) -> Job:
    """A cell as the lab trains it. Raises `DudiError` where the recipe does not take what is laid over it."""
    pair, content = lab.pairs[cell.pair], lab.content
    if cell.recipe is None:
        settings = {"benchmark": content["benchmark"], "teacher": content["models"][pair.teacher]}
        return Job(cell, None, folder_of(runs, cell, None), lab.folder / pair.teacher, settings)
    folder = folder_of(runs, cell, seed)
    recipe = laid_over(lab, cell, seed, folder / "run")
    start = shared_start(recipe, cell)
    weights, files = content["models"][pair.teacher]
    settings = {
        "recipe": plain(recipe),
        "benchmark": content["benchmark"],
        "data": content["data"],
        "student": content["models"][pair.student],
        "teacher": [weights if teacher_asked(plan(recipe)) else None, files],  # all read its chat template
    }
    if start is not None:
        first = make_job(lab, lab.grid.cells[start], seed, runs)
        assert first.recipe is not None
        settings["start"] = hashed(first.settings)
        cold = recipe.cold_start.model_copy(update={"checkpoint": str(first.model)})
        recipe = recipe.model_copy(update={"cold_start": cold})
    return Job(cell, seed, folder, result(folder / "run", recipe), settings, recipe, start)


def check_changes(changes: Sequence[str]) -> None:
    """Raises `DudiError` where `--set` names a key that is the grid's: its cells would not be what they are called."""
    for change in changes:
        key = change.partition("=")[0].strip()
        for decided, by in DECIDED.items():
            if f"{key}.".startswith(f"{decided}.") or f"{decided}.".startswith(f"{key}."):
                raise DudiError(f"--set {change!r}: {decided} of a cell is decided by {by}")


def laid_over(lab: Lab, cell: Cell, seed: int, output: Path) -> Recipe:
    """The paper's recipe with the lab over it.

    All rows of the lab are taken. A cell that is a cold start is trained as the lab's cold starts are; all iterations
    of SPIN together take as many steps as any other method.
    """
    assert cell.recipe is not None
    pair = lab.pairs[cell.pair]
    texts = {
        "name": cell.name.replace("/", "-"),
        "output": str(output),
        "models.student": str(lab.folder / pair.student),
        "models.teacher": str(lab.folder / pair.teacher),
        "data.source": str(lab.folder / "data"),
    }
    given = [f"{key}={json.dumps(text, ensure_ascii=False)}" for key, text in texts.items()]
    recipe = load_recipe(cell.recipe, (*given, f"seed={seed}", *lab.changes, *cell.changes), (OVERLAY,))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"rows_per_language": None})})
    method, training = recipe.to_method(), recipe.training
    if not method.cold_start:
        return recipe.model_copy(update={"training": recipe.cold_start.training})
    if method.iterations > 1 and training.max_steps is not None:
        steps = max(training.max_steps // method.iterations, 1)
        return recipe.model_copy(update={"training": training.model_copy(update={"max_steps": steps})})
    return recipe


def shared_start(recipe: Recipe, cell: Cell) -> str | None:
    """The cell whose result a cell's cold start is; None where it has none, or one of its own kind."""
    cold = recipe.cold_start_method()
    if cold is None or recipe.cold_start.method not in [{"name": name} for name in SHARED]:
        return None
    return f"{cell.pair}/{cold.name}"


def plain(recipe: Recipe) -> dict[str, Any]:
    """Everything of a recipe that decides about its numbers, but for the seed: without names, and without paths, for
    whose contents there are hashes."""
    table = recipe.model_dump(mode="json", exclude_none=True)
    for key in ("name", "description", "output", "paper", "seed"):
        table.pop(key, None)
    for key in ("student", "teacher"):
        table["models"].pop(key, None)
    table["data"].pop("source", None)
    if not recipe.to_method().cold_start:
        table.pop("cold_start")  # not read
    return dict(table)
