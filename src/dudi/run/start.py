"""What a stage trains, and R, where its method compares the student with one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.models.adapter import load_adapter, with_adapter, without_adapter
from dudi.models.load import arithmetic
from dudi.models.reference import like_student
from dudi.models.swapped import As, adapter_of, with_weights, without
from dudi.recipe.fields import Quantization
from dudi.recipe.schema import Adapter, Recipe
from dudi.recipe.stages import Stage, Train
from dudi.run.launch import Launch, launched
from dudi.training import checkpoints

ADAPTER = "adapter"
"""Of a stage's folder: what was trained, alone."""


class Load(Protocol):
    """What loads a model by the name that stages have for it."""

    def __call__(
        self, name: str, dtype: torch.dtype, frozen: bool = True, over: int = 1, bits: Quantization | None = None
    ) -> PreTrainedModel:
        """Frozen, sharded `over` so many processes, or kept in so many bits."""


@dataclass(frozen=True)
class Start:
    """A stage's student, and R: a model of its own, or the adapted student itself while it is asked `reference_as`."""

    student: PreTrainedModel
    reference: PreTrainedModel | None
    reference_as: As = nullcontext


def start(
    stage: Train, recipe: Recipe, stages: Sequence[Stage], load: Load, of: Callable[[str], Path], processes: int
) -> Start:
    """Load both. of: the folder of a stage, by its name. With an adapter both are one model, on the same weights."""
    weights, _, autocast = arithmetic(recipe.models.precision)
    over = processes if launched() is Launch.FSDP2 else 1
    if recipe.adapter is not None:
        seed = draw(recipe.seed, stage.name, "adapter") >> 1
        if recipe.adapter.quantization is not None:
            return _quantised(stage, recipe.adapter, seed, stages, partial(load, dtype=weights), of, autocast)
        return _adapted(stage, recipe.adapter, seed, partial(load, stage.start, weights, over=over), autocast, over)
    student = load(stage.start, weights, frozen=False, over=over)
    if stage.reference is None:
        return Start(student, None)
    return Start(student, like_student(partial(load, stage.reference, weights), autocast))


def _adapted(
    stage: Train, adapter: Adapter, seed: int, load: Callable[[], PreTrainedModel], autocast: bool, over: int
) -> Start:
    """A new adapter on what the stage starts from. R is the student without it."""
    assert stage.reference in (None, stage.start)
    student = with_adapter(load() if over > 1 else like_student(load, autocast), adapter, seed)
    if stage.reference is None:
        return Start(student, None)
    if over > 1:  # modules that gather their weights cannot be copied
        return Start(student, student, partial(without, student))
    return Start(student, without_adapter(student))


def _quantised(
    stage: Train,
    adapter: Adapter,
    seed: int,
    stages: Sequence[Stage],
    load: Callable[..., PreTrainedModel],
    of: Callable[[str], Path],
    autocast: bool,
) -> Start:
    """The adapter of the stage before, which goes on, beside the weights that the first one began with: once they are
    merged and quantised again, little would be left of it. R is the student with that adapter, or without any."""
    assert stage.reference in (None, stage.start)
    first = _first(stage.start, stages)
    base = like_student(partial(load, first, bits=adapter.quantization), autocast)
    student = with_adapter(base, adapter, seed)
    if first == stage.start:
        return Start(student, student if stage.reference else None, partial(without, student))
    before = of(stage.start) / ADAPTER
    fault = checkpoints.damage(before)
    if fault is not None:
        raise DudiError(f"{before}: {fault}, and stage {stage.name!r} goes on with it: restore it from a copy")
    with checkpoints.reading(before, "the adapter"):
        load_adapter(student, before)
    return Start(student, student if stage.reference else None, partial(with_weights, student, adapter_of(student)))


def _first(name: str, stages: Sequence[Stage]) -> str:
    """What the first training on the way to a stage's result started from."""
    for stage in stages:
        if isinstance(stage, Train) and stage.name == name:
            return _first(stage.start, stages)
    return name


def trained_of(student: PreTrainedModel) -> str:
    """How much of an adapted student is trained, in words."""
    learns = student.num_parameters(only_trainable=True)
    frozen = student.num_parameters() - learns
    return f"  adapter: {learns:,} weights are trained, the student's own {frozen:,} stay as they are"
