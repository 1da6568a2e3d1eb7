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
class Manner:
    """What responses were like. in_language: of those whose language can be told (None: of none)."""

    in_language: float | None
    undetermined: float
    eos_rate: float | None
    tokens: float | None


def item_values(evaluation: Evaluation) -> list[float | None]:
    """The value of each item, the mean over decoding seeds; None where one has none."""
    columns = zip(*(evaluation.responses[seed] for seed in evaluation.table.seeds), strict=True)
    return [_mean([response.value for response in column]) for column in columns]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if len(there) == len(values) else None


def gains(baseline: Evaluation, other: Evaluation) -> OverItems:
    """The differences of two evaluations. Items that have no value in either are left out."""
    pairs: dict[str, list[float]] = {language: [] for language in baseline.table.languages}
    for response, mine, theirs in zip(baseline.items, item_values(baseline), item_values(other), strict=True):
        if mine is not None and theirs is not None:
            pairs[response.language].append(100 * (theirs - mine))
    return over_items(pairs, baseline.table.averaged)


def over_items(differences: Mapping[str, Sequence[float]], averaged: Sequence[str]) -> OverItems:
    """Differences by language -> intervals; of the average (the plain mean over `averaged`), each resampled by itself.

    The same items are drawn for every model. A language without any has no interval, and then neither has the average.
    """
    arrays = {language: np.array(values) for language, values in differences.items() if len(values)}
    resampled = {language: resampled_means(values, language) for language, values in arrays.items()}
    found = {
        language: percentile_interval(float(values.mean()), resampled[language], len(values))
        for language, values in arrays.items()
    }
    if all(language in found for language in averaged):
        centre = fmean(found[language].mean for language in averaged)
        joint = np.mean([resampled[language] for language in averaged], axis=0)
        found[AVERAGE] = percentile_interval(centre, joint, sum(found[language].n for language in averaged))
    return found


def manners(evaluation: Evaluation) -> dict[str, Manner]:
    """By language, over all tasks and decoding seeds."""
    by_language: dict[str, list[GradedAnswer]] = {language: [] for language in evaluation.table.languages}
    for responses in evaluation.responses.values():
        for response in responses:
            if response.error is None:
                by_language[response.language].append(response)
    return {language: _manner(responses) for language, responses in by_language.items()}


def _manner(responses: Sequence[GradedAnswer]) -> Manner:
    told = [response.in_language for response in responses if response.in_language is not None]
    return Manner(
        in_language=fmean(told) if told else None,
        undetermined=len(responses) - len(told),
        eos_rate=fmean(r.finished for r in responses) if responses else None,
        tokens=fmean(r.tokens for r in responses) if responses else None,
    )


def difference(cell: float | None, base: float | None) -> float | None:
    """A difference in points; None where either average is refused."""
    return None if cell is None or base is None else cell - base


def all_gains(evaluations: Sequence[Evaluation], baseline: Evaluation) -> Mapping[str, OverItems]:
    """The gains of every model but the baseline."""
    return {one.name: gains(baseline, one) for one in evaluations if one is not baseline}
