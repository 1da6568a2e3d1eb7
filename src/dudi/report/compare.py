"""Models against a baseline, item by item: a paired bootstrap; and what their responses were like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from dudi.records import GradedAnswer
from dudi.report.evals import Evaluation
from dudi.report.stats.intervals import Interval, percentile_interval, resampled_means

AVERAGE = "average"
OverItems = dict[str, Interval]
"""By language, and `AVERAGE`: the mean difference of item values to the baseline, in points of 100."""


@dataclass(frozen=True)
class Paired:
    """The difference of an item's values, in points. key: items that share one are drawn together; else its id."""

    language: str
    task: str
    key: str
    difference: float

    @classmethod
    def of(cls, item: GradedAnswer, value: float | None, baseline: float | None) -> Paired | None:
        """None where either has no value."""
        if value is None or baseline is None:
            return None
        return cls(item.language, item.task, item.key or item.id, 100 * (value - baseline))


@dataclass(frozen=True)
class Manner:
    """What responses were like. in_language: of those whose language can be told (None: of none)."""

    in_language: float | None
    undetermined: float
    eos_rate: float | None
    tokens: float | None


def item_values(evaluation: Evaluation) -> list[float | None]:
    """The value of each item, the mean over decoding seeds; None where one has none."""
    columns = zip(*(evaluation.responses[seed] for seed in evaluation.table.seeds), strict=True)
    return [mean_of([response.value for response in column]) for column in columns]


def mean_of(values: Sequence[float | None]) -> float | None:
    """None where one has none."""
    there = [value for value in values if value is not None]
    return fmean(there) if len(there) == len(values) else None


def gains(baseline: Evaluation, other: Evaluation) -> OverItems:
    """The differences of two evaluations. Items that have no value in either are left out."""
    values = zip(baseline.items, item_values(other), item_values(baseline), strict=True)
    pairs = [Paired.of(item, theirs, mine) for item, theirs, mine in values]
    return over_items([pair for pair in pairs if pair is not None], baseline.table.averaged)


def over_items(pairs: Sequence[Paired], averaged: Sequence[str]) -> OverItems:
    """Paired differences -> intervals by language, and of the average, which is the plain mean over `averaged`.

    Languages are resampled each by itself; but for the average all together where items of several share a key. The
    same items are drawn for every model. A language without any has no interval, and then neither has the average.
    """
    rows: dict[str, list[Paired]] = {}
    for pair in pairs:
        rows.setdefault(pair.language, []).append(pair)
    values = {l: np.array([pair.difference for pair in row]) for l, row in rows.items()}
    keys = {l: [pair.key for pair in row] for l, row in rows.items()}
    resampled = {l: resampled_means([values[l]], l, [keys[l]])[0] for l in rows}
    found = {l: percentile_interval(float(values[l].mean()), resampled[l], len(values[l])) for l in rows}
    if all(l in found for l in averaged):
        centre, n = fmean(found[l].mean for l in averaged), sum(found[l].n for l in averaged)
        apart = sum(len(set(keys[l])) for l in averaged) == len({key for l in averaged for key in keys[l]})
        if apart:
            means = np.array([resampled[l] for l in averaged])
        else:
            means = resampled_means([values[l] for l in averaged], AVERAGE, [keys[l] for l in averaged])
        found[AVERAGE] = percentile_interval(centre, means.mean(axis=0), n)
    return found


def manners(evaluation: Evaluation) -> dict[str, Manner]:
    """By language, over all tasks and decoding seeds."""
    by_language: dict[str, list[GradedAnswer]] = {language: [] for language in evaluation.table.languages}
    for responses in evaluation.responses.values():
        for response in responses:
            if response.written:
                by_language[response.language].append(response)
    return {language: _manner(responses) for language, responses in by_language.items()}


def _manner(responses: Sequence[GradedAnswer]) -> Manner:
    told = [response.in_language for response in responses if response.in_language is not None]
    ended = [response.finished for response in responses if response.finished is not None]
    lengths = [response.tokens for response in responses if response.tokens is not None]
    return Manner(
        in_language=fmean(told) if told else None,
        undetermined=len(responses) - len(told),
        eos_rate=fmean(ended) if ended else None,
        tokens=fmean(lengths) if lengths else None,
    )


def difference(cell: float | None, base: float | None) -> float | None:
    """A difference in points; None where either average is refused."""
    return None if cell is None or base is None else cell - base


def all_gains(evaluations: Sequence[Evaluation], baseline: Evaluation) -> Mapping[str, OverItems]:
    """The gains of every model but the baseline."""
    return {one.name: gains(baseline, one) for one in evaluations if one is not baseline}
