"""What a recipe says that its user may not have meant."""

from __future__ import annotations

from dudi.recipe.schema import Recipe
from dudi.recipe.stages import Generate, Train, plan
from dudi.signals import views


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
