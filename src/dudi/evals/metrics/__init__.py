"""The metrics: how answers are scored. One class in one file each, and one line in `METRICS`. No torch.

docs/evaluation.md says how to add one.
"""

from __future__ import annotations

from dudi.evals.metrics.choice import Choice
from dudi.evals.metrics.chrf import Chrf
from dudi.evals.metrics.constraints import ConstraintsMet
from dudi.evals.metrics.exact import Exact
from dudi.evals.metrics.metric import Metric

METRICS: dict[str, Metric] = {
    "choice": Choice(),
    "exact": Exact(),
    "chrf": Chrf(),
    "constraints": ConstraintsMet(),
}
"""By the name that a task of benchmark.json gives."""
