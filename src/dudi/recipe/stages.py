"""The stages of a run: cold start, generation, the method (SPIN: several iterations). Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from dudi.methods import Method
from dudi.recipe.schema import Recipe, Training
from dudi.signals import Response

COLD_START = "cold-start"
STUDENT, TEACHER = "student", "teacher"
"""Names of the recipe's own models, beside the names of stages, in `start`, `reference` and `writer`."""


@dataclass(frozen=True)
class Train:
    """A training: which method, from which weights (`start`), against which reference, on which stored responses."""

    name: str
    method: Method
    training: Training
    start: str
    reference: str | None
    responses: str | None = None


@dataclass(frozen=True)
class Generate:
    """A generation: `writer` answers every row once; a later stage trains on what it wrote."""

    name: str
    writer: str
    response: Response
    number: int = 0


Stage = Train | Generate


def plan(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe, in order. The last one's result is the run's result.

    The reference R of a sequence signal is what the method starts from (paper 4.1): the cold start's checkpoint, or the
    base student without one; SPIN moves both on with each iteration.
    """
    stages: list[Stage] = []
    start = recipe.cold_start.checkpoint or STUDENT
    method, cold = recipe.to_method(), recipe.cold_start_method()
    if not method.cold_start:
        start = STUDENT
    elif cold is not None and recipe.cold_start.checkpoint is None:
        start = _train(stages, COLD_START, cold, recipe.cold_start.training, STUDENT, 0)
    for iteration in range(method.iterations):
        name = method.name if method.iterations == 1 else f"{method.name}-{iteration + 1}"
        start = _train(stages, name, method, recipe.training, start, iteration)
    return tuple(stages)


def _train(stages: list[Stage], name: str, method: Method, training: Training, start: str, iteration: int) -> str:
    """Append a training, and before it the generation it needs; return its name."""
    responses = None
    if method.stored is not None:
        writer = TEACHER if method.stored is Response.TEACHER else start
        responses = f"{name}-responses"
        stages.append(Generate(responses, writer, method.stored, iteration))
    stages.append(Train(name, method, training, start, start if method.needs_reference else None, responses))
    return name


def teacher_asked(stages: tuple[Stage, ...]) -> bool:
    """Whether any stage asks the larger teacher: to score tokens, or to write the responses."""
    return any(
        stage.writer == TEACHER if isinstance(stage, Generate) else stage.method.judged_by_larger for stage in stages
    )


def folder_name(stages: tuple[Stage, ...], name: str) -> str:
    """The stage's folder within a run: its number and its name."""
    return f"{[s.name for s in stages].index(name) + 1}-{name}"
