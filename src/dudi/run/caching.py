"""What the caches of a run will take (`training.cache`), known before anything is loaded: said, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dudi.errors import DudiError
from dudi.files import nearest
from dudi.models.files import reading_model
from dudi.models.load import arithmetic, load_config
from dudi.recipe.schema import Limits, Recipe
from dudi.recipe.stages import COLD_START, Train, plan
from dudi.run.prepare import Prepared
from dudi.signals import View, compared, judged
from dudi.training.job import steps_an_epoch, steps_of
from dudi.training.window import Row

SCALAR = 8
"""Bytes of a log R(y|x)."""


@dataclass(frozen=True)
class Kept:
    """What the cache of a training holds. scored, compared: whether there is something of the teacher's, of R's;
    tokens: of which the teacher's hidden states are kept; at_most: "at most " where a stage has yet to write them."""

    scored: bool
    compared: bool
    tokens: int
    at_most: str
    bytes: int


def kept(stage: Train, prepared: Prepared) -> Kept:
    """What the cache of a training holds where it has one; in each process, if it is in memory."""
    recipe, rows = prepared.recipe, [*prepared.train.rows, *prepared.eval.rows]
    scored = [view for view in judged(stage.method.signals) if view.fixed and stage.method.judged_by_larger]
    against = [view for view in compared(stage.method.signals) if view.fixed]
    tokens = sum(_tokens(view, rows, recipe.limits) for view in scored)
    size = (tokens * _width(recipe) if scored else 0) + SCALAR * len(against) * len(rows)
    at_most = "at most " if any(view.response.stored for view in scored) else ""
    return Kept(bool(scored), bool(against), tokens, at_most, size)


def caches(prepared: Prepared, folder: Path, processes: int = 1) -> list[str]:
    """By stage with a cache, what it keeps and the room that takes, as lines to say.

    folder: the run's. Raises `DudiError` where that is more than the limit, or than the disk has free.
    """
    recipe, rows, evals = prepared.recipe, prepared.train.rows, prepared.eval.rows
    stages = [stage for stage in plan(recipe) if isinstance(stage, Train) and stage.training.cache != "off"]
    lines = []
    for stage in stages:
        table, training = "cold_start.training" if stage.name == COLD_START else "training", stage.training
        found = kept(stage, prepared)
        if not found.bytes:
            continue
        needed, tokens, at_most = found.bytes, found.tokens, found.at_most
        _check(needed, f'{table}.cache = "{training.cache}" of stage {stage.name!r}', table, stage, folder)
        what = [f"the teacher's hidden states at {at_most}{tokens:,} tokens"] if found.scored else []
        what += ["the reference's log-probabilities"] if found.compared else []
        where = "on disk" if training.cache == "disk" else "in memory"
        where += f" of each of {processes} processes" if training.cache == "memory" and processes > 1 else ""
        again = training.eval_every and evals
        once = steps_of(training, len(rows)) <= steps_an_epoch(training, len(rows)) and not again
        lines.append(
            f"cache: {at_most}{amount(needed)} {where} ({' and '.join(what)})"
            + (f": in stage {stage.name!r} no row is read twice, so that it saves nothing" if once else "")
        )
    if stages and not lines:
        lines.append(f"cache: method {recipe.to_method().name} reads nothing frozen twice: nothing is kept")
    return list(dict.fromkeys(lines))


def amount(size: int) -> str:
    """Bytes as people say them."""
    name, unit = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{size / unit:.1f} {name}"


def _check(needed: int, what: str, table: str, stage: Train, folder: Path) -> None:
    limit = stage.training.cache_limit
    if needed > limit * 1e9:
        raise DudiError(
            f"{what} needs {amount(needed)}, more than {table}.cache_limit = {limit:g} GB: raise the limit, or set"
            f' {table}.cache = "off"'
        )
    if stage.training.cache != "disk":
        return
    there = nearest(folder)
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DudiError(
            f"{what} needs {amount(needed)}, and {str(there)!r} has {amount(free)} free: free disk space, or set"
            f' {table}.cache = "off"'
        )


def _tokens(view: View, rows: Sequence[Row], limits: Limits) -> int:
    """Response tokens of a view: of what a generation stage will write, at most."""
    return sum(limits.of("rollout", row.example.l) if view.response.stored else len(row.y) for row in rows)


def _width(recipe: Recipe) -> int:
    """Bytes of the teacher's hidden state at one token."""
    models = recipe.models
    assert models.teacher is not None
    config = load_config(models.teacher, "models.teacher", models, models.teacher_revision)
    with reading_model(models.teacher, "models.teacher"):
        return int(config.get_text_config().hidden_size) * arithmetic(models.precision)[1].itemsize
