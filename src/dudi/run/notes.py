"""What a recipe says that its user may not have meant: an error where nothing could come of it, else a line."""

from __future__ import annotations

from dudi.errors import DudiError
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import Generate, Train, plan
from dudi.run.prepare import Prepared
from dudi.signals import views


def check_evaluation(recipe: Recipe, prepared: Prepared) -> None:
    """Raises `DudiError` for evaluations that would have no rows."""
    trainings = [stage.training for stage in plan(recipe) if isinstance(stage, Train)]
    every = next((training.eval_every for training in trainings if training.eval_every), 0)
    if every and not prepared.eval.rows:
        raise DudiError(
            f"training.eval_every = {every}, but no row is held out: set data.eval_rows_per_language, or eval_every = 0"
        )


def notes(recipe: Recipe) -> list[str]:
    """What is said once, before the first stage."""
    return [line for line in (_new_tokens(recipe),) if line]


def _new_tokens(recipe: Recipe) -> str | None:
    """The result answers at a length that it never wrote in training."""
    stages = plan(recipe)
    sampled = any(isinstance(s, Generate) for s in stages) or any(
        view.response.sampled for s in stages if isinstance(s, Train) for view in views(s.method.signals)
    )
    rollout, new = recipe.limits.rollout, recipe.generation.max_new_tokens
    longest = rollout if isinstance(rollout, int) else max(rollout.values())
    if not sampled or new == longest:
        return None
    return (
        f"the result is told to answer in at most generation.max_new_tokens = {new} tokens; in training its answers"
        f" have at most limits.rollout = {longest}"
    )
