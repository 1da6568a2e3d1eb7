"""What a training shows while it runs: a bar with phase, loss and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dudi.training.monitors import Course, Monitor

PHASES = ("rollout", "teacher", "student", "backward")


class _Phase(ProgressColumn):
    """The phase that runs now."""

    def __init__(self, phase: Callable[[], str]) -> None:
        self.phase = phase
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(f"{self.phase():8s}", style="cyan")


class Watcher(Monitor):
    """Shows one training after the other: step, phase, loss, time left; at the end, where the time went."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    def begin(self, course: Course) -> None:
        """Open the bar."""
        self.course, self.seconds = course, Counter[str]()
        self.started = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                _Phase(course.phase),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(course.title, total=course.steps, completed=course.step, loss="")
            self.bar.start()

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        """Move on."""
        self.seconds.update({phase: value for phase, value in seconds.items() if phase in PHASES})
        if self.bar:
            self.bar.update(self.task, completed=step)

    def log(self, line: Mapping[str, Any]) -> None:
        """Say the losses."""
        if "eval" in line:
            return
        parts = [f"{name} {entry['loss']:.4f}" for name, entry in line.get("signal", {}).items() if "loss" in entry]
        text = f"loss {line['loss']:.4f}  {'  '.join(parts)}"
        if self.bar:
            self.bar.update(self.task, loss=text)
            return
        step, steps = line["step"], self.course.steps
        left = (time.monotonic() - self.started) / (step - self.course.step) * (steps - step)
        self.console.print(f"  step {step}/{steps}  {text}  {left / 60:.1f} min left")

    def end(self, step: int) -> None:
        """Close the bar; say where the time went."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        shares = ", ".join(f"{name} {self.seconds[name]:.0f} s" for name in PHASES if self.seconds[name])
        self.console.print(f"  {self.course.title}: {step} steps ({shares})")
