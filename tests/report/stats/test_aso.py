"""Almost Stochastic Order against its definition: integrals on a grid, every bootstrap sample, simulated nulls."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, comb, sqrt

import numpy as np
import pytest

from dudi.errors import DudiError
from dudi.report.stats import aso as module
from dudi.report.stats import bonferroni, eps_min, false_positive_rate, null_eps_min, violation_ratio

Z = 1.6448536269514722
"""Phi^-1(0.95)."""


def quantile(scores: Sequence[float], t: Fraction) -> float:
    """inf {x: F(x) >= t}."""
    return sorted(scores)[max(ceil(t * len(scores)) - 1, 0)]


def plain_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The two integrals over a grid so fine that every step of either quantile function begins on it."""
    grid = len(a) * len(b)
    gaps = [quantile(a, Fraction(k, grid)) - quantile(b, Fraction(k, grid)) for k in range(1, grid + 1)]
    whole = sum(gap**2 for gap in gaps)
    return sum(gap**2 for gap in gaps if gap < 0) / whole if whole else 0.5


def every_sample(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """eps of each of the n^n * m^m pairs of bootstrap samples, all as likely."""
    samples = itertools.product(itertools.product(a, repeat=len(a)), itertools.product(b, repeat=len(b)))
    return [plain_ratio(one, other) for one, other in samples]


def drawn(seed: int, *sizes: int) -> list[list[float]]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=n).round(2).tolist() for n in sizes]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([2, 3], [1, 2], 0.0),
        ([1, 2], [2, 3], 1.0),
        ([1, 4], [2, 3], 0.5),  # gaps -1 and 1
        ([0, 5], [2, 3], 0.5),  # -2 and 2
        ([1, 9], [2, 6], 0.1),  # -1 and 3
        ([5], [1, 9], 0.5),  # 4 and -4, half of [0, 1] each
        ([1, 2], [1, 2], 0.5),  # 0 / 0: none dominates
        ([3, 1, 2], [3, 2, 1], 0.5),
        ([0, 6], [1, 2, 3], 6 / 40),  # -1, -2, 4, 3 over 1/3, 1/6, 1/6, 1/3: (2 + 4) / (2 + 4 + 16 + 18)
    ],
)
def test_the_violation_ratio_by_hand(a: list[float], b: list[float], expected: float) -> None:
    assert violation_ratio(a, b) == pytest.approx(expected)
    assert violation_ratio(b, a) == pytest.approx(1 - expected)


@pytest.mark.parametrize("sizes", [(1, 1), (4, 4), (2, 5), (3, 4), (6, 9), (1, 7)])
def test_the_violation_ratio_is_the_integral(sizes: tuple[int, int]) -> None:
    for seed in range(20):
        a, b = drawn(seed, *sizes)
        assert violation_ratio(a, b) == pytest.approx(plain_ratio(a, b), abs=1e-12)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (2, 4)])
def test_eps_min_is_that_of_every_bootstrap_sample(sizes: tuple[int, int]) -> None:
    seen = set()
    for seed in range(12):
        a, b = drawn(seed, *sizes)
        exact = min(plain_ratio(a, b) + Z * statistics.pstdev(every_sample(a, b)), 1.0)
        assert eps_min(a, b, resamples=40_000) == pytest.approx(exact, abs=0.02)
        seen.add(0 if exact < 0.2 else 1 if exact < 1 else 2)
    assert len(seen) > 1, "not all of one kind"


def test_eps_min_where_every_score_is_higher() -> None:
    assert eps_min([3, 4, 5, 6], [-1, 0, 1, 2]) == 0
    assert eps_min([-1, 0, 1, 2], [3, 4, 5, 6]) == 1


def test_what_eps_min_does_not_depend_on() -> None:
    a, b = drawn(3, 5, 4)
    found = eps_min(a, b)
    assert 0 < found < 1
    assert eps_min(a[::-1], sorted(b)) == found, "the order of the seeds"
    assert eps_min([7 * x + 100 for x in a], [7 * x + 100 for x in b]) == pytest.approx(found), "the scale of scores"
    assert eps_min(a, b, seed=1) != found and eps_min(a, b, seed=1) == pytest.approx(found, abs=0.06)


def test_a_higher_confidence_gives_a_higher_bound() -> None:
    a, b = drawn(3, 5, 4)
    bounds = [eps_min(a, b, confidence) for confidence in (0.6, 0.8, 0.9, 0.95)]
    assert bounds == sorted(set(bounds))


