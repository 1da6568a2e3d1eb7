"""The page as files, from the lines alone: OUTPUT/findings.md with OUTPUT/figures/*.png, and all of it in one
OUTPUT/findings.html."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dudi.errors import DudiError
from dudi.files import write_bytes
from dudi.lab.tables.findings import Findings
from dudi.lab.tables.grid import Grid, TableOf
from dudi.lab.tables.lines import Line, Name
from dudi.lab.tables.page import Shown, cost_section, language, table_section, verdict_section
from dudi.lab.tables.verdicts import verdicts
from dudi.report.blocks import Block, Figure, Figures, Page, Section, Table, Text, number
from dudi.report.figures import Curve, Panel, draw
from dudi.report.heat import Heat, draw_heat
from dudi.report.html import html
from dudi.report.markdown import markdown
from dudi.report.results import language_name

FILE, HTML = "findings.md", "findings.html"


def write_page(
    output: Path,
    grid: Grid,
    findings: Findings,
    lines: Mapping[Name, Line],
    here: Collection[str],
    seeds: Sequence[int],
) -> Path:
    """Write both; returns the path of the first. seeds: those that the tables show; verdicts read theirs."""
    page = make_page(grid, findings, lines, here, seeds)
    files = {output / "figures" / f"{figure.name}.png": figure.png for figure in page.figures()}
    files |= {output / HTML: html(page).encode(), output / FILE: markdown(page).encode()}
    for file in files:
        if file.is_dir():
            raise DudiError(f"{file}: a folder, where the page is to be written; name another --output")
    try:
        for file, data in files.items():
            write_bytes(file, data)
    except OSError as error:
        raise DudiError(f"{error.filename or output}: {error.strerror or error}; name another --output") from None
    return output / FILE


def make_page(
    grid: Grid, findings: Findings, lines: Mapping[Name, Line], here: Collection[str], seeds: Sequence[int]
) -> Page:
    """Verdicts, tables, figures, costs."""
    shown = Shown(grid, findings, lines, verdicts(lines, grid, findings, here), seeds)
    about = [
        f"Written by dudi lab tables from {len(lines)} lines; seeds {seeds[0]} to {seeds[-1]}.",
        f"Lines of {', '.join(sorted({line.environment['date'] for line in lines.values()})) or 'no day yet'}.",
        "Scores are normalised: 0 is chance, 100 the best there is. ± is the standard deviation over training seeds.",
    ]
    sections = [verdict_section(shown)]
    for key, table in grid.tables.items():
        sections.append(_curves(shown, key, table) if table.by == "overlap" else table_section(shown, key))
    sections += _heat(shown)
    return Page("The paper's findings in the lab", tuple(about), (*sections, cost_section(shown)))


def _curves(shown: Shown, key: str, table: TableOf) -> Section:
    """The overlap of student and teacher: by step, and by language over the whole training."""
    rows = [row for row in table.rows if any(line.overlap for line in shown.of(row))]
    title = f"{key[:-1].title()} {key[-1]}: {table.title}"
    if not rows:
        return Section(key, title, (Text("No line of it yet."),))
    logged = {l for row in rows for line in shown.of(row) for one in line.overlap for l in one.languages}
    languages = [l for l in shown.of(rows[0])[0].codes if l in logged]
    body = [(shown.grid.label(row), *(_percent(shown, row, l) for l in (None, *languages))) for row in rows]
    blocks: tuple[Block, ...] = (
        Text(
            "Share of the 16 likeliest tokens that student and teacher have in common; mean over seeds. All: of all"
            " rollout tokens; a language: the mean of its logged steps, over the seeds that have any."
        ),
        Figures(tuple(_figure(shown, key, table, rows, l) for l in (None, *languages))),
        Table("In percent, over all logged steps", ("method", "all", *languages), tuple(body)),
    )
    return Section(key, title, blocks)


def _figure(shown: Shown, key: str, table: TableOf, rows: Sequence[str], language: str | None) -> Figure:
    """The curves over all languages, or of one: each the mean over seeds."""
    curves = []
    for colour, row in enumerate(rows):
        by_step: dict[int, list[float]] = {}
        for line in shown.of(row):
            for one in line.overlap:
                share = one.share if language is None else one.languages.get(language)
                if share is not None:
                    by_step.setdefault(one.step, []).append(share)
        means = {step: statistics.fmean(found) for step, found in sorted(by_step.items())}
        curves.append(Curve(shown.grid.label(row), tuple(means), tuple(means.values()), colour))
    name, title = (key, table.title) if language is None else (f"{key}-{language}", language_name(language))
    return Figure(name, title, draw(Panel(title, "share of 16", tuple(curves), share=True)))


def _heat(shown: Shown) -> list[Section]:
    """Methods by languages, all of the first pair; nothing where there is no line of it."""
    rows = [cell for cell in shown.cells if cell.startswith(f"{shown.grid.pair}/") and shown.of(cell)]
    if not rows:
        return []
    codes = tuple(shown.of(rows[0])[0].codes)
    means = [[shown.values(row, language(code)) for code in codes] for row in rows]
    values = tuple(tuple(statistics.fmean(v) if v else math.nan for v in row) for row in means)
    title = "Scores by language"
    png = draw_heat(Heat(title, tuple(map(shown.grid.label, rows)), codes, values))
    return [Section("heat", title, (Figures((Figure("heat", f"{title}, mean over seeds", png),)),))]


def _percent(shown: Shown, row: str, language: str | None) -> str:
    """The mean over seeds; of one language: of its logged steps."""
    if language is None:
        values = shown.values(row, lambda line: line.score("overlap"))
    else:
        found = [
            [one.languages[language] for one in line.overlap if language in one.languages] for line in shown.of(row)
        ]
        values = [100 * statistics.fmean(one) for one in found if one]
    return number(statistics.fmean(values)) if values else "-"
