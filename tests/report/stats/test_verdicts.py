"""Verdicts: t tests against known quantiles, the rule step by step, what it errs and finds in simulated studies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import sqrt

import numpy as np
import pytest

from dudi.errors import DudiError
from dudi.report.stats import (
    LOOKS,
    Look,
    error_rate,
    judge,
    kendall_tau,
    power,
    smallest_effect,
    t_interval,
    t_quantile,
    t_tails,
)
from dudi.report.stats.verdicts import CONTRADICTS, OPEN, REPLICATES, claim_p

FIRST, SECOND = Look(4, 0.01), Look(8, 0.04)


def spread(mean: float, deviation: float, n: int) -> list[float]:
    """n numbers of exactly this mean and this standard deviation."""
    base = np.arange(n) - (n - 1) / 2
    return (mean + deviation * base / base.std(ddof=1)).tolist()


# ── t ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(  # of a printed table: degrees of freedom, t, tail
    ("freedom", "t", "tail"),
    [(1, 6.314, 0.05), (3, 3.182, 0.025), (3, 5.841, 0.005), (7, 2.998, 0.01), (7, 1.895, 0.05)],
)
def test_tails_are_those_of_the_tables(freedom: int, t: float, tail: float) -> None:
    n = freedom + 1
    differences = spread(t / sqrt(n), 1.0, n)
    above, below = t_tails(differences)
    assert above == pytest.approx(tail, rel=2e-3) and below == pytest.approx(1 - tail, rel=1e-3)
    assert t_tails([-d for d in differences]) == (below, above)


def test_a_tail_of_half_the_level_is_where_the_interval_touches_0() -> None:
    at = t_quantile(0.95, 5) / sqrt(6)
    assert t_tails(spread(at, 1.0, 6))[0] == pytest.approx(0.025, abs=1e-9)
    assert t_interval(spread(at, 1.0, 6)).low == pytest.approx(0, abs=1e-9)


def test_differences_without_spread() -> None:
    assert t_tails([0.1 + 0.2, 0.3, 0.3]) == (0.0, 1.0)
    assert t_tails([-2.0, -2.0]) == (1.0, 0.0)
    assert t_tails([0.0, 0.0, 0.0]) == (1.0, 1.0)
    with pytest.raises(DudiError, match="1 value where at least 2"):
        t_tails([1.0])


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_claim_holds_where_all_gaps_are_above_and_fails_where_one_is_below() -> None:
    far, near, under = spread(9, 1, 4), spread(1, 1, 4), spread(-9, 1, 4)
    assert claim_p([far, near]) == (t_tails(near)[0], min(1, 2 * t_tails(far)[1]), 1)
    assert claim_p([far, under]) == (t_tails(under)[0], 2 * t_tails(under)[1], 1)
    assert judge({"a": [far, near]}, 1)["a"].outcome == OPEN
    assert judge({"a": [far, far]}, 1)["a"].outcome == REPLICATES
    assert judge({"a": [far, under]}, 1)["a"].outcome == CONTRADICTS
    assert judge({"a": [far, near]}, 1)["a"].weakest == t_interval(near)


def test_holm_counts_every_declared_claim_tested_or_not() -> None:
    gap = spread(5, 1, 4)
    p = 2 * t_tails(gap)[0]
    assert judge({"a": [gap]}, 1)["a"].p == pytest.approx(p)
    assert judge({"a": [gap]}, 15)["a"].p == pytest.approx(15 * p)
    both = judge({"a": [gap], "b": [spread(50, 1, 4)]}, 15)
    assert both["a"].p == pytest.approx(14 * p) and both["b"].outcome == REPLICATES
    with pytest.raises(DudiError, match="2 claims of 1 that were declared"):
        judge({"a": [gap], "b": [gap]}, 1)


def test_the_second_look_is_for_what_is_open_and_reads_all_eight() -> None:
    decided = [*spread(20, 1, 4), -90.0, -90.0, -90.0, -90.0]
    undecided = spread(3, 1, 8)
    found = judge({"a": [decided], "b": [undecided]}, 15)
    assert found["a"].outcome == REPLICATES and found["a"].look == FIRST, "what came later does not change it"
    assert found["b"].outcome == REPLICATES and found["b"].look == SECOND
    assert found["b"].p == pytest.approx(15 * 2 * t_tails(undecided)[0]), "the decided one still counts"
    assert judge({"b": [undecided[:4]]}, 15)["b"].outcome == OPEN


def test_seeds_between_the_looks_are_not_read() -> None:
    for n in (4, 5, 7):
        assert judge({"a": [spread(0, 1, 4) + [80.0] * (n - 4)]}, 1)["a"].look == FIRST
    assert judge({"a": [spread(0, 1, 3)]}, 1) == {}
    longer = spread(0.5, 1, 8)
    assert judge({"a": [[*longer, 90.0, 91.0]]}, 1) == judge({"a": [longer]}, 1)
    assert judge({"a": [longer, longer[:4]]}, 1)["a"].look == FIRST, "all gaps need the seeds of a look"


def test_levels_of_the_looks_add_up_to_5_percent() -> None:
    assert LOOKS == (FIRST, SECOND) and sum(look.level for look in LOOKS) == pytest.approx(0.05)


@pytest.mark.parametrize("look", LOOKS)
def test_the_smallest_effect_is_where_the_verdict_turns(look: Look) -> None:
    edge = smallest_effect(0.6, look, 15)
    for factor, outcome in ((0.999, OPEN), (1.001, REPLICATES)):
        assert judge({"a": [spread(factor * edge, 0.6, look.seeds)]}, 15, [look])["a"].outcome == outcome


# ── simulated studies ────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_broken_rule_would_be_seen() -> None:
    """Levels ten times as large: the simulation finds what the correction does not hold back."""
    loose = [Look(4, 0.5), Look(8, 0.5)]
    assert error_rate([1] * 5, 60, loose)[1] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 15, [6, 3, 1, 1, 1, 1, 1, 1, 2, 2, 1, 5, 4, 1, 7]])
def test_all_claims_together_err_in_at_most_5_percent(sizes: Sequence[int]) -> None:
    four, eight = error_rate(sizes, 1000)
    assert four <= 0.01 + 0.007 and eight <= 0.05 + 0.014, "each within two standard errors of the simulation"


@pytest.mark.slow
def test_power_grows_with_the_gap_and_the_seeds() -> None:
    rates = {gap: power(gap, 15, 300) for gap in (0.0, 1.5, 4.0)}
    assert all(four <= eight for four, eight in rates.values())
    assert rates[0.0][1] < rates[1.5][1] < rates[4.0][1] and rates[4.0][1] > 0.85


# ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_kendalls_tau_counts_pairs() -> None:
    for order in itertools.permutations(range(4)):
        pairs = list(itertools.combinations(range(4), 2))
        agree = sum((order[j] > order[i]) - (order[j] < order[i]) for i, j in pairs)
        assert kendall_tau(order, range(4)) == pytest.approx(agree / len(pairs))
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / sqrt(2 * 3)), "ties, as tau-b has them"
    assert kendall_tau([1, 1], [1, 2]) is None
    with pytest.raises(DudiError, match="2 values and 3"):
        kendall_tau([1, 2], [1, 2, 3])
