"""Exact tests against plain loops over exact fractions; what no data can beat; Holm's correction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from dudi.errors import DudiError
from dudi.report.stats import holm, permutation_p, sign_flip_p, smallest_p


def plain_permutation(a: Sequence[int], b: Sequence[int]) -> Fraction:
    pooled, n = [*a, *b], len(a)

    def gap(chosen: Sequence[int]) -> Fraction:
        ours = [pooled[k] for k in chosen]
        return abs(Fraction(sum(ours), n) - Fraction(sum(pooled) - sum(ours), len(b)))

    every = list(itertools.combinations(range(len(pooled)), n))
    observed = gap(range(n))
    return Fraction(sum(gap(chosen) >= observed for chosen in every), len(every))


def plain_flips(differences: Sequence[int]) -> Fraction:
    every = list(itertools.product((1, -1), repeat=len(differences)))
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in every]
    return Fraction(sum(one >= observed for one in sums), len(every))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (4, 4), (5, 3), (1, 6)])
def test_the_permutation_test_lists_every_arrangement(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = (generator.integers(0, 9, n).tolist() for n in sizes)  # with ties
        assert permutation_p(a, b) == pytest.approx(float(plain_permutation(a, b)))
        assert permutation_p([0.1 * x for x in a], [0.1 * x for x in b]) == pytest.approx(permutation_p(a, b))
        assert permutation_p(b, a) == pytest.approx(permutation_p(a, b))


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_sign_flip_test_lists_every_choice_of_signs(n: int) -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        differences = generator.integers(-4, 5, n).tolist()
        assert sign_flip_p(differences) == pytest.approx(float(plain_flips(differences)))
        assert sign_flip_p([0.1 * d for d in differences]) == pytest.approx(float(plain_flips(differences)))


def test_nothing_is_below_the_smallest_p() -> None:
    assert smallest_p(4) == pytest.approx(1 / 35) and smallest_p(2) == pytest.approx(1 / 3)
    for n, m in itertools.product((1, 2, 3, 4), repeat=2):
        far = permutation_p([1000.0 + k for k in range(n)], [float(k) for k in range(m)])
        assert smallest_p(n, m) == pytest.approx(far)
    assert sign_flip_p([7.0, 8.0, 9.0, 10.0]) == pytest.approx(1 / 8)


def test_under_no_difference_p_is_below_a_level_as_often_as_it_says() -> None:
    """2,000 studies of four against four: p <= k/35 in k/35 of them."""
    generator = np.random.default_rng(2)
    found = np.array([permutation_p(a, b) for a, b in generator.normal(size=(2000, 2, 4))])
    for k in (1, 2, 7, 17):
        assert np.mean(found <= k / 35 + 1e-9) == pytest.approx(k / 35, abs=3.5 * (k / 35 * (1 - k / 35) / 2000) ** 0.5)


def test_equal_scores_are_no_difference() -> None:
    assert permutation_p([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]) == 1
    assert sign_flip_p([0.1, -0.1]) == 1 and sign_flip_p([0.0, 0.0]) == 1


@pytest.mark.parametrize(
    ("ps", "expected"),
    [
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01, 2 x 0.03, and 1 x 0.04 is not below the one before
        ([0.01, 0.01], [0.02, 0.02]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.05, 0.001, 0.2, 0.01], [0.1, 0.004, 0.2, 0.03]),
    ],
)
def test_holm_by_hand(ps: list[float], expected: list[float]) -> None:
    assert holm(ps) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: permutation_p(range(11), range(11)), "an exact test of 11 scores against 11 has 705,432 arrangements"),
        (
            lambda: sign_flip_p(range(18)),
            "an exact test of 18 pairs has 262,144 arrangements; expected at most 200,000",
        ),
        (lambda: permutation_p([], [1.0]), "scores of A: 0 values"),
        (lambda: permutation_p([1.0], [float("nan")]), "scores of B: value 0 is nan"),
        (lambda: holm([0.5, 1.5]), "p-values: expected numbers from 0 to 1, found [0.5, 1.5]"),
        (lambda: holm([]), "p-values: 0 values"),
        (lambda: smallest_p(0), "scores: expected a whole number of at least 1, found 0"),
    ],
)
def test_what_cannot_be_computed_is_said(call: object, expected: str) -> None:
    with pytest.raises(DudiError) as caught:
        call()  # type: ignore[operator]
    assert expected in str(caught.value)
