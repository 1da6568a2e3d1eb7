"""`dudi lab tables`: what is missing is trained, then everything is printed from the lines."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dudi.errors import DudiError, unknown
from dudi.lab.build import THIRD, WEIGHTS, export
from dudi.lab.tables.cells import Job, Lab, make_job, shared_start
from dudi.lab.tables.findings import Findings, read_findings
from dudi.lab.tables.grid import Cell, Grid, Pair, pairs, read_grid
from dudi.lab.tables.lines import FILE as LINES
from dudi.lab.tables.lines import Line, Name, check_settings, read
from dudi.lab.tables.runner import Runner, Start, start_process, tasks_of
from dudi.lab.tables.verdicts import verdicts
from dudi.lab.tables.write import HTML, write_page
from dudi.lock import locked
from dudi.recipe.read import load_recipe
from dudi.report.stats.verdicts import OPEN

DEVELOPMENT = 100
"""From this seed on, pipelines are for trying things: no page shows them beside the others, no verdict reads them."""


@dataclass(frozen=True)
class Asked:
    """The options of the command. first: the first seed. lab: an exported folder
    of one's own. extend: only seeds 4 to 7, of what the first look left open."""

    output: Path
    only: tuple[str, ...] = ()
    seeds: int = 4
    first: int = 0
    jobs: int = 2
    runs: Path | None = None
    lab: Path | None = None
    weights: Path | None = None
    changes: tuple[str, ...] = ()
    extend: bool = False


def tables(asked: Asked, console: Console, start: Start = start_process) -> Path:
    """Train what has no line yet, and write the page; returns it. Raises `DudiError`."""
    grid, findings = read_grid(), read_findings()
    here = pairs(models_of(asked.lab, asked.weights or WEIGHTS), grid.pair)
    lines = read(asked.output)
    seeds = range(asked.first, asked.first + asked.seeds)
    chosen = choose(asked.only, grid, findings)
    if asked.extend:
        seeds = range(*findings.rule.seeds)
        judged = verdicts(lines, grid, findings, here)
        open_ = [name for name, one in judged.items() if one.outcome == OPEN]
        chosen = [cell for cell in chosen if cell in choose(open_, grid, findings)] if open_ else []
    cells = [cell for cell in with_starts(chosen, grid) if cell.pair in here]
    lacking = sorted({cell.pair for cell in chosen} - set(here))
    if lacking:
        console.print(f"left out, since the lab has no models for them: {', '.join(lacking)}", soft_wrap=True)
    wanted = dict.fromkeys((cell.name, None if cell.recipe is None else seed) for seed in seeds for cell in cells)
    missing = [name for name in wanted if name not in lines]
    if missing:
        with locked(asked.output):
            train(asked, grid, missing, here, lines, console, start)
    shown = {seed for _, seed in lines if seed is not None and (seed >= DEVELOPMENT) == (asked.first >= DEVELOPMENT)}
    return write_page(asked.output, grid, findings, lines, here, sorted(shown) or seeds)


def report_lines(folder: Path, output: Path | None = None) -> Path:
    """The page of the lines in a folder, into it or into `output`; nothing is trained. Returns its HTML."""
    lines = read(folder)
    seeds = sorted({seed for _, seed in lines if seed is not None and seed < DEVELOPMENT})
    if not seeds:
        raise DudiError(f"{folder}: no {LINES} of `dudi lab tables` with a trained cell; name its --output")
    grid = read_grid()
    here = {grid.cells[cell].pair for cell, _ in lines if cell in grid.cells}
    return write_page(output or folder, grid, read_findings(), lines, here, seeds).with_name(HTML)


def train(
    asked: Asked,
    grid: Grid,
    missing: Sequence[Name],
    here: Mapping[str, Pair],
    lines: dict[Name, Line],
    console: Console,
    start: Start,
) -> None:
    """The missing lines. The folder of the lines is locked."""
    runs = (asked.runs or asked.output / "runs").absolute()
    folder = (asked.lab or runs / "lab").absolute()
    if asked.lab is None:
        export(folder, asked.weights or WEIGHTS, share=THIRD)
    lab = Lab(folder, grid, here, asked.changes)
    jobs: dict[Name, Job] = {}
    for name, seed in missing:
        job = make_job(lab, grid.cells[name], seed or 0, runs)
        jobs[job.name] = job
        if job.start is not None and (job.start, seed) not in jobs:
            first = make_job(lab, grid.cells[job.start], seed or 0, runs)
            jobs[first.name] = first
    check_settings(list(jobs.values()), lines, asked.output)
    tasks = tasks_of(list(jobs.values()), lines)
    console.print(f"{len(missing)} cells to do, {asked.jobs} at a time; lines: {asked.output}", soft_wrap=True)
    Runner(tasks, lines, asked.output, folder / "benchmark", console, asked.jobs, start).run()


def models_of(lab: Path | None, weights: Path) -> Mapping[str, Mapping[str, Any]]:
    """The plan of the lab's models, by name. Raises `DudiError` where there is none."""
    file = weights / "manifest.json" if lab is None else lab / "lab.json"
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        models: Mapping[str, Mapping[str, Any]] = table["models"] if lab is None else table["manifest"]["models"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DudiError(f"{file}: cannot be read ({error}); expected a lab of `dudi lab build` or `export`") from None
    return models


def choose(only: Iterable[str], grid: Grid, findings: Findings) -> list[Cell]:
    """The cells of tables, findings and single cells by name; all where none is named. Raises `DudiError`."""
    cells, names = grid.cells, list(only)
    if not names:
        return list(cells.values())
    found: dict[str, Cell] = {}
    for name in names:
        if name in grid.tables:
            wanted: Collection[str] = grid.tables[name].rows
        elif name in findings.findings:
            readings = [cell for cell, one in grid.readings.items() if name in one.findings]
            wanted = [*findings.findings[name].cells, *readings]
        elif grid.whole(name) in cells:
            wanted = [grid.whole(name)]
        else:
            raise DudiError(unknown(name, [*grid.tables, *findings.findings, *cells], "table, finding or cell"))
        found |= {one: cells[one] for one in wanted}
    return list(found.values())


def with_starts(chosen: Sequence[Cell], grid: Grid) -> list[Cell]:
    """Cells after the cells that they start from, which count as wanted too."""
    found: dict[str, Cell] = {}
    for cell in chosen:
        start = None if cell.recipe is None else shared_start(load_recipe(cell.recipe, cell.changes), cell)
        if start is not None:
            found.setdefault(start, grid.cells[start])
        found.setdefault(cell.name, cell)
    return list(found.values())
