"""Lines -> what became of each finding, by the rule of findings.toml and by nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dudi.lab.tables.findings import Finding, Findings, Gap, Term, mean_over, value
from dudi.lab.tables.grid import Grid
from dudi.lab.tables.lines import Line, Name
from dudi.report.stats import Interval, Judged, judge, t_interval

NOT_TESTABLE, NOT_RUN = "not testable here", "not run yet"
Lines = Mapping[Name, Line]


@dataclass(frozen=True)
class Seen:
    """A gap over the seeds that there are, all of them."""

    says: str
    values: tuple[float, ...]

    @property
    def interval(self) -> Interval | None:
        """Of its mean, 95 %, not corrected; None with fewer than two seeds."""
        return t_interval(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """What became of a finding. because: why, where it could not be judged; readings: what comes out where a cell is
    read in the other way, by the reading's cell."""

    outcome: str
    because: str = ""
    judged: Judged | None = None
    gaps: tuple[Seen, ...] = ()
    left_out: tuple[str, ...] = ()
    """Pairs that its gaps ask for and the lab does not have."""
    readings: Mapping[str, str] | None = None


def verdicts(lines: Lines, grid: Grid, findings: Findings, here: Collection[str]) -> dict[str, Verdict]:
    """All findings. here: the pairs that the lab has models for."""
    looks, family = findings.rule.looks, len(findings.findings)
    found: dict[str, Verdict] = {}
    claims: dict[str, list[tuple[float, ...]]] = {}
    for name, finding in findings.findings.items():
        found[name] = _prepared(finding, lines, here, looks[0].seeds)
        if found[name].outcome == "":
            claims[name] = [seen.values for seen in found[name].gaps]
    judged = judge(claims, family, looks)
    for name in claims:
        found[name] = replace(found[name], outcome=judged[name].outcome, judged=judged[name])
    for cell, reading in grid.readings.items():
        for name in reading.findings:
            other = _prepared(_read_as(findings.findings[name], reading.of, cell), lines, here, looks[0].seeds)
            outcome = other.outcome
            if outcome == "":
                outcome = judge({**claims, name: [seen.values for seen in other.gaps]}, family, looks)[name].outcome
            found[name] = replace(found[name], readings={**(found[name].readings or {}), cell: outcome})
    return found


def _prepared(finding: Finding, lines: Lines, here: Collection[str], seeds: int) -> Verdict:
    """The gaps of a finding; with an outcome where it cannot be judged, and with none ("") where it can."""
    pairs = {term.cell.partition("/")[0] for gap in finding.gaps for term in gap.weighted}
    left_out = tuple(sorted(pairs - set(here)))
    gaps = [
        gap for gap in finding.gaps if not any(term.cell.startswith(f"{p}/") for term in gap.weighted for p in left_out)
    ]
    if not gaps:
        return Verdict(NOT_TESTABLE, "the lab has no models of its own for the pairs", left_out=left_out)
    terms = [gap.weighted for gap in gaps]
    needs = [need.weighted for need in finding.needs]
    there = _seeds([*terms, *needs], lines)
    seen = tuple(_seen(gap, lines, there) for gap in gaps)
    known = Verdict("", gaps=tuple(one for one in seen if one is not None), left_out=left_out)
    if len(there) < seeds:
        return replace(known, outcome=NOT_RUN, because=f"{len(there)} of {seeds} seeds are there")
    for need, weighted in zip(finding.needs, needs, strict=True):
        mean = mean_over([_value(weighted, lines, seed) for seed in there[:seeds]])
        if mean is None or mean <= need.above:
            return replace(known, outcome=NOT_TESTABLE, because=need.because)
    if len(known.gaps) < len(gaps):
        return replace(known, outcome=NOT_TESTABLE, because="a score is missing, or a training has no overlap")
    return known


def _seeds(contrasts: Sequence[tuple[Term, ...]], lines: Lines) -> list[int]:
    """Seeds 0, 1, ... as far as there are lines of all cells."""
    cells = {term.cell for terms in contrasts for term in terms}
    trained = [cell for cell in cells if (cell, None) not in lines]
    found: list[int] = []
    while trained and all((cell, len(found)) in lines for cell in trained):
        found.append(len(found))
    return found


def _seen(gap: Gap, lines: Lines, seeds: Sequence[int]) -> Seen | None:
    """None where a score is missing."""
    values = [_value(gap.weighted, lines, seed) for seed in seeds]
    there = tuple(one for one in values if one is not None)
    return Seen(gap.says, there) if len(there) == len(values) else None


def _value(terms: tuple[Term, ...], lines: Lines, seed: int) -> float | None:
    def score(cell: str, measure: str) -> float | None:
        return (lines.get((cell, None)) or lines[cell, seed]).score(measure)

    return value(terms, score)


def _read_as(finding: Finding, of: str, cell: str) -> Finding:
    """The finding with one cell in another's place."""
    gaps = []
    for gap in finding.gaps:
        terms = tuple((cell if t.cell == of else t.cell, t.measure, t.weight) for t in gap.weighted)
        gaps.append(Gap(terms=terms))
    return finding.model_copy(update={"gaps": tuple(gaps)})
