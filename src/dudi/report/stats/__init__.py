"""Statistics of few training seeds and many items, on NumPy alone: pure functions, every random number from a seed.

`aso`          Almost Stochastic Order, which the paper prints, and how often it sees a difference where there is none
`intervals`    paired differences with intervals: a bootstrap over items or clusters of them, Student's t over seeds
`exact`        permutation and sign-flip tests that list every arrangement, and Holm's correction
"""

from dudi.report.stats.aso import (
    bonferroni,
    eps_min,
    false_positive_rate,
    null_eps_min,
    violation_ratio,
)
from dudi.report.stats.exact import holm, permutation_p, sign_flip_p, smallest_p
from dudi.report.stats.intervals import (
    Interval,
    bootstrap_interval,
    percentile_interval,
    resampled_means,
    t_interval,
    t_quantile,
)

__all__ = [
    "Interval",
    "bonferroni",
    "bootstrap_interval",
    "eps_min",
    "false_positive_rate",
    "holm",
    "null_eps_min",
    "percentile_interval",
    "permutation_p",
    "resampled_means",
    "sign_flip_p",
    "smallest_p",
    "t_interval",
    "t_quantile",
    "violation_ratio",
]
