"""What runs when, what is not run again, what is said; with processes that only write what real ones would."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import tables as kit_tables
from rich.console import Console

from dudi.errors import DudiError
from dudi.lab.tables import runner as module
from dudi.lab.tables.cells import Job
from dudi.lab.tables.grid import read_grid
from dudi.lab.tables.lines import Line, Name, read
from dudi.lab.tables.runner import LOG, Runner, Task, prepare, tasks_of
from dudi.lab.tables.work import COST, RUN
from dudi.recipe.read import load_recipe

CELLS = read_grid().cells
FIRST = "qwen2.5-0.5b/"


class Fake:
    """A process that needs a few looks, and then has written what a finished cell has."""

    def __init__(self, job: Job, looks: int, status: int) -> None:
        self.job, self.looks, self.status, self.ended = job, looks, status, False

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks > 0:
            return None
        if not self.status:
            (self.job.folder / RUN).mkdir(exist_ok=True)
            (self.job.folder / RUN / "summary.json").write_text("{}")
            (self.job.folder / COST).write_text("{}")
        return self.status

    def terminate(self) -> None:
        self.ended = True

    def wait(self) -> int:
        return self.status


class World:
    """A runner of fakes. started: which, in order; most: how many ran at a time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.started, self.most, self.fakes = folder, list[str](), 0, list[Fake]()
        self.failing: str | None = None
        self.looks: Callable[[Job], int] = lambda job: 2
        monkeypatch.setattr(module, "line_of", lambda job: kit_tables.line(job.cell.name, job.seed, 1.0))
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)

    def job(self, name: str, seed: int | None = 0, start: str | None = None) -> Job:
        recipe = None if seed is None else load_recipe("lab/dudi")
        folder = self.folder / "runs" / name / str(seed)
        return Job(CELLS[FIRST + name], seed, folder, folder / "m", {"of": name}, recipe, start and FIRST + start)

    def start(self, task: Task, benchmark: Path) -> Any:
        name = f"{task.job.cell.name.removeprefix(FIRST)} {task.job.seed}"
        self.started.append(name)
        if name == self.failing:
            (task.job.folder / LOG).write_text("one\ndudi: it broke\n")
        self.fakes.append(Fake(task.job, self.looks(task.job), 2 if name == self.failing else 0))
        self.most = max(self.most, sum(fake.looks > 0 for fake in self.fakes))
        return self.fakes[-1]

    def run(self, jobs: list[Job], at_a_time: int = 2) -> str:
        lines = read(self.folder)
        console = Console(file=io.StringIO(), width=300)
        made = Runner(tasks_of(jobs, lines), lines, self.folder, self.folder, console, at_a_time, self.start)
        made.run()
        return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def grid(world: World) -> list[Job]:
    """Two seeds; what starts from a cold start stands before it."""
    jobs = [world.job("teacher", None)]
    for seed in (0, 1):
        jobs += [world.job("gkd", seed, "sft"), world.job("sft", seed), world.job("dudi", seed, "sft")]
    return jobs


@pytest.mark.parametrize("at_a_time", [1, 2, 7])
def test_each_cell_runs_once_after_its_cold_start(world: World, at_a_time: int) -> None:
    said = world.run(grid(world), at_a_time)
    assert sorted(world.started) == sorted(f"{j.cell.name.removeprefix(FIRST)} {j.seed}" for j in grid(world))
    for seed in (0, 1):
        for name in ("gkd", "dudi"):
            assert world.started.index(f"sft {seed}") < world.started.index(f"{name} {seed}")
    assert world.most <= at_a_time and set(read(world.folder)) == {job.name for job in grid(world)}
    assert "7 of 7 cells done\n" in said and "6 of 7 cells done" in said and "min left" in said
    world.run(grid(world), at_a_time)
    assert len(world.started) == 7, "what has a line is not run again"


def test_a_failure_is_one_line_and_ends_the_others(world: World) -> None:
    world.failing = "sft 0"
    world.looks = lambda job: 2 if job.name == (FIRST + "sft", 0) else 10_000
    with pytest.raises(DudiError) as error:
        world.run(grid(world))
    log = world.folder / "runs" / "sft" / "0" / LOG
    assert str(error.value) == f"lab tables: {FIRST}sft, seed 0 failed ({log}): dudi: it broke"
    assert any(fake.ended for fake in world.fakes) and "gkd 0" not in world.started
    world.failing, world.looks = None, lambda job: 2
    world.run(grid(world))
    assert set(read(world.folder)) == {job.name for job in grid(world)}


def test_a_cell_that_was_finished_when_the_kill_came_gets_its_line_without_a_process(world: World) -> None:
    job = world.job("sft")
    prepare(Task(job))
    Fake(job, 0, 0).poll()
    world.run([job])
    assert world.started == [] and list(read(world.folder)) == [job.name]


def test_a_folder_of_other_settings_is_refused(world: World) -> None:
    prepare(Task(world.job("sft")))
    prepare(Task(world.job("sft")))
    changed = Job(CELLS[FIRST + "sft"], 0, world.job("sft").folder, world.folder, {"of": "else"})
    with pytest.raises(DudiError, match="holds this cell with other settings: remove it, or use other --runs"):
        prepare(Task(changed))


def test_a_cold_start_whose_model_is_gone_is_trained_again_and_compared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a fresh clone, which has the lines and no models, when a cell is added."""
    sft, dudi = world.job("sft"), world.job("dudi", 0, "sft")
    there: dict[Name, Line] = {sft.name: kit_tables.line(sft.cell.name, 0, 1.0, weights="w")}
    tasks = tasks_of([sft, dudi], there)
    assert [(task.job.name, task.again) for task in tasks] == [(sft.name, True), (dudi.name, False)]
    cases = {"other weights and scores": ("v", 1.1), "the same scores": ("v", 1.0), "the same weights": ("w", 1.0)}
    for case, (weights, score) in cases.items():
        monkeypatch.setattr(
            module, "line_of", lambda job, w=weights, s=score: kit_tables.line(job.cell.name, job.seed, s, weights=w)
        )
        world.started.clear()
        (world.folder / "cells.jsonl").unlink(missing_ok=True)
        made = Runner(tasks, dict(there), world.folder, world.folder, Console(file=io.StringIO()), 1, world.start)
        if case.startswith("other"):
            with pytest.raises(DudiError, match="made again it has other weights and other scores than its line says"):
                made.run()
            assert "dudi 0" not in world.started
            assert tasks_of([sft, dudi], there) == tasks, "refused again, not taken for the line's at the next start"
        else:
            made.run()
            assert list(read(world.folder)) == [dudi.name], "no second line of the cold start"
    assert tasks_of([sft, dudi], there) == [Task(dudi)], "now it is there"
