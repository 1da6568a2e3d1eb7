"""Which cell runs when: cold starts before what starts from them, so many at a time, each in a process of one thread.

A cell that is done becomes a line at once. A grid that is killed goes on: finished cells have their lines, a training
that was begun is resumed, and what waits for its line gets it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dudi.errors import DudiError
from dudi.files import write_text
from dudi.lab.tables.cells import Job
from dudi.lab.tables.grid import read_grid
from dudi.lab.tables.lines import Line, Name, add, line_of
from dudi.lab.tables.work import COST, RECIPE, RUN, trained
from dudi.recipe.read import dump_recipe

SHOWN = 8
"""Names of cells in the line of what there is to do."""
LOG = "log.txt"
KEY = "key.txt"
"""Of the cell that a folder is of, so that two grids do not share one."""


class Process(Protocol):
    """What runs one job."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        ...


@dataclass(frozen=True)
class Task:
    """A job in the grid. again: its line is there, but not its model, from which others start: it is made once more,
    and must come out as its line says."""

    job: Job
    again: bool = False


Start = Callable[[Task, Path], Process]
"""Task, benchmark -> a process that writes to FOLDER/log.txt."""


def start_process(task: Task, benchmark: Path) -> Process:
    """`dudi.lab.tables.work` in a process of one thread."""
    job = task.job
    given = [str(job.folder), str(job.model), str(benchmark), str(os.getpid())]
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dudi.lab.tables.work", *given],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        )


def tasks_of(jobs: Sequence[Job], lines: dict[Name, Line]) -> list[Task]:
    """What is to be done for the jobs: those without a line, and cold starts of these whose model is not there."""
    by_name = {job.name: job for job in jobs}
    missing = [job for job in jobs if job.name not in lines]
    starts = dict.fromkeys((job.start, job.seed) for job in missing if job.start is not None)
    lost = [by_name[name] for name in starts if name in lines and not (by_name[name].folder / COST).exists()]
    return [*(Task(job, again=True) for job in lost), *map(Task, missing)]


@dataclass
class Runner:
    """Runs tasks `jobs` at a time, and writes their lines to `folder`."""

    tasks: Sequence[Task]
    lines: dict[Name, Line]
    """Those that are there; those that are made are added."""
    folder: Path
    benchmark: Path
    console: Console
    jobs: int = 2
    start: Start = start_process
    running: dict[Name, tuple[Task, Process, float]] = field(default_factory=dict)
    ready: set[Name] = field(default_factory=set)
    """Of this grid's tasks, those that are done."""
    walls: list[float] = field(default_factory=list)
    """Seconds of cells that are done."""

    def run(self) -> None:
        """All tasks. `DudiError` with the end of its log for the first one that fails; the others are ended."""
        for task in self.tasks:
            prepare(task)
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            shown = bar.add_task("", total=len(self.tasks))
            try:
                while len(self.ready) < len(self.tasks):
                    self._begin()
                    self._collect()
                    bar.update(shown, completed=len(self.ready), description=self.state())
                    time.sleep(0 if any(process.poll() is not None for _, process, _ in self.running.values()) else 0.1)
            finally:
                for _, process, _ in self.running.values():
                    process.terminate()
                for _, process, _ in self.running.values():
                    process.wait()

    def plan(self) -> str:
        """What there is to do."""
        cells = list(dict.fromkeys(read_grid().short(task.job.cell.name) for task in self.tasks))
        said = ", ".join(cells[:SHOWN]) + (f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else "")
        seeds = sorted({task.job.seed for task in self.tasks if task.job.seed is not None})
        of = f", seeds {', '.join(map(str, seeds))}" if seeds else ""
        return f"{len(self.tasks)} cells to do, {self.jobs} at a time{self._left()}: {said}{of}"

    def state(self) -> str:
        """Cells done, running, and about how much time is left."""
        names = ", ".join(_said(task.job) for task, _, _ in self.running.values())
        running = f"; running: {names}" if names else ""
        return f"{len(self.ready)} of {len(self.tasks)} cells done{running}{self._left()}"

    def _left(self) -> str:
        """About how long what is not done will take, by the cells that are."""
        rest = len(self.tasks) - len(self.ready)
        if not rest or not self.walls:
            return ""
        minutes = sum(self.walls) / len(self.walls) * rest / self.jobs / 60
        return f"; about {minutes / 60:.1f} h left" if minutes > 90 else f"; about {max(minutes, 1):.0f} min left"

    def _begin(self) -> None:
        here = {task.job.name for task in self.tasks}
        for task in self.tasks:
            if len(self.running) == self.jobs:
                return
            job = task.job
            start = (job.start, job.seed)
            waits = job.start is not None and start in here and start not in self.ready
            if job.name in self.ready or job.name in self.running or waits:
                continue
            began = time.monotonic()
            if (job.folder / COST).exists() and (job.recipe is None or trained(job.folder)) and not task.again:
                self._done(task)  # a kill came before its line
            else:
                self.running[job.name] = task, self.start(task, self.benchmark), began

    def _collect(self) -> None:
        for name, (task, process, began) in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[name]
            log = task.job.folder / LOG
            if status:
                raise DudiError(f"lab tables: {_said(task.job)} failed ({log}): {_last(log, status)}")
            self.walls.append(time.monotonic() - began)
            self._done(task)

    def _done(self, task: Task) -> None:
        job = task.job
        line = line_of(job)
        if task.again:
            self._compare(line, job.folder)
        else:
            add(self.folder, line)
            self.lines[line.name] = line
        self.ready.add(job.name)
        if not self.console.is_terminal:
            self.console.print(f"  {_said(job)}: {self.state()}", soft_wrap=True)

    def _compare(self, made: Line, folder: Path) -> None:
        """Raises `DudiError` where a cold start made again is another than its line says. On another machine its
        weights may differ in their last bits: where every score is the same, it is taken for the same."""
        known = self.lines[made.name]
        if made.weights != known.weights and made.scores != known.scores:
            (folder / COST).unlink()  # not done: the next start of the grid has to come here again
            raise DudiError(
                f"{made.cell}, seed {made.seed}: made again it has other weights and other scores than its line says,"
                " as another machine or another version of torch may give: lines of one grid must come from one place;"
                " use another --output"
            )


def prepare(task: Task) -> None:
    """The folder of a job with its recipe. Raises `DudiError` where it is another's."""
    job = task.job
    kept = job.folder / KEY
    if kept.exists() and kept.read_text(encoding="utf-8") != job.key:
        raise DudiError(f"{job.folder}: holds this cell with other settings: remove it, or use other --runs")
    write_text(kept, job.key)
    if job.recipe is not None and not (job.folder / RUN).exists():
        write_text(job.folder / RECIPE, dump_recipe(job.recipe))


def _said(job: Job) -> str:
    return job.cell.name if job.seed is None else f"{job.cell.name}, seed {job.seed}"


def _last(log: Path, status: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else f"no output, status {status}"
