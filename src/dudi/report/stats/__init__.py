"""Statistics of few training seeds and many items, on NumPy alone: pure functions, every random number from a seed.

`aso`          Almost Stochastic Order, which the paper prints, and how often it sees a difference where there is none
`intervals`    paired differences with intervals: a bootstrap over items or clusters of them, Student's t over seeds
`verdicts`     the rule for several claims from few seeds: paired t tests, Holm, two looks; Kendall's tau
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
    t_tails,
)
from dudi.report.stats.verdicts import LOOKS, Judged, Look, error_rate, judge, kendall_tau, power, smallest_effect

__all__ = [
    "LOOKS",
    "Interval",
    "Judged",
    "Look",
    "bonferroni",
    "bootstrap_interval",
    "eps_min",
    "error_rate",
    "false_positive_rate",
    "holm",
    "judge",
    "kendall_tau",
    "null_eps_min",
    "percentile_interval",
    "permutation_p",
    "power",
    "resampled_means",
    "sign_flip_p",
    "smallest_effect",
    "smallest_p",
    "t_interval",
    "t_quantile",
    "t_tails",
    "violation_ratio",
]
