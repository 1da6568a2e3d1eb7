"""What the paper claims, as contrasts of cells (findings.toml), and their values from the scores of finished cells."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from dudi.lab.tables.grid import HERE, read_grid, tuples
from dudi.report.stats import Look
from dudi.strict import STRICT, Text

AVERAGE, OVERLAP = "average", "overlap"
Score = Callable[[str, str], float | None]
"""(cell, measure) -> the score under one seed; None where there is none."""


@dataclass(frozen=True)
class Term:
    """One score of a contrast."""

    cell: str
    measure: str
    weight: float


class Gap(BaseModel):
    """A contrast as findings.toml writes it: two cells, an order of cells, or terms."""

    model_config = STRICT

    over: str | None = None
    under: str | None = None
    order: tuple[Text, ...] = ()
    terms: tuple[tuple[Text, Text, float], ...] = ()
    measure: str = AVERAGE

    @model_validator(mode="after")
    def _one(self) -> Gap:
        pair = self.over is not None and self.under is not None
        if pair + (len(self.order) > 1) + bool(self.terms) != 1 or (self.over is None) != (self.under is None):
            raise ValueError("expected `over` and `under`, or `order`, or `terms`")
        return self

    @property
    def weighted(self) -> tuple[Term, ...]:
        """As terms, every cell by its whole name."""
        whole = read_grid().whole
        if self.terms:
            return tuple(Term(whole(cell), measure, weight) for cell, measure, weight in self.terms)
        if self.over is not None and self.under is not None:
            return Term(whole(self.over), self.measure, 1.0), Term(whole(self.under), self.measure, -1.0)
        places = [(len(self.order) - 1) / 2 - place for place in range(len(self.order))]  # the best has the highest
        scale = sum(place**2 for place in places)
        return tuple(Term(whole(c), self.measure, p / scale) for c, p in zip(self.order, places, strict=True))

    @property
    def says(self) -> str:
        """In a few words: `DuDi − GKD in overlap`, `0.5 teacher in nlr − SFT in nlr`."""
        label = read_grid().label
        if self.order:
            return f"points a place, {' > '.join(map(label, self.order))}{_where(self.measure)}"
        terms = self.terms or ((self.over, self.measure, 1.0), (self.under, self.measure, -1.0))
        text = " ".join(
            f"{'+' if weight > 0 else '−'} {'' if abs(weight) == 1 else f'{abs(weight):.2g} '}{label(str(cell))}"
            f"{_where(measure)}"
            for cell, measure, weight in terms
        )
        return text.removeprefix("+ ")


def value(terms: tuple[Term, ...], score: Score) -> float | None:
    """The weighted sum under one seed; None where a score is missing."""
    found = [(term.weight, score(term.cell, term.measure)) for term in terms]
    return None if any(one is None for _, one in found) else sum(weight * (one or 0.0) for weight, one in found)


class Need(Gap):
    """What the lab must show, on the average of the seeds, for a claim to mean anything."""

    because: Text
    """Why it is not testable where that is not so."""
    above: float


class Finding(BaseModel):
    """A claim of the paper."""

    model_config = STRICT

    claim: Text
    source: Text
    gaps: Annotated[tuple[Gap, ...], Field(min_length=1)]
    needs: tuple[Need, ...] = ()
    shown: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """All cells that it compares."""
        terms = [term for gap in (*self.gaps, *self.needs) for term in gap.weighted]
        return tuple(dict.fromkeys(term.cell for term in terms))


class Rule(BaseModel):
    """How all claims are judged."""

    model_config = STRICT

    seeds: tuple[int, ...]
    levels: tuple[float, ...]
    deviation: float
    smallest: tuple[float, ...]

    @property
    def looks(self) -> tuple[Look, ...]:
        """For `dudi.report.stats.judge`."""
        return tuple(Look(n, level) for n, level in zip(self.seeds, self.levels, strict=True))


@dataclass(frozen=True)
class Findings:
    """findings.toml. changed: what was changed after the first ranking, when and why."""

    declared: str
    rule: Rule
    findings: dict[str, Finding]
    changed: tuple[dict[str, str], ...]


@cache
def read_findings() -> Findings:
    """findings.toml."""
    table: dict[str, Any] = tomllib.loads((HERE / "findings.toml").read_text(encoding="utf-8"))
    declared, rule, changed = table.pop("declared"), table.pop("rule"), table.pop("changed", [])
    findings = {name: Finding.model_validate(tuples(one)) for name, one in table.items()}
    changes = tuple({key: str(value) for key, value in one.items()} for one in changed)
    return Findings(str(declared), Rule.model_validate(tuples(rule)), findings, changes)


def mean_over(values: list[float | None]) -> float | None:
    """None where one is missing, or there is none."""
    there = [one for one in values if one is not None]
    return fmean(there) if there and len(there) == len(values) else None


def _where(measure: str) -> str:
    """The score that is meant, if it is not the average: the code of a language or competency, or the overlap."""
    return "" if measure == AVERAGE else f" in {measure.rpartition('.')[2].replace('-', ' ')}"
