"""What takes its time in a stage, by two clocks: seconds that pass, and seconds of the CPU (over all threads)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dudi.rollouts import Engine, Request, Rollout
from dudi.training.monitors import Course, Monitor
from dudi.training.phases import Phases

Spent = NDArray[np.float64]
"""Two numbers: seconds by the clock, seconds of the CPU."""
NOTHING: Spent = np.zeros(2)
OTHER = "other"
"""What is in no phase."""


def now() -> Spent:
    """Both clocks."""
    return np.array([time.perf_counter(), time.process_time()])


def total(spent: Mapping[str, Spent]) -> Spent:
    """All phases together."""
    return sum(spent.values(), NOTHING)


class Clocks(Phases):
    """Phases, and in `spent` what each has taken by both clocks so far."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(say)
        self.spent: dict[str, Spent] = {}
        self._at = now()

    def _switch(self, name: str | None) -> None:
        left = self.now
        super()._switch(name)
        at = now()
        if left:
            self.spent[left] = self.spent.get(left, NOTHING) + at - self._at
        self._at = at


class Laps(Monitor):
    """What each step of the training under way has taken, by phase; saved: what its checkpoints have."""

    def __init__(self, clocks: Clocks) -> None:
        self.clocks = clocks
        self.clear()

    def clear(self) -> None:
        """Before a stage."""
        self.steps: list[dict[str, Spent]] = []
        self.saved = NOTHING

    def begin(self, course: Course) -> None:
        """The first lap begins."""
        self._mark()

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        """A lap ends."""
        found = {name: self._since(name) for name in seconds}
        found[OTHER] = now() - self._from - total(found)
        self.steps.append(found)
        self._mark()

    def outside(self, phase: str, seconds: float) -> None:
        """What came between two steps, or before the first, is in no lap."""
        if phase == "saving":
            self.saved = self.saved + self._since(phase)
        self._mark()

    def _mark(self) -> None:
        self._before, self._from = dict(self.clocks.spent), now()

    def _since(self, name: str) -> Spent:
        return self.clocks.spent.get(name, NOTHING) - self._before.get(name, NOTHING)


@dataclass(frozen=True)
class Call:
    """One call of an engine: requests, tokens written and at most allowed, and what it took."""

    requests: int
    tokens: int
    limit: int
    spent: Spent


@dataclass(frozen=True)
class Timed:
    """An engine, and what each of its calls has taken."""

    engine: Engine
    calls: list[Call] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        """As the engine answers."""
        began = now()
        found = self.engine(model, requests)
        written, limit = sum(len(one.ids) for one in found), sum(one.limit for one in requests)
        self.calls.append(Call(len(requests), written, limit, now() - began))
        return found
