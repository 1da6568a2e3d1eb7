"""What a resumed run may have otherwise than the one it continues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import COLD_START, Train, folder_name, plan

FREE = (
    "output",
    "description",
    "paper",
    "models.attention",
    "models.teacher_sharding",
    "models.student_revision",
    "models.teacher_revision",
    "rollouts.server",
    "rollouts.server_model",
    "rollouts.server_requests",
    *(
        f"{table}.{key}"
        for table in ("training", "cold_start.training")
        for key in (
            "micro_batch",
            "micro_batch_tokens",
            "head_chunk",
            "gradient_checkpointing",
            "deterministic",
            "cache",
            "cache_limit",
            "save_every",
            "keep_checkpoints",
            "report_to",
        )
    ),
)
"""Keys that may change on resume: what a run means does not depend on them, though its roundings may. (A revision may
be given later: what it names is compared by contents.)"""


def changed_on_resume(folder: Path, recipe: Recipe) -> list[str]:
    """What a resumed run has otherwise than the one it continues, as lines to say.

    Raises `DudiError` for a key that may not change. A training may become longer, where no step depends on its end.
    """
    old = folder / "recipe.toml"
    if not old.is_file():
        raise DudiError(f"nothing to resume in {str(folder)!r}: it holds no recipe.toml; start without --resume")
    ours, theirs = (r.model_dump(mode="json") for r in (recipe, load_recipe(old)))
    ours["cold_start"] = ours.pop("cold_start")  # last: what it inherits is named where it stands
    found = list(_differences(ours, theirs))
    for key, mine, other in found:
        if not _free(key) and not _longer(key, mine, other, recipe, folder):
            raise DudiError(
                f"resume with another recipe: {key} is {mine!r:.60}, but the run in {str(folder)!r} was started with"
                f" {other!r:.60}; give the same recipe, or start in another folder"
            )
    return [f"resumed with {key} = {mine!r:.60} instead of {other!r:.60}" for key, mine, other in found]


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _longer(key: str, mine: Any, other: Any, recipe: Recipe, folder: Path) -> bool:
    """Whether a key only makes a training longer. Raises `DudiError` where that would not be the longer training."""
    table, _, name = key.rpartition(".")
    tables = {"training": recipe.training, "cold_start.training": recipe.cold_start.training}
    if table not in tables or name not in ("max_steps", "epochs"):
        return False
    if mine is None or other is None or mine < other:
        return False
    stages = plan(recipe)
    cold = table == "cold_start.training"
    meant = [stage for stage in stages if isinstance(stage, Train) and (stage.name == COLD_START) == cold]
    for stage in meant:
        if stage is not stages[-1] and (folder / folder_name(stages, stage.name) / "model").is_dir():
            raise DudiError(
                f"resume with {key} = {mine!r}: stage {stage.name} is finished after {other!r}, and the stages after it"
                f" stand on its result: give {key} = {other!r}, too"
            )
    if meant and tables[table].schedule != "constant":
        raise DudiError(
            f"resume with {key} = {mine!r}: the run was started with {other!r} (to go on: --set {key}={other}). It"
            f" cannot become longer: under {table}.schedule = {tables[table].schedule!r} the rate of each step depends"
            " on the last one; only a constant schedule can be extended. Else start another run from the result"
        )
    return True


def _differences(ours: Any, theirs: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key in which two recipes differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            yield from _differences(ours.get(name), theirs.get(name), f"{key}.{name}".lstrip("."))
    elif ours != theirs:
        yield key, ours, theirs
