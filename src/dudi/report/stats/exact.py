"""Tests for few training seeds that list every arrangement, what is the least they can say, and Holm's correction."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from dudi.errors import DudiError
from dudi.report.stats.numbers import Floats, Numbers, positive, row

MOST = 200_000
"""Arrangements that are listed: 10 seeds against 10, or 17 pairs."""


def permutation_p(a: Numbers, b: Numbers) -> float:
    """The two-sided p of Fisher's exact permutation test for a difference of means; seeds need not be paired.

    The share of the C(n + m, n) ways to call n of all scores A's in which the means differ at least as much as they do.
    Raises `DudiError` where there are more than `MOST`.
    """
    ours, theirs = row(a, "scores of A"), row(b, "scores of B")
    n, m = len(ours), len(theirs)
    _check_listed(comb(n + m, n), f"{n} scores against {m}")
    pooled = np.concatenate([ours, theirs])
    pooled = pooled - pooled.mean()  # so that the two means differ by a multiple of either sum
    chosen = np.array(list(combinations(range(n + m), n)))
    return _share_as_large(pooled[chosen].sum(axis=1), float(pooled[:n].sum()), pooled)


def sign_flip_p(differences: Numbers) -> float:
    """The two-sided p of Fisher's exact test for paired differences, each of which could have had either sign.

    The share of the 2^n choices of signs in which the mean is at least as far from 0. Raises `DudiError` where there
    are more than `MOST`.
    """
    values = row(differences, "differences")
    n = len(values)
    _check_listed(2**n, f"{n} pairs")
    signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    return _share_as_large(signs @ values, float(values.sum()), values)


def smallest_p(n: int, m: int | None = None) -> float:
    """The least p that `permutation_p` can give for n scores against m (by default n), however far apart they are.

    1 / C(n + m, n), and twice that for n = m, where each arrangement has its mirror image: 1/35 for four against four.
    """
    m = n if m is None else m
    positive(min(n, m), "scores")
    return (2 if n == m else 1) / comb(n + m, n)


def holm(ps: Numbers) -> tuple[float, ...]:
    """Adjusted p-values, in the order given, of which those below a level err together at most that often (Holm 1979).

    The i-th smallest of k is multiplied by k - i + 1; none becomes smaller than one before it, or larger than 1.
    """
    values = row(ps, "p-values")
    if ((values < 0) | (values > 1)).any():
        raise DudiError(f"p-values: expected numbers from 0 to 1, found {values.tolist()}")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return tuple(adjusted.tolist())


def _check_listed(arrangements: int, what: str) -> None:
    if arrangements > MOST:
        raise DudiError(f"an exact test of {what} has {arrangements:,} arrangements; expected at most {MOST:,}")


def _share_as_large(found: Floats, observed: float, values: Floats) -> float:
    """Sums at least as far from 0 as the observed one; those that differ by rounding alone count as equal."""
    slack = 1e-9 * float(np.abs(values).max())
    return float(np.mean(np.abs(found) >= abs(observed) - slack))
