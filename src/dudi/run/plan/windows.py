"""Real steps of a training: which of them are measured, and how many tokens all of them have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dudi.recipe.stages import Train
from dudi.run.prepare import Prepared
from dudi.signals import Signal
from dudi.training.job import steps_of
from dudi.training.order import Order
from dudi.training.window import Row

DRAWN = 3
"""Steps that are drawn, of those that read the same signals."""


@dataclass(frozen=True)
class RealStep:
    """An optimizer step of the run: its number, its rows, and what it reads of them. drawn: whether it is one of those
    that stand for all; the others warm up, or show the peak of memory."""

    number: int
    epoch: int
    rows: list[Row]
    signals: tuple[Signal, ...]
    drawn: bool

    @property
    def tokens(self) -> int:
        """Those of x and y."""
        return tokens(self.rows)


@dataclass(frozen=True)
class Side:
    """All steps of a training that read the same signals (a method with a coin has two sides): their number, their
    tokens in one pass over each, and those that are measured, one that warms up first."""

    steps: int
    tokens: int
    measured: tuple[RealStep, ...]


def tokens(rows: Sequence[Row]) -> int:
    """Those of x and y."""
    return sum(len(row.x) + len(row.y) for row in rows)


def sides(prepared: Prepared, stage: Train) -> tuple[Side, ...]:
    """The steps of a training, by what they read. Measured of each: one that warms up, that of the most tokens, and
    three that are drawn (of fewer, all)."""
    recipe, rows = prepared.recipe, prepared.train.rows
    order = Order(rows, stage.training, prepared.languages, recipe.seed)
    sizes: dict[tuple[str, ...], dict[int, int]] = {}
    for number in range(steps_of(stage.training, len(rows))):
        names = tuple(signal.name for signal in stage.method.active(recipe.seed, number))
        sizes.setdefault(names, {})[number] = tokens(order(number)[1])
    found = []
    for by_number in sizes.values():
        drawn = random.Random(recipe.seed).sample([*by_number], min(DRAWN + 1, len(by_number)))
        longest = max(by_number, key=by_number.__getitem__)
        numbers = (drawn[-1], longest, *drawn[:DRAWN])
        steps = (
            RealStep(number, *order(number), stage.method.active(recipe.seed, number), drawn=place > 1)
            for place, number in enumerate(numbers)
        )
        found.append(Side(len(by_number), sum(by_number.values()), tuple(steps)))
    return tuple(found)
