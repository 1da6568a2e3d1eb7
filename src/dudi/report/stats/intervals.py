"""Intervals of a mean difference: over many items by a bootstrap, over few training seeds by Student's t."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, cos, pi, sin, sqrt, tan

import numpy as np
from numpy.typing import NDArray

from dudi.report.stats.numbers import Floats, Numbers, between, positive, row

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 4_000_000
"""Numbers drawn at a time, so that memory stays small."""


@dataclass(frozen=True)
class Interval:
    """A mean and its interval. n: the number of items or seeds that it is over."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def side(self) -> str:
        """Where the interval lies: above 0, below 0, or it contains 0."""
        return "above 0" if self.low > 0 else "below 0" if self.high < 0 else "contains 0"


# ── over items ───────────────────────────────────────────────────────────────────────────────────────────────────────
def bootstrap_interval(
    differences: Numbers,
    key: str,
    clusters: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of paired differences with a percentile interval (Efron & Tibshirani 1993, chapter 13).

    clusters: one for each difference; items that share one, such as a question in several phrasings, are drawn
    together. key: names the stream of random numbers.
    """
    values = row(differences, "differences")
    resampled = resampled_means([values], key, None if clusters is None else [clusters], resamples)
    return percentile_interval(float(values.mean()), resampled[0], len(values), level)


def resampled_means(
    differences: Sequence[Floats],
    key: str,
    clusters: Sequence[Sequence[Hashable]] | None = None,
    resamples: int = RESAMPLES,
) -> Floats:
    """Means of each group of differences in draws with replacement of as many clusters as all groups have together.

    clusters: of each difference, by default itself. A cluster is drawn with all its items in all groups; a mean is over
    items, so sums and sizes are added up first. Draws that miss a group are left out. A pure function of its arguments.
    Shape: (groups, draws).
    """
    positive(resamples, "resamples")
    if clusters is None:
        clusters = [[(group, at) for at in range(len(values))] for group, values in enumerate(differences)]
    places = {one: at for at, one in enumerate(dict.fromkeys(one for row in clusters for one in row))}
    n = len(places)
    of = [np.array([places[one] for one in row]) for row in clusters]
    sums = np.array([np.bincount(at, values, n) for at, values in zip(of, differences, strict=True)])
    sizes = np.array([np.bincount(at, minlength=n) for at in of], dtype=np.float64)
    generator = np.random.default_rng(list(key.encode()))
    step = max(_CHUNK // n, 1)
    parts = []
    for start in range(0, resamples, step):
        drawn = generator.integers(0, n, size=(min(step, resamples - start), n))
        with np.errstate(invalid="ignore"):  # 0 / 0 of a draw that misses a group
            parts.append(_sums(sums, drawn) / _sums(sizes, drawn))
    means = np.concatenate(parts, axis=1)
    return means[:, np.isfinite(means).all(axis=0)]


def _sums(rows: Floats, drawn: NDArray[np.int64]) -> Floats:
    """Each row's sum over every draw, (groups, clusters) and (draws, clusters) -> (groups, draws)."""
    alike = (rows == rows[:, :1]).all(axis=1)  # as sizes mostly are: nothing to look up
    return np.array(
        [
            np.full(len(drawn), row[0] * len(row)) if same else row.take(drawn).sum(axis=1)
            for row, same in zip(rows, alike, strict=True)
        ]
    )


def percentile_interval(mean: float, resampled: Floats, n: int, level: float = LEVEL) -> Interval:
    """A mean between the quantiles of its resampled values that leave out the same share at both ends."""
    between(level, 0, 1, "level")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n)


# ── over training seeds ──────────────────────────────────────────────────────────────────────────────────────────────
def t_interval(differences: Numbers, level: float = LEVEL) -> Interval:
    """The mean of paired differences, one a training seed: mean +- t * s / sqrt(n), t of n - 1 degrees of freedom.

    Raises `DudiError` for a single one: it has no spread.
    """
    values = row(differences, "differences over training seeds", at_least=2)
    n = len(values)
    mean = float(values.mean())
    half = t_quantile(level, n - 1) * float(values.std(ddof=1)) / sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def t_tails(differences: Numbers) -> tuple[float, float]:
    """One-sided p of a paired t test: that the mean of differences, one a training seed, is above 0, and below.

    Differences without any spread: 0 for the side on which they lie, 1 for the other; all 0, 1 for both. Raises
    `DudiError` for a single one.
    """
    values = row(differences, "differences over training seeds", at_least=2)
    n, mean, deviation = len(values), float(values.mean()), float(values.std(ddof=1))
    if deviation <= 1e-12 * float(np.abs(values).max()):  # equal but for rounding
        return float(mean <= 0), float(mean >= 0)
    tail = (1 - _share_within(atan(abs(mean) * sqrt(n) / deviation / sqrt(n - 1)), n - 1)) / 2
    return (tail, 1 - tail) if mean >= 0 else (1 - tail, tail)


@cache
def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level, T having Student's distribution with `freedom` degrees of freedom.

    P is a finite sum in theta = atan(t / sqrt(freedom)) (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4); it is inverted
    by bisection in theta.
    """
    between(level, 0, 1, "level")
    positive(freedom, "degrees of freedom")
    low, high = 0.0, pi / 2
    for _ in range(60):
        theta = (low + high) / 2
        low, high = (theta, high) if _share_within(theta, freedom) < level else (low, theta)
    return sqrt(freedom) * tan((low + high) / 2)


def _share_within(theta: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) * tan(theta))."""
    odd = freedom % 2
    term, total = (cos(theta) if odd else 1.0), 0.0
    for k in range(odd, freedom - 1, 2):  # powers of cos(theta) below freedom - 1, of the same parity
        total += term
        term *= (k + 1) / (k + 2) * cos(theta) ** 2
    return 2 / pi * (theta + sin(theta) * total) if odd else sin(theta) * total
