"""Verdicts on several claims from few training seeds: paired t tests, Holm over all claims, two looks at most.

A claim is one or more gaps, each paired by seed and so turned that the claim says: above 0. It holds where all gaps
are above 0 (an intersection-union test, Berger 1982: its p is the largest) and fails where any is below (its p is the
smallest times their number). Twice the smaller of the two is the claim's p, the smaller one its side.

At each look a claim has so many seeds, and the level 0.05 is shared out over the looks (Bonferroni). Within a look Holm
corrects for all claims that were declared, decided or not, and whether or not there are scores for them: one that is
not tested at this look counts with p = 1, which only makes the others harder. So all looks and claims together err in
at most 5 % of studies, under normal noise; `error_rate` and `power` try it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from dudi.errors import DudiError
from dudi.report.stats.exact import holm
from dudi.report.stats.intervals import Interval, t_interval, t_quantile, t_tails
from dudi.report.stats.numbers import Floats, Numbers, between, positive, row

REPLICATES, CONTRADICTS, OPEN = "replicates", "contradicts", "not separable"


@dataclass(frozen=True)
class Look:
    """A look at the scores: of so many seeds, and how often it may err over all claims together."""

    seeds: int
    level: float


LOOKS = (Look(4, 0.01), Look(8, 0.04))
"""Most of the level is kept for the second look: of four seeds hardly any gap can be told from noise."""
Claim = Sequence[Numbers]
"""Gaps, each a difference by seed."""


@dataclass(frozen=True)
class Judged:
    """What was found of a claim: at its last look, with p corrected for all claims. weakest: its gap with the largest
    p of being above 0, over the seeds of that look, with a 95 % interval that is not corrected."""

    outcome: str
    look: Look
    p: float
    weakest: Interval


def claim_p(gaps: Claim) -> tuple[float, float, int]:
    """One-sided p that all gaps are above 0, and that one is below; which gap has the largest p of the first kind."""
    tails = [t_tails(gap) for gap in gaps]
    above, weakest = max((above, -number) for number, (above, _) in enumerate(tails))
    return above, min(1.0, len(tails) * min(below for _, below in tails)), -weakest


def judge(claims: Mapping[str, Claim], family: int, looks: Sequence[Look] = LOOKS) -> dict[str, Judged]:
    """The outcome of each claim that has the seeds of the first look; the others are left out.

    claims: gaps over seeds 0, 1, ..., in this order, as many as there are. family: how many claims were declared. A
    claim that was decided at a look is not looked at again, and seeds between two looks or after the last are not read:
    who looks whenever a seed is done finds something in the end.
    """
    if family < len(claims):
        raise DudiError(f"{len(claims)} claims of {family} that were declared")
    found: dict[str, Judged] = {}
    for look in looks:
        open_ = [name for name in claims if name not in found or found[name].outcome == OPEN]
        read = {name: _first(claims[name], look.seeds) for name in open_}
        there = {name: gaps for name, gaps in read.items() if gaps}
        sides = {name: claim_p(gaps) for name, gaps in there.items()}
        ps = [min(1.0, 2 * min(above, below)) for above, below, _ in sides.values()]
        adjusted = holm([*ps, *[1.0] * (family - len(ps))])
        for (name, gaps), p in zip(there.items(), adjusted[: len(ps)], strict=True):
            above, below, weakest = sides[name]
            outcome = OPEN if p > look.level else REPLICATES if above < below else CONTRADICTS
            found[name] = Judged(outcome, look, p, t_interval(gaps[weakest]))
    return found


def _first(gaps: Claim, seeds: int) -> list[Floats]:
    """The first seeds of every gap; nothing where one has fewer."""
    rows = [row(gap, "differences over training seeds", at_least=2) for gap in gaps]
    return [gap[:seeds] for gap in rows] if min(map(len, rows)) >= seeds else []


def smallest_effect(deviation: float, look: Look, family: int) -> float:
    """The mean of paired differences of this standard deviation from which on a look tells it from 0, were it the
    claim with the smallest p of all: t * s / sqrt(n) at the level over the family."""
    between(deviation, 0, float("inf"), "deviation")
    positive(family, "family")
    return t_quantile(1 - look.level / family, look.seeds - 1) * deviation / sqrt(look.seeds)


# ── what the rule is worth ───────────────────────────────────────────────────────────────────────────────────────────
def error_rate(sizes: Sequence[int], studies: int, looks: Sequence[Look] = LOOKS, seed: int = 0) -> list[float]:
    """How often at least one of several claims, none of which is true, is decided at or before each look.

    sizes: the number of gaps of each claim. All methods are the same: a claim's gaps are between one method and each of
    the others, so they share its noise. Scores are normal; their deviation does not matter.
    """
    return _decided([[0.0] * size for size in sizes], range(len(sizes)), studies, looks, seed)


def power(
    gap: float, family: int, studies: int, sizes: Sequence[int] = (1,), looks: Sequence[Look] = LOOKS, seed: int = 1
) -> list[float]:
    """How often a claim whose gaps are all as large as `gap` standard deviations of a score is decided at or before
    each look, among a family whose other claims are of one gap each and not true."""
    means = [[gap] * sizes[0], *([0.0] for _ in range(family - 1))]
    return _decided(means, [0], studies, looks, seed)


def _decided(
    means: Sequence[Sequence[float]], asked: Sequence[int], studies: int, looks: Sequence[Look], seed: int
) -> list[float]:
    positive(studies, "studies")
    generator = np.random.default_rng([seed, len(means), studies])
    most, counts = max(look.seeds for look in looks), [0] * len(looks)
    for _ in range(studies):
        claims = {}
        for number, gaps in enumerate(means):
            mine = generator.standard_normal(most)
            claims[str(number)] = [mine + mean - generator.standard_normal(most) for mean in gaps]
        judged = judge(claims, len(means), looks)
        when = [judged[str(one)].look for one in asked if judged[str(one)].outcome != OPEN]
        for number, look in enumerate(looks):
            counts[number] += any(at.seeds <= look.seeds for at in when)
    return [count / studies for count in counts]


# ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def kendall_tau(ours: Numbers, theirs: Numbers) -> float | None:
    """Kendall's tau-b of two rows of the same things: 1 for the same order, -1 for the opposite; None where one of
    them has no order, all being equal."""
    a, b = row(ours, "values", at_least=2), row(theirs, "values", at_least=2)
    if len(a) != len(b):
        raise DudiError(f"Kendall's tau of {len(a)} values and {len(b)}: expected as many of both")
    above = np.triu_indices(len(a), 1)
    signs_a, signs_b = (np.sign(one[:, None] - one[None, :])[above] for one in (a, b))
    untied = float(np.abs(signs_a).sum()) * float(np.abs(signs_b).sum())
    return None if untied == 0 else float(signs_a @ signs_b) / sqrt(untied)
