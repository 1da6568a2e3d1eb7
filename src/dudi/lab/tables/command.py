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
from dudi.lab.tables.cells import Job, Lab, check_changes, make_job, shared_start
from dudi.lab.tables.checks import check_lines, check_settings
from dudi.lab.tables.findings import Findings, read_findings
from dudi.lab.tables.grid import Cell, Grid, Pair, pairs, read_grid
from dudi.lab.tables.lines import FILE as LINES
from dudi.lab.tables.lines import Line, Name, read
from dudi.lab.tables.runner import Runner, Start, start_process, tasks_of
from dudi.lab.tables.verdicts import NOT_RUN, verdicts
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
    check_changes(asked.changes)
    lines = lines_of(asked.output, grid)
    seeds = range(asked.first, asked.first + asked.seeds)
    chosen = choose(asked.only, grid, findings)
    if asked.extend:
        seeds = range(*findings.rule.seeds)
        still = still_open(asked, grid, findings, lines, here)
        chosen = [cell for cell in chosen if cell in still]
    cells = [cell for cell in with_starts(chosen, grid) if cell.pair in here]
    lacking = sorted({cell.pair for cell in chosen} - set(here))
    if lacking and not cells:
        raise DudiError(f"--only: the lab has no models for {', '.join(lacking)}; it has them for {', '.join(here)}")
    if lacking:
        console.print(f"left out, since the lab has no models for them: {', '.join(lacking)}", soft_wrap=True)
    wanted = dict.fromkeys((cell.name, None if cell.recipe is None else seed) for seed in seeds for cell in cells)
    of_another = asked.changes or asked.lab or asked.weights
    if of_another or any(name not in lines for name in wanted):
        with locked(asked.output):
            train(asked, grid, list(wanted), here, lines, console, start)
    shown = {seed for _, seed in lines if seed is not None and (seed >= DEVELOPMENT) == (asked.first >= DEVELOPMENT)}
    return write_page(asked.output, grid, findings, lines, here, sorted(shown) or seeds)


def report_lines(folder: Path, output: Path | None = None) -> Path:
    """The page of the lines in a folder, into it or into `output`; nothing is trained. Returns its HTML."""
    grid = read_grid()
    lines = lines_of(folder, grid)
    trained = sorted({seed for _, seed in lines if seed is not None})
    if not trained:
        raise DudiError(f"{folder}: no {LINES} of `dudi lab tables` with a trained cell; name its --output, a folder")
    seeds = [seed for seed in trained if seed < DEVELOPMENT] or trained
    here = {*pairs(models_of(None, WEIGHTS), grid.pair), *(grid.cells[cell].pair for cell, _ in lines)}
    return write_page(output or folder, grid, read_findings(), lines, here, seeds).with_name(HTML)


def lines_of(folder: Path, grid: Grid) -> dict[Name, Line]:
    """The lines of a folder, which hold and go together. Raises `DudiError`."""
    lines = read(folder)
    check_lines(lines, grid.cells, folder)
    return lines


def still_open(
    asked: Asked, grid: Grid, findings: Findings, lines: Mapping[Name, Line], here: Mapping[str, Pair]
) -> list[Cell]:
    """The cells of the findings that the first look left open. Raises `DudiError` where there was no look yet."""
    if (asked.first, asked.seeds) != (Asked.first, Asked.seeds):
        raise DudiError("--extend has seeds of its own, 4 to 7; leave out --seeds and --first")
    judged = verdicts(lines, grid, findings, here)
    found = [name for name, one in judged.items() if one.outcome == OPEN]
    if not found and any(one.outcome == NOT_RUN for one in judged.values()):
        raise DudiError(
            f"--extend: {asked.output} has no finding with its first four seeds; run without --extend first"
        )
    return choose(found, grid, findings) if found else []


def train(
    asked: Asked,
    grid: Grid,
    wanted: Sequence[Name],
    here: Mapping[str, Pair],
    lines: dict[Name, Line],
    console: Console,
    start: Start,
) -> None:
    """The lines that are missing, if those of the wanted cells that are there have the same settings. The folder of
    the lines is locked."""
    runs = (asked.runs or asked.output / "runs").absolute()
    folder = (asked.lab or runs / "lab").absolute()
    if asked.lab is None:
        export(folder, asked.weights or WEIGHTS, share=THIRD)
    lab = Lab(folder, grid, here, asked.changes)
    jobs: dict[Name, Job] = {}
    for name, seed in wanted:
        job = make_job(lab, grid.cells[name], seed or 0, runs)
        jobs[job.name] = job
        if job.start is not None and (job.start, seed) not in jobs:
            first = make_job(lab, grid.cells[job.start], seed or 0, runs)
            jobs[first.name] = first
    check_settings(list(jobs.values()), lines, asked.output)
    tasks = tasks_of(list(jobs.values()), lines)
    if tasks:
        known = [sum(line.seconds.values()) for line in lines.values() if line.seed is not None]
        runner = Runner(tasks, lines, asked.output, folder / "benchmark", console, asked.jobs, start, walls=known)
        console.print(f"{runner.plan()}; lines: {asked.output}", soft_wrap=True)
        runner.run()


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
            known = [*grid.tables, *findings.findings, *map(grid.short, cells)]
            raise DudiError(unknown(name, known, "table, finding or cell"))
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
