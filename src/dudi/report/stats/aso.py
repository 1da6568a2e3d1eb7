"""Almost Stochastic Order: how far one method's scores are from being stochastically larger than another's.

A's scores dominate B's where every quantile of A is at least B's. The violation ratio is the share of the squared
2-Wasserstein distance between the two that lies where this fails (del Barrio et al. 2018, "An optimal transportation
approach for assessing almost stochastic order", eq. 5):

    eps(A, B) = int_V (F_A^-1(t) - F_B^-1(t))^2 dt / int_0^1 (F_A^-1(t) - F_B^-1(t))^2 dt,
    V = {t: F_A^-1(t) < F_B^-1(t)}

0: A dominates; 1: B does; eps(A, B) + eps(B, A) = 1. Of two equal samples, for which it is 0 / 0, it is 1/2 here: none
dominates. With few scores eps says little, so what is reported is an upper bound of it at a confidence level (Dror et
al. 2019, "Deep Dominance", eq. 7, after del Barrio et al.'s central limit theorem):

    eps_min(A, B) = min(eps(A, B) + Phi^-1(confidence) * sd(eps(A*, B*)), 1)

over bootstrap samples A*, B*, in which the factor sqrt(nm / (n + m)) of the theorem cancels. "A is better" is claimed
where eps_min is below a threshold: 0.5, or 0.2 as Ulmer et al. 2022 recommend ("deep-significance"). The quantile
functions of samples are steps, so the integrals are sums, taken exactly. `null_eps_min` shows what such claims are
worth with few seeds: the bound is one for large samples, and of four scores it is too low.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dudi.report.stats.numbers import Floats, Numbers, between, positive, row

CONFIDENCE = 0.95
RESAMPLES = 1000
THRESHOLD = 0.2
TRIALS = 20_000
_CHUNK = 4_000_000
"""Numbers of one array, so that memory stays small."""
Places = NDArray[np.int64]


def violation_ratio(a: Numbers, b: Numbers) -> float:
    """eps(A, B) of two rows of scores, higher being better: 0 where every quantile of A is at least B's."""
    return float(_ratio(np.sort(row(a, "scores of A"))[None], np.sort(row(b, "scores of B"))[None])[0])


def eps_min(a: Numbers, b: Numbers, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The upper bound of eps(A, B) at a confidence level; small: A is almost stochastically larger than B.

    a, b: one score of each training seed, two or more, in any order. Several comparisons: see `bonferroni`. Raises
    `DudiError` for a single score, whose bootstrap has no spread: the bound would be 0 or 1 whatever the score.
    """
    found = [np.sort(row(one, f"scores of {name}", at_least=2))[None] for one, name in ((a, "A"), (b, "B"))]
    return float(_eps_min(found[0], found[1], confidence, resamples, seed)[0])


def bonferroni(confidence: float, comparisons: int) -> float:
    """The confidence level of each of several comparisons that together err as often as one: 1 - (1 - c) / k."""
    between(confidence, 0, 1, "confidence")
    positive(comparisons, "comparisons")
    return 1 - (1 - confidence) / comparisons


def null_eps_min(
    n: int,
    m: int | None = None,
    confidence: float = CONFIDENCE,
    trials: int = TRIALS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """eps_min of n scores against m (by default n) of the same normal distribution, in `trials` simulated studies.

    Whatever the mean and the deviation, since eps_min does not change where all scores are moved or scaled. The
    bootstrap draws are those of `eps_min` with its default seed. Shape: (trials,).
    """
    m = n if m is None else m
    positive(trials, "trials")
    row(np.zeros(min(n, m)), "scores", at_least=2)
    generator = np.random.default_rng([seed, n, m])
    a, b = (np.sort(generator.standard_normal((trials, k)), axis=1) for k in (n, m))
    return _eps_min(a, b, confidence, resamples, 0)


def false_positive_rate(
    n: int, m: int | None = None, threshold: float = THRESHOLD, confidence: float = CONFIDENCE, trials: int = TRIALS
) -> tuple[float, float]:
    """How often eps_min is below the threshold where n scores and m come from one distribution; and the standard
    error of this simulated share."""
    rate = float(np.mean(null_eps_min(n, m, confidence, trials) < threshold))
    return rate, sqrt(rate * (1 - rate) / trials)


# ── rows of sorted scores ────────────────────────────────────────────────────────────────────────────────────────────
def _pieces(n: int, m: int) -> tuple[Places, Places, Floats]:
    """Where both quantile functions are constant: which score of A, which of B, and the width of the piece.

    The k-th of n sorted scores is the quantile of ((k - 1) / n, k / n]; cuts are counted in 1 / nm, so they are exact.
    """
    cuts = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    return cuts[:-1] // m, cuts[:-1] // n, np.diff(cuts) / (n * m)


def _share(violated: Floats, whole: Floats) -> Floats:
    """Their ratio; 1/2 for equal samples."""
    return np.divide(violated, whole, out=np.full(whole.shape, 0.5), where=whole > 0)


def _ratio(a: Floats, b: Floats) -> Floats:
    """eps of sorted scores, (trials, n) and (trials, m) -> (trials,)."""
    of_a, of_b, widths = _pieces(a.shape[1], b.shape[1])
    gap = a[:, of_a] - b[:, of_b]
    return _share(np.minimum(gap, 0) ** 2 @ widths, gap**2 @ widths)


def _eps_min(a: Floats, b: Floats, confidence: float, resamples: int, seed: int) -> Floats:
    """eps_min of sorted scores, (trials, n) and (trials, m) -> (trials,). The same draws serve every trial.

    A bootstrap sample of sorted scores is a weight for each pair of a score of A and one of B: how much of [0, 1] has
    both as its quantiles. So both integrals of all samples are one product of matrices each.
    """
    between(confidence, 0, 1, "confidence")
    positive(resamples, "resamples")
    (trials, n), m = a.shape, b.shape[1]
    generator = np.random.default_rng(seed)
    # sorted places of sorted scores are sorted scores
    drawn_a, drawn_b = (np.sort(generator.integers(0, k, (resamples, k)), axis=1) for k in (n, m))
    of_a, of_b, widths = _pieces(n, m)
    pairs = drawn_a[:, of_a] * m + drawn_b[:, of_b]
    spread = np.empty(trials)
    step, samples = max(_CHUNK // max(n * m, resamples), 1), max(_CHUNK // (n * m), 1)
    for start in range(0, trials, step):
        gap = (a[start : start + step, :, None] - b[start : start + step, None, :]).reshape(-1, n * m)
        below, square = np.minimum(gap, 0) ** 2, gap**2
        ratios = [
            _share(below @ weights, square @ weights)
            for weights in (_weights(pairs[at : at + samples], widths, n * m) for at in range(0, resamples, samples))
        ]
        spread[start : start + step] = np.concatenate(ratios, axis=1).std(axis=1)
    return np.clip(_ratio(a, b) + NormalDist().inv_cdf(confidence) * spread, 0, 1)


def _weights(pairs: Places, widths: Floats, number: int) -> Floats:
    """The weight of each of `number` pairs in each sample, (samples, pieces) -> (number, samples)."""
    samples = len(pairs)
    at = pairs + np.arange(samples)[:, None] * number
    flat: Floats = np.bincount(at.ravel(), np.tile(widths, samples), samples * number).astype(np.float64)
    return flat.reshape(samples, number).T