def test_the_correction_for_several_comparisons() -> None:
    """Raises the level: 21 comparisons err together at 5 % where each does at 5 % / 21."""
    assert bonferroni(0.95, 1) == pytest.approx(0.95)
    assert bonferroni(0.95, 21) == pytest.approx(1 - 0.05 / 21)
    assert [bonferroni(0.95, k) for k in (1, 2, 3)] == sorted(bonferroni(0.95, k) for k in (1, 2, 3))


def test_in_parts_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = null_eps_min(4, 3, trials=50, resamples=200)
    monkeypatch.setattr(module, "_CHUNK", 333)
    np.testing.assert_allclose(null_eps_min(4, 3, trials=50, resamples=200), whole, atol=1e-9)


# ── where there is nothing to find ───────────────────────────────────────────────────────────────────────────────────
def plain_eps_min(a: Sequence[float], b: Sequence[float], rng: random.Random) -> float:
    """Of as many scores each, whose quantiles are the sorted scores; 200 bootstrap samples of its own."""

    def ratio(one: list[float], other: list[float]) -> float:
        gaps = [x - y for x, y in zip(sorted(one), sorted(other), strict=True)]
        whole = sum(gap**2 for gap in gaps)
        return sum(gap**2 for gap in gaps if gap < 0) / whole if whole else 0.5

    samples = [ratio(rng.choices(a, k=len(a)), rng.choices(b, k=len(b))) for _ in range(200)]
    return min(ratio(list(a), list(b)) + Z * statistics.pstdev(samples), 1.0)


def test_the_rate_of_false_positives_is_that_of_a_plain_simulation() -> None:
    """Four seeds against four: claims at 0.2 where there is nothing are about 7 %, at 0.5 more than one in five."""
    rng = random.Random(0)
    trials = 700
    plain = [plain_eps_min(*([rng.gauss(0, 1) for _ in range(4)] for _ in "ab"), rng) for _ in range(trials)]
    for threshold, about in ((0.2, 0.072), (0.5, 0.216)):
        rate, error = false_positive_rate(4, threshold=threshold)
        assert rate == pytest.approx(about, abs=0.006)
        assert error == pytest.approx(sqrt(rate * (1 - rate) / 20_000))
        share = sum(one < threshold for one in plain) / trials
        assert abs(share - rate) < 3.5 * sqrt(rate * (1 - rate) / trials)


def test_two_seeds_claim_what_is_no_more_than_a_coin() -> None:
    """Of two against two, both are higher in one of six cases: eps_min is 0."""
    found = null_eps_min(2)
    assert np.mean(found == 0) == pytest.approx(1 / comb(4, 2), abs=0.01)


def test_a_simulated_study_is_one_as_a_user_computes_it() -> None:
    generator = np.random.default_rng([0, 4, 3])
    a, b = generator.standard_normal((5, 4)), generator.standard_normal((5, 3))
    assert null_eps_min(4, 3, trials=5) == pytest.approx([eps_min(x, y) for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: eps_min([1.0], [1.0, 2.0]), "scores of A: 1 value where at least 2 are needed"),
        (lambda: eps_min([1.0, 2.0], [3.0]), "scores of B: 1 value where at least 2 are needed"),
        (lambda: eps_min([], []), "scores of A: 0 values where at least 2 are needed"),
        (lambda: eps_min([1.0, float("nan")], [1.0, 2.0]), "scores of A: value 1 is nan; expected finite numbers"),
        (lambda: eps_min([1.0, 2.0], [float("inf"), 2.0]), "scores of B: value 0 is inf"),
        (lambda: eps_min(np.ones((2, 2)), [1.0, 2.0]), "expected one row of numbers, found an array of shape (2, 2)"),
        (lambda: eps_min([1.0, 2.0], [1.0, 2.0], confidence=1.0), "confidence: expected a number between 0 and 1"),
        (lambda: eps_min([1.0, 2.0], [1.0, 2.0], confidence=float("nan")), "confidence: expected a number"),
        (lambda: eps_min([1.0, 2.0], [1.0, 2.0], resamples=0), "resamples: expected a whole number of at least 1"),
        (lambda: bonferroni(0.95, 0), "comparisons: expected a whole number of at least 1, found 0"),
        (lambda: null_eps_min(1), "scores: 1 value where at least 2 are needed"),
        (lambda: null_eps_min(4, trials=0), "trials: expected a whole number of at least 1"),
        (lambda: violation_ratio([], [1.0]), "scores of A: 0 values where at least 1 are needed"),
    ],
)
def test_what_cannot_be_computed_is_said(call: object, expected: str) -> None:
    with pytest.raises(DudiError) as caught:
        call()  # type: ignore[operator]
    assert expected in str(caught.value) and "\n" not in str(caught.value)
