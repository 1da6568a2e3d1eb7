"""From some steps of a stage to all of it: the step phases by tokens, the rest by how often it happens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dudi.recipe.stages import Train
from dudi.run.plan.margin import ends, of_mean
from dudi.run.plan.memory import OPTIMIZER
from dudi.run.plan.stopwatch import NOTHING, OTHER, Call, Laps, Spent, total
from dudi.run.plan.windows import Side, tokens
from dudi.run.prepare import Prepared
from dudi.training.job import steps_of, times

GENERATION = "generation"
BY_STEP = (OPTIMIZER, OTHER)
"""Phases of a step that do not grow with its tokens."""
OUTSIDE = ("loading", "caching", "evaluation", "saving", GENERATION)
"""Phases outside of steps."""


@dataclass(frozen=True)
class Measured:
    """A stage as it was measured, scaled to the whole of it.

    spent: by phase; apart: half of the interval of all phases together, as far as the steps (or batches of answers)
    tell that were drawn. timed: how many they were, of `steps`. peak: bytes, in `phase`. rollouts: mean tokens of what
    was sampled, and of its limits.
    """

    stage: str
    steps: int
    timed: int
    spent: dict[str, Spent]
    apart: Spent
    peak: int = 0
    phase: str = ""
    rollouts: tuple[float, float] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, by the clock."""
        return {name: float(spent[0]) for name, spent in self.spent.items() if spent[0]}

    @property
    def total(self) -> Spent:
        """All phases."""
        return total(self.spent)

    @property
    def low(self) -> Spent:
        """What it takes at least, in all likelihood (`dudi.run.plan.margin`)."""
        return ends(self.total, self.apart)[0]

    @property
    def high(self) -> Spent:
        """And at most."""
        return ends(self.total, self.apart)[1]


@dataclass(frozen=True)
class Measurement:
    """What was measured on this machine. before: what came before the first stage, by phase; a run does it too."""

    before: dict[str, Spent]
    stages: tuple[Measured, ...]

    @property
    def total(self) -> Spent:
        """Of the whole run, by both clocks."""
        return total(self.before) + sum((one.total for one in self.stages), NOTHING)

    @property
    def apart(self) -> Spent:
        """Half of its interval, as far as drawn steps tell: stages are drawn apart from each other."""
        return np.asarray(np.sqrt(sum((one.apart**2 for one in self.stages), NOTHING)))

    @property
    def low(self) -> Spent:
        """What it takes at least, in all likelihood. All stages may be off to the same side."""
        return ends(self.total, self.apart)[0]

    @property
    def high(self) -> Spent:
        """And at most."""
        return ends(self.total, self.apart)[1]

    def table(self) -> dict[str, Any]:
        """All of it, for machines: seconds, bytes."""
        return {
            "before": {name: float(spent[0]) for name, spent in self.before.items()},
            "stages": [
                {
                    "stage": one.stage,
                    "steps": one.steps,
                    "timed": one.timed,
                    "seconds": one.seconds,
                    **_ends(one),
                    "peak": one.peak,
                    "peak_phase": one.phase,
                    "rollouts": one.rollouts,
                }
                for one in self.stages
            ],
            **_ends(self),
        }


def _ends(of: Measured | Measurement) -> dict[str, dict[str, float]]:
    """By each clock."""
    return {
        name: {"low": float(of.low[clock]), "expected": float(of.total[clock]), "high": float(of.high[clock])}
        for clock, name in enumerate(("wall", "cpu"))
    }


def training(
    stage: Train, found: Sequence[Side], prepared: Prepared, small: Prepared, laps: Laps, spent: Mapping[str, Spent]
) -> Measured:
    """A training. small: what was trained on; laps: its steps, in the order of the sides; spent: outside of steps by
    phase, and in all under ""."""
    by_phase, squares, timed, place = defaultdict[str, Spent](lambda: NOTHING), NOTHING, 0, 0
    for side in found:
        here = laps.steps[place : place + len(side.measured)]
        place += len(side.measured)
        drawn = [(s.tokens, lap) for s, lap in zip(side.measured, here, strict=True) if s.drawn]
        scaled = [(size, _as_all(lap, size, side)) for size, lap in drawn]
        all_tokens = sum(size for size, _ in scaled)
        for size, lap in scaled:
            for name, value in lap.items():
                by_phase[name] = by_phase[name] + value * size / all_tokens
        squares = squares + of_mean(np.stack([total(lap) for _, lap in scaled]), side.steps) ** 2
        timed += len(drawn)
    steps = steps_of(stage.training, len(prepared.train.rows))
    outside = _outside(stage, steps, prepared, small, laps, spent)
    for name, value in outside.items():
        by_phase[name] = by_phase[name] + value
    return Measured(stage.name, steps, timed, dict(by_phase), np.asarray(np.sqrt(squares)))


def _as_all(lap: Mapping[str, Spent], size: int, side: Side) -> dict[str, Spent]:
    """What all steps take if they go as this one, of so many tokens."""
    return {name: value * (side.steps if name in BY_STEP else side.tokens / size) for name, value in lap.items()}


def _outside(
    stage: Train, steps: int, prepared: Prepared, small: Prepared, laps: Laps, spent: Mapping[str, Spent]
) -> dict[str, Spent]:
    """What is outside of steps, as often as it happens; what happens once, as it was."""
    outside = {name: spent.get(name, NOTHING) for name in OUTSIDE}
    rest = spent[""] - total(outside) - sum((total(lap) for lap in laps.steps), NOTHING)
    evals, few = tokens(prepared.eval.rows), tokens(small.eval.rows)
    outside["caching"] = outside["caching"] * (tokens(prepared.train.rows) + evals) / (tokens(small.train.rows) + few)
    if few:
        outside["evaluation"] = outside["evaluation"] * times(stage.training.eval_every, steps) * evals / few
    outside["saving"] = outside["saving"] + laps.saved * (times(stage.training.save_every, steps) - 1)
    return {**outside, OTHER: rest}


def generation(stage: str, prepared: Prepared, calls: Sequence[Call], spent: Mapping[str, Spent]) -> Measured:
    """A generation stage, by its full batches; the first one warms up, where there are others."""
    rows = len(prepared.train.rows) + len(prepared.eval.rows)
    full = max(call.requests for call in calls)
    drawn = [call for call in calls[1:] if call.requests == full] or [calls[0]]
    each = sum((call.spent for call in drawn), NOTHING) / (full * len(drawn))
    loading = spent.get("loading", NOTHING)
    rest = spent[""] - loading - sum((call.spent for call in calls), NOTHING)
    found = {"loading": loading, GENERATION: each * rows, OTHER: rest}
    batches = -(-rows // prepared.recipe.training.batch)
    apart = of_mean(np.stack([call.spent * rows / call.requests for call in drawn]), batches)
    return Measured(stage, batches, len(drawn), found, apart)
