"""Monitors: whoever wants to know how a training goes. JSON lines are one, the console another (`dudi.run.progress`).

A monitor of your own overrides what it wants to hear of, and is handed to `dudi.train` or named in a list there:

    class Tracker(Monitor):
        def log(self, line):
            tracker.log(line["signal"], step=line["step"])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dudi.files import append_line

METRICS, TIMES, ROLLOUTS = "metrics.jsonl", "times.jsonl", "rollouts.jsonl"
LINES = (METRICS, TIMES, ROLLOUTS)
"""What a training writes line by line: flushed with each checkpoint, and cut back to its step on resume."""


@dataclass(frozen=True)
class Course:
    """A training that begins, or is resumed. title: of its stage; step: finished so far, of `steps`; phase: tells what
    runs at the moment; to_come: how often the phases outside of steps still run, from the end of a step on; settings:
    what it trains with, as plain values."""

    title: str
    folder: Path
    step: int
    steps: int
    phase: Callable[[], str]
    to_come: Callable[[int], Mapping[str, int]]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Monitor:
    """Listens to the trainings of a run, on the first process only; does nothing by itself."""

    def begin(self, course: Course) -> None:
        """A training begins."""

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        """An optimizer step is done. seconds: by phase."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Means over the steps since the last line (`signal`, `rollout`, ...), or losses on held-out rows (`eval`)."""

    def rollout(self, line: Mapping[str, Any]) -> None:
        """One response as text, and what it answers (`dudi.training.samples`)."""

    def outside(self, phase: str, seconds: float) -> None:
        """An evaluation or a saving between two steps is done."""

    def end(self, step: int) -> None:
        """The training is done."""

    def close(self) -> None:
        """Nothing more will come: after the end, or where a training broke off."""


class Lines(Monitor):
    """The files of a training. Times have one of their own, so that the others repeat bit for bit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        """One line of times."""
        append_line(self.folder / TIMES, {"step": step, **seconds})

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of metrics."""
        append_line(self.folder / METRICS, line)

    def rollout(self, line: Mapping[str, Any]) -> None:
        """One response."""
        append_line(self.folder / ROLLOUTS, line)
