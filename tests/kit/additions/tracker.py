"""A monitor that keeps what it hears."""

from collections.abc import Mapping
from typing import Any

from dudi.training.monitors import Course, Monitor


class Tracker(Monitor):
    """Titles of trainings, lines, and numbers of steps."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.lines: list[dict[str, Any]] = []
        self.steps: list[int] = []

    def begin(self, course: Course) -> None:
        """A training begins."""
        self.titles.append(course.title)

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        """A step is done."""
        self.steps.append(step)

    def log(self, line: Mapping[str, Any]) -> None:
        """Means, or held-out losses."""
        self.lines.append(dict(line))
