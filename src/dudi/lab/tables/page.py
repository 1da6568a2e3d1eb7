"""Lines -> the page: the verdicts, our tables with the paper's below, the costs. No number is made here by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dudi.lab.tables import paper
from dudi.lab.tables.findings import Findings
from dudi.lab.tables.grid import Cell, Grid, TableOf
from dudi.lab.tables.lines import Line, Name
from dudi.lab.tables.verdicts import NOT_RUN, Verdict
from dudi.lab.tasks import COMPETENCIES
from dudi.report.blocks import Block, Bullets, Section, Table, Text, number, signed
from dudi.report.results import MARKS
from dudi.report.stats import eps_min, kendall_tau
from dudi.report.stats.aso import THRESHOLD, false_positive_rate
from dudi.report.stats.exact import smallest_p
from dudi.report.stats.intervals import Interval

DIAMOND = "⋄"
WITHOUT = "without translation"
Column = Callable[[Line], float | None]


@dataclass(frozen=True)
class Shown:
    """What a page is made of."""

    grid: Grid
    findings: Findings
    lines: Mapping[Name, Line]
    verdicts: Mapping[str, Verdict]
    seeds: Sequence[int]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """All cells."""
        return self.grid.cells

    def of(self, cell: str) -> list[Line]:
        """The lines of a cell, in the order of the seeds; a teacher has one."""
        names = [(cell, None), *((cell, seed) for seed in self.seeds)]
        return [self.lines[name] for name in names if name in self.lines]

    def values(self, cell: str, column: Column) -> list[float]:
        """Its scores by seed; nothing where there is none, or one is missing."""
        found = [column(line) for line in self.of(cell)]
        there = [one for one in found if one is not None]
        return there if len(there) == len(found) else []


def language(code: str) -> Column:
    """The score in one language."""
    return lambda line: line.languages.get(code)


def competency(name: str) -> Column:
    """The score in one competency."""
    return lambda line: line.competencies.get(name)


def average(line: Line) -> float | None:
    """Of the languages."""
    return line.average


def without_translation(line: Line) -> float | None:
    """The same, without translation."""
    return line.without_translation


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def table_section(shown: Shown, key: str) -> Section:
    """One of the paper's tables: ours, then its own."""
    table = shown.grid.tables[key]
    rows = [row for row in table.rows if shown.of(row)]
    if not rows:
        return Section(key, _title(key, table), (Text("No line of it yet."),))
    columns = _columns(shown, table, rows)
    second = {row: _second(table, row) for row in rows}
    means = {row: _mean(shown.values(row, average)) for row in rows}
    body = [
        (
            shown.grid.label(row),
            *(_score(shown, row, second[row], c) for c in columns.values()),
            *_against(table, row, means),
            str(len(shown.of(row))),
        )
        for row in rows
    ]
    head = ("method", *columns, *_AGAINST.get(table.by, ()), "seeds")
    blocks: list[Block] = [Table("The lab", head, tuple(body))]
    quoted = _quoted(shown, key, table, rows)
    if quoted is not None:
        blocks.append(quoted)
    blocks += [Text(line, "note") for line in _notes(shown, key, table, rows)]
    return Section(key, _title(key, table), tuple(blocks))


def _title(key: str, table: TableOf) -> str:
    return f"{key[:-1].title()} {key[-1]}: {table.title}"


def _columns(shown: Shown, table: TableOf, rows: Sequence[str]) -> dict[str, Column]:
    first = shown.of(rows[0])[0]
    found: dict[str, Column] = {}
    if table.by == "languages":
        found = {l: language(l) for l in first.codes}
    if table.by == "competencies":
        found = {c: competency(c) for c in sorted(first.competencies, key=[*COMPETENCIES, *first.competencies].index)}
    return {**found, "average": average, WITHOUT: without_translation}


def _second(table: TableOf, row: str) -> str | None:
    """The cell that the marks of a row compare with: DuDi's, of its pair."""
    pair, _, name = row.partition("/")
    return f"{pair}/{table.second.partition('/')[2]}" if table.second and name == "dudi" else None


def _score(shown: Shown, row: str, second: str | None, column: Column) -> str:
    values = shown.values(row, column)
    if not values:
        return "-"
    text = number(statistics.fmean(values))
    text += f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
    theirs = shown.values(second, column) if second else []
    if len(values) > 1 and len(theirs) > 1 and eps_min(values, theirs) < THRESHOLD:
        text += DIAMOND
    return text


def _quoted(shown: Shown, key: str, table: TableOf, rows: Sequence[str]) -> Table | None:
    """The paper's own numbers of the same rows."""
    found = {
        row: paper.by_competency(shown.cells[row])
        if table.by == "competencies"
        else paper.by_language(shown.cells[row], key)
        for row in rows
    }
    columns = list(dict.fromkeys(column for one in found.values() for column in one if column != paper.AVERAGE))
    if table.by in ("average", "pairs"):
        columns = []
    columns.append(paper.AVERAGE)
    averages = {row: one.get(paper.AVERAGE) for row, one in found.items()}
    body = [
        (shown.grid.label(row), *(number(one.get(c)) for c in columns), *_against(table, row, averages))
        for row, one in found.items()
        if one
    ]
    head = ("method", *columns, *_AGAINST.get(table.by, ()))
    return Table("The paper (SEA-HELM)", head, tuple(body)) if body else None


_AGAINST = {"average": ("difference", "in percent")}
"""Columns of the ablations: against the first row, which is DuDi's."""


