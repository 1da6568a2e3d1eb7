"""Intervals: Student's t against its density, the bootstrap of clusters against every draw; and how often they hold."""

from __future__ import annotations

import itertools
from math import gamma, inf, pi, sqrt

import numpy as np
import pytest

from dudi.errors import DudiError
from dudi.report.stats import Interval, bootstrap_interval, resampled_means, t_interval, t_quantile


# ── Student's t ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 8, 19, 50])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_density_holds_the_level_within_the_quantile(freedom: int, level: float) -> None:
    t = t_quantile(level, freedom)
    x = np.linspace(0, t, 200_001)
    constant = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))
    density = constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert np.sum((density[1:] + density[:-1]) * np.diff(x)) == pytest.approx(level, abs=1e-7)


@pytest.mark.parametrize(
    ("freedom", "printed"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (120, 1.980), (100_000, 1.960)],
)
def test_the_quantiles_are_those_of_printed_tables(freedom: int, printed: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(printed, abs=5e-4)


def test_the_interval_over_seeds_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, so 2 -+ 4.3027 / sqrt(3)."""
    found = t_interval([3.0, 1.0, 2.0])
    assert (found.mean, found.n, found.side) == (2.0, 3, "contains 0")
    assert found.high - 2 == pytest.approx(2 - found.low) == pytest.approx(4.302653 / sqrt(3), abs=1e-6)
    assert t_interval([3.0, 1.0, 2.0], 0.5).side == "above 0"
    assert t_interval([-5.0, -5.1]).side == "below 0"


def test_intervals_over_seeds_hold_as_often_as_they_say() -> None:
    """2,000 studies of four seeds: 95 % hold the true difference, to 3 standard errors of this share."""
    generator = np.random.default_rng(0)
    studies = generator.normal(1.5, 2.0, size=(2000, 4))
    hits = np.mean([found.low <= 1.5 <= found.high for found in map(t_interval, studies)])
    assert abs(hits - 0.95) < 3 * sqrt(0.95 * 0.05 / 2000)


# ── clusters ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_clusters_are_drawn_whole() -> None:
    """Three clusters, of 1, 2 and 3 items: the 27 draws of three of them, each mean over the items drawn."""
    clusters = {"a": [4.0], "b": [0.0, 10.0], "c": [-3.0, 6.0, 9.0]}
    values = np.array([value for row in clusters.values() for value in row])
    of = [name for name, row in clusters.items() for _ in row]
    every = [
        np.mean([value for name in draw for value in clusters[name]]) for draw in itertools.product("abc", repeat=3)
    ]
    found = resampled_means([values], "th", [of], 60_000)[0]
    for mean in np.unique(np.round(every, 9)):
        share = np.mean(np.isclose(every, mean))
        assert np.mean(np.isclose(found, mean)) == pytest.approx(share, abs=0.008)
    assert np.isclose(found[:, None], np.unique(every)).any(axis=1).all()


def test_a_draw_that_misses_a_group_is_left_out() -> None:
    """Clusters a and b of one group, b and c of the other: of the 27 draws, those with items of both groups."""
    first, second = {"a": 1.0, "b": 5.0}, {"b": 10.0, "c": -4.0}
    every = []
    for draw in itertools.product("abc", repeat=3):
        rows = [[group[name] for name in draw if name in group] for group in (first, second)]
        if all(rows):
            every.append(tuple(round(float(np.mean(row)), 9) for row in rows))
    values = [np.array(list(group.values())) for group in (first, second)]
    found = resampled_means(values, "x", [list(first), list(second)], 30_000)
    assert found.shape[1] == pytest.approx(30_000 * len(every) / 27, rel=0.01)
    pairs = [tuple(pair) for pair in found.T.round(9)]
    assert set(pairs) == set(every)
    for pair in set(every):
        assert pairs.count(pair) / len(pairs) == pytest.approx(every.count(pair) / len(every), abs=0.01)


def test_single_items_are_clusters_of_one() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert np.array_equal(resampled_means([values], "th"), resampled_means([values], "th", [range(30)]))


def coverage(studies: int, clusters: int, each: int, clustered: bool) -> float:
    """Of intervals for a true difference of 0, where the items of a cluster have most of their noise in common."""
    generator = np.random.default_rng(1)
    of = np.repeat(np.arange(clusters), each)
    hits = 0
    for n in range(studies):
        values = generator.normal(size=clusters)[of] + 0.3 * generator.normal(size=len(of))
        found = bootstrap_interval(values, str(n), of.tolist() if clustered else None, resamples=400)
        hits += found.low <= 0 <= found.high
    return hits / studies


def test_clustered_intervals_hold_where_those_of_items_do_not() -> None:
    """300 studies of 40 questions in 5 phrasings each: about 95 % against about 60 %."""
    assert 0.90 <= coverage(300, 40, 5, clustered=True) <= 0.98
    assert coverage(300, 40, 5, clustered=False) < 0.75


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: t_interval([1.0]), "differences over training seeds: 1 value where at least 2 are needed"),
        (lambda: t_interval([1.0, inf]), "value 1 is inf; expected finite numbers"),
        (lambda: t_interval([1.0, 2.0], 95), "level: expected a number between 0 and 1, found 95"),
        (lambda: t_quantile(0.95, 0), "degrees of freedom: expected a whole number of at least 1"),
        (lambda: bootstrap_interval([], "x"), "differences: 0 values where at least 1 are needed"),
        (lambda: bootstrap_interval([1.0], "x", resamples=0), "resamples: expected a whole number"),
    ],
)
def test_what_cannot_be_computed_is_said(call: object, expected: str) -> None:
    with pytest.raises(DudiError) as caught:
        call()  # type: ignore[operator]
    assert expected in str(caught.value)


def test_where_an_interval_lies() -> None:
    assert [Interval(0.0, low, high, 2).side for low, high in ((0.1, 1), (-1, -0.1), (0, 1), (-1, 0))] == [
        "above 0",
        "below 0",
        "contains 0",
        "contains 0",
    ]
