"""How far a measured plan may be off: by how the steps that were drawn differ, and by how far off plans have been.

The second counts however alike the steps are: caches and clocks of a machine change, a student that trains says other
things, and first steps, the card and the summary are left out.
"""

from __future__ import annotations

from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from dudi.report.stats.intervals import t_quantile

LEVEL = 0.95
"""The share of runs that a range is meant to hold."""
RUNS = ((10.4, 12.0), (16.5, 18.3), (17.9, 17.1), (30.4, 33.7), (50.3, 48.2), (52.7, 55.8))
"""CPU seconds as they were measured for a whole run, and as that run took: `benchmarks/plan.py` (docs/plan.md)."""
OFF = t_quantile(LEVEL, len(RUNS)) * sqrt(sum(log(took / measured) ** 2 for measured, took in RUNS) / len(RUNS))
"""What another run may be off by, as a logarithm, if plans are too low as often as too high."""


def of_mean(values: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Half of the interval of a mean [2] of all, from these few of them [n, 2], drawn without replacement. One of
    several tells nothing of how they differ: then it is as much as the mean."""
    few = len(values)
    if few >= number:
        return np.zeros(2)
    if few == 1:
        return values[0]
    return np.asarray(t_quantile(LEVEL, few - 1) * values.std(axis=0, ddof=1) * sqrt(1 / few - 1 / number))


def ends(total: NDArray[np.float64], apart: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The range of a total. apart: half of its interval, as far as the drawn steps tell."""
    factor = np.exp(np.hypot(OFF, apart / np.maximum(total, 1e-9)))
    return total / factor, total * factor