def _against(table: TableOf, row: str, averages: Mapping[str, float | None]) -> tuple[str, ...]:
    base, mine = averages.get(table.rows[0]), averages[row]
    if table.by not in _AGAINST:
        return ()
    if row == table.rows[0] or not base or mine is None:
        return "-", "-"
    return signed(mine - base), f"{signed(100 * (mine - base) / base)} %"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _notes(shown: Shown, key: str, table: TableOf, rows: Sequence[str]) -> list[str]:
    notes = []
    if table.by in _AGAINST:
        notes.append(
            "The paper's percentages are taken here from the averages that it prints; its own differ a little."
        )
    if table.order:
        for pair in dict.fromkeys(row.partition("/")[0] for row in rows):
            mine = [row for row in rows if row.startswith(f"{pair}/") and not row.endswith("/teacher")]
            tau = _tau(shown, key, mine)
            if tau is not None:
                notes.append(
                    f"Kendall's tau of our order with the paper's, {pair}: {signed(tau, 2)} ({len(mine)} rows)."
                )
    for row in rows:
        second = _second(table, row)
        ours = shown.values(row, average)
        theirs = shown.values(second, average) if second else []
        if second and len(ours) > 1 and len(theirs) > 1:
            rate = 100 * false_positive_rate(len(ours), len(theirs))[0]
            notes.append(
                f"eps_min of {shown.grid.label(row)} over {shown.grid.label(second)} is {eps_min(ours, theirs):.2f} on"
                f" the average; {DIAMOND} marks where it is below {THRESHOLD}. Between two methods that are the same it"
                f" is below in {rate:.1f} % of studies with {len(ours)} seeds, in each column, and no exact p is below"
                f" {smallest_p(len(ours), len(theirs)):.3f}. No verdict rests on it."
            )
    return notes


def _tau(shown: Shown, key: str, rows: Sequence[str]) -> float | None:
    found = [(shown.values(row, average), paper.by_language(shown.cells[row], key).get(paper.AVERAGE)) for row in rows]
    both = [(statistics.fmean(ours), theirs) for ours, theirs in found if ours and theirs is not None]
    return kendall_tau([ours for ours, _ in both], [theirs for _, theirs in both]) if len(both) > 2 else None


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def verdict_section(shown: Shown) -> Section:
    """Each finding, its verdict, its weakest gap."""
    rows = []
    for name, finding in shown.findings.findings.items():
        verdict = shown.verdicts[name]
        judged = verdict.judged
        found = (
            ("-", "-", "-")
            if judged is None
            else (_interval(judged.weakest), f"{judged.p:.3g}", str(judged.look.seeds))
        )
        rows.append((name, finding.claim, finding.source, verdict.outcome, *found))
    head = ("", "claim", "paper", "verdict", "weakest gap", "p, corrected", "seeds")
    rule = shown.findings.rule
    text = (
        f"Declared on {shown.findings.declared}. A gap is paired by training seed; of several gaps, all have to be"
        " above 0. The weakest one is shown (of an order: in points a place), with a 95 % interval that is not"
        f" corrected: ▲ lies above 0, ▼ below, ○ holds it. p: corrected by Holm for all {len(rows)}"
        f" findings; a verdict needs {rule.levels[0]:g} after {rule.seeds[0]} seeds, or {rule.levels[1]:g}"
        f" after {rule.seeds[1]}. Seeds are training seeds, each a whole pipeline; answers are greedy. With a deviation"
        f" of {rule.deviation:g} points of a paired difference, effects smaller than {rule.smallest[0]:g} points after"
        f" {rule.seeds[0]} seeds, or {rule.smallest[1]:g} after {rule.seeds[1]}, cannot be told from noise."
    )
    return Section("verdicts", "Verdicts", (Text(text), Table("Findings", head, tuple(rows)), Bullets(_remarks(shown))))


def _interval(interval: Interval) -> str:
    low, high = signed(interval.low), signed(interval.high)
    return f"{MARKS[interval.side]} {signed(interval.mean)} [{low}, {high}]"


def _remarks(shown: Shown) -> tuple[str, ...]:
    lines = []
    for name, finding in shown.findings.findings.items():
        verdict = shown.verdicts[name]
        if verdict.because:
            lines.append(f"{name}: {verdict.outcome}, because {verdict.because}.")
        if verdict.left_out:
            lines.append(f"{name}: left out, since the lab has no such pair: {', '.join(verdict.left_out)}.")
        if len(verdict.gaps) > 1:
            all_ = [f"{gap.says} {_interval(gap.interval)}" for gap in verdict.gaps if gap.interval is not None]
            lines += [f"{name}: {'; '.join(all_)}."] if all_ else []
        for cell, outcome in (verdict.readings or {}).items():
            if outcome != NOT_RUN:
                lines.append(f"{name}, read otherwise: {shown.grid.readings[cell].says}: {outcome}.")
        if finding.shown:
            lines.append(f"{name}: not judged, but shown: {finding.shown}.")
    lines += [f"Changed after the first ranking: {', '.join(one.values())}." for one in shown.findings.changed]
    return tuple(lines)


# ── costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def cost_section(shown: Shown) -> Section:
    """Core-seconds by cell: each ran on one thread."""
    rows = []
    for cell in shown.cells:
        found = shown.of(cell)
        if found:
            trained = statistics.fmean(
                sum(s for stage, s in one.seconds.items() if stage != "evaluation") for one in found
            )
            asked = statistics.fmean(one.seconds["evaluation"] for one in found)
            rows.append((shown.grid.label(cell), number(trained, 0), number(asked, 0), number(trained + asked, 0)))
    text = "Seconds on one core, mean over seeds. A cold start that is shared counts where it is a row of its own."
    head = ("cell", "training", "evaluation", "both")
    return Section("cost", "Cost", (Text(text), Table("Seconds", head, tuple(rows))))
