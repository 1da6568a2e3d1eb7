"""Models against a baseline, item by item: a paired bootstrap; and what their responses were like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from dudi.records import GradedAnswer
from dudi.report.evals import Evaluation

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 4_000_000
"""Numbers drawn at a time, so that memory stays small."""
AVERAGE = "average"


@dataclass(frozen=True)
class Gain:
    """The mean difference of item values to the baseline, in points of 100, and its interval over items."""

    mean: float
    low: float
    high: float
    items: int

    @property
    def side(self) -> str:
        """Where the interval lies: above 0, below 0, or it contains 0."""
        return "above 0" if self.low > 0 else "below 0" if self.high < 0 else "contains 0"


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


def resampled_means(differences: NDArray[np.float64], key: str, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means of `resamples` draws with replacement, each as many as there are; a pure function of its arguments."""
    generator = np.random.default_rng(list(key.encode()))
    n = len(differences)
    step = max(_CHUNK // n, 1)
    parts = []
    for start in range(0, resamples, step):
        drawn = generator.integers(0, n, size=(min(step, resamples - start), n))
        parts.append(differences[drawn].mean(axis=1))
    return np.concatenate(parts)


def gains(baseline: Evaluation, other: Evaluation) -> dict[str, Gain]:
    """By language, and (`average`) the plain mean over the averaged languages, each resampled by itself.

    Items that have no value in either are left out. The same items are drawn for every model.
    """
    pairs: dict[str, list[float]] = {language: [] for language in baseline.table.languages}
    for response, mine, theirs in zip(baseline.items, item_values(baseline), item_values(other), strict=True):
        if mine is not None and theirs is not None:
            pairs[response.language].append(100 * (theirs - mine))
    arrays = {language: np.array(values) for language, values in pairs.items() if values}
    means = {language: resampled_means(values, language) for language, values in arrays.items()}
    found = {
        language: _gain(float(arrays[language].mean()), means[language], len(arrays[language])) for language in means
    }
    averaged = baseline.table.averaged
    if all(language in means for language in averaged):
        centre = fmean(found[language].mean for language in averaged)
        joint = np.mean([means[language] for language in averaged], axis=0)
        found[AVERAGE] = _gain(centre, joint, sum(found[language].items for language in averaged))
    return found


def _gain(mean: float, resampled: NDArray[np.float64], items: int) -> Gain:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(mean, float(low), float(high), items)


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


def all_gains(evaluations: Sequence[Evaluation], baseline: Evaluation) -> Mapping[str, dict[str, Gain]]:
    """The gains of every model but the baseline."""
    return {one.name: gains(baseline, one) for one in evaluations if one is not baseline}
