"""What a training shows while it runs: a bar with phase, loss and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from dudi.training.monitors import Course, Monitor

PHASES = ("rollout", "teacher", "reference", "student", "backward", "optimizer", "caching", "evaluation", "saving")
SILENCE = 60.0
"""Seconds without a line after which a step is one, though no interval ends."""


class _Phase(ProgressColumn):
    """The phase that runs now."""

    def __init__(self, phase: Callable[[], str]) -> None:
        self.phase = phase
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(f"{self.phase():10s}", style="cyan")


class Watcher(Monitor):
    """Shows one training after the other: step, phase, loss, time left; at the end, where the time went."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    def begin(self, course: Course) -> None:
        """Open the bar."""
        self.course, self.seconds, self.pauses = course, defaultdict[str, float](float), Counter[str]()
        self.started = self.said = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                _Phase(course.phase),
                TextColumn("{task.fields[loss]}"),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(course.title, total=course.steps, completed=course.step, loss="", left="")
            self.bar.start()

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        """Move on."""
        for phase, value in seconds.items():
            self.seconds[phase] += value
        if self.bar:
            self.bar.update(self.task, completed=step, left=self.left(step))
        elif time.monotonic() - self.said > SILENCE:
            self._line(f"step {step}/{self.course.steps}  {self.left(step)}")

    def outside(self, phase: str, seconds: float) -> None:
        """Count what was no step."""
        self.seconds[phase] += seconds
        self.pauses[phase] += 1

    def log(self, line: Mapping[str, Any]) -> None:
        """Say the losses."""
        held_out = line.get("eval")
        signals = (held_out or line).get("signal", {})
        parts = [f"{name} {entry['loss']:.4f}" for name, entry in signals.items() if "loss" in entry]
        text = "  ".join([f"loss {(held_out or line)['loss']:.4f}", *parts])
        if held_out:
            self._line(f"step {line['step']}/{self.course.steps}  held out: {text}")
        elif self.bar:
            self.bar.update(self.task, loss=text)
        else:
            self._line(f"step {line['step']}/{self.course.steps}  {text}  {self.left(line['step'])}")

    def left(self, step: int) -> str:
        """The time from the end of a step to that of the training; what was never timed so far is named instead."""
        course, paused = self.course, sum(self.seconds[phase] for phase in self.pauses)
        a_step = (time.monotonic() - self.started - paused) / max(step - course.step, 1)
        left, unknown = a_step * (course.steps - step), []
        for phase, times in course.to_come(step).items():
            if self.pauses[phase]:
                left += times * self.seconds[phase] / self.pauses[phase]
            elif times:
                unknown.append(phase)
        parts = [_duration(left)] if step < course.steps or not unknown else []
        return " + ".join([*parts, *unknown]) + " left"

    def end(self, step: int) -> None:
        """Close the bar; say where the time went."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        shares = ", ".join(f"{name} {self.seconds[name]:.0f} s" for name in PHASES if self.seconds[name])
        self._line(f"{self.course.title}: {step} steps ({shares})")

    def _line(self, text: str) -> None:
        self.said = time.monotonic()
        self.console.print(f"  {text}", soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
