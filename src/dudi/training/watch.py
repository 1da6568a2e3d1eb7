"""What the numbers of a training say is wrong with it: a signal that has no tokens, a first update that was too large.

Each is said once, by name. A stage that ends without any token for a signal is an error: it trained on less than it was
told to, and no loss shows that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dudi import processes
from dudi.errors import DudiError
from dudi.methods import Method
from dudi.recipe.schema import Training
from dudi.signals import Signal

FIRST = 5
"""Steps within which a first update shows what it did."""
RATE, RISE, FLOOR = 1e-4, 3.0, 0.1
"""From this rate on, a signal that rises so many times above what it was before any update is said. A loss may begin at
nothing (a teacher that is the student's own average): it counts as `FLOOR` nats then."""


class Watch:
    """Looks at the sums of a training after each step and each interval."""

    def __init__(self, method: Method, training: Training, seed: int) -> None:
        self.method, self.training, self.seed = method, training, seed
        self.silent: set[str] = set()
        self._steady = training.lr < RATE or training.warmup_steps > 0
        self._first: dict[str, float] = {}
        self._before: dict[str, tuple[float, float]] = {}

    def step(self, step: int, sums: Mapping[str, float]) -> list[str]:
        """After each step, before its interval ends; on all processes. sums: those of the interval, of this process."""
        if self._steady or step > FIRST or (step > 1 and not self._first):
            return []
        now = {s.name: (_of(sums, s, "loss"), _of(sums, s, "count")) for s in self.method.signals}
        nothing = (0.0, 0.0)
        mine = [n - b for name, pair in now.items() for n, b in zip(pair, self._before.get(name, nothing), strict=True)]
        self._before = now
        found = processes.summed(mine)
        means = {name: a / b for name, a, b in zip(now, found[::2], found[1::2], strict=True) if b}
        if step == 1:
            self._first = means
        for name, first in self._first.items():
            if means.get(name, 0.0) > RISE * max(first, FLOOR):
                self._steady = True
                return [
                    f"  step {step}: warning: {name} rose from {first:.3g} to {means[name]:.3g}: the first update at"
                    f" training.lr = {self.training.lr:g} was too large; try training.warmup_steps = 20 or a lower rate"
                ]
        return []

    def interval(self, first: int, last: int, sums: Mapping[str, float]) -> list[str]:
        """At the end of an interval of steps `first` to `last`. sums: over all processes."""
        self._before = {}
        new = [
            s.name
            for s in self.method.signals
            if s.name not in self.silent and not _of(sums, s, "count") and self._read(s, first, last)
        ]
        self.silent.update(new)
        steps = f"steps {first} to {last}" if first < last else f"step {last}"
        return [f"  step {last}: warning: signal {name} had no token to train on in {steps}" for name in new]

    def _read(self, signal: Signal, first: int, last: int) -> bool:
        """Whether any of these steps reads a signal: a coin may have fallen otherwise in all of them."""
        steps = range(first - 1, last)
        return any(signal.name in [s.name for s in self.method.active(self.seed, step)] for step in steps)

    def check_end(self, stage: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Raises `DudiError` where a signal had no token in all of a training. lines: of its metrics."""
        train = [line for line in lines if "loss" in line]
        last = max((line["step"] for line in train), default=0)
        seen = {name for line in train for name, entry in line.get("signal", {}).items() if entry.get("count")}
        for s in self.method.signals:
            if s.name not in seen and self._read(s, 1, last):
                raise DudiError(
                    f"stage {stage}: signal {s.name} ({s.description}) had no token to train on in all {last} steps:"
                    f" {_likely(s, train)}"
                )


def _of(sums: Mapping[str, float], signal: Signal, quantity: str) -> float:
    """A signal's sum over languages."""
    start, end = f"signal/{signal.name}/", f"/{quantity}"
    return sum(value for key, value in sums.items() if key.startswith(start) and key.endswith(end))


def _likely(signal: Signal, lines: Sequence[Mapping[str, Any]]) -> str:
    """The key to change, from what the metrics say of the responses."""
    for view in signal.views:
        rollouts = [line["rollout"][view.name] for line in lines if view.name in line.get("rollout", {})]
        if view.response.sampled and not any(r.get("rows") for r in rollouts):
            return (
                f"no row has a {view.name}, since each of its prompts is too long: raise limits.teacher_prompt (z), or"
                " limits.verbalizer (p_z)"
            )
        if rollouts:
            longest = max(r["length"] for r in rollouts if r.get("rows"))
            return (
                f"its responses are {longest:.0f} tokens long on average, and none lies beyond method.skip_tokens:"
                " lower that, or raise limits.rollout"
            )
    return "its responses are empty: look at limits.rollout, limits.total and the data"
