"""The metrics: how answers are scored. One class in one file each, and one line in `METRICS`. No torch.

docs/evaluation.md says how to add one.
"""

from __future__ import annotations

from dudi.evals.metrics.choice import Choice
from dudi.evals.metrics.choice_loglik import ChoiceLoglik, ChoiceLoglikNorm
from dudi.evals.metrics.chrf import Chrf
from dudi.evals.metrics.constraints import ConstraintsMet
from dudi.evals.metrics.exact import Exact, ExactAmong
from dudi.evals.metrics.metric import Metric
from dudi.evals.metrics.rouge_l import RougeL
from dudi.evals.metrics.token_f1 import TokenF1

METRICS: dict[str, Metric] = {
    "choice": Choice(),
    "choice_loglik": ChoiceLoglik(),
    "choice_loglik_norm": ChoiceLoglikNorm(),
    "exact": Exact(),
    "exact_among": ExactAmong(),
    "token_f1": TokenF1(),
    "rouge_l": RougeL(),
    "chrf": Chrf(),
    "constraints": ConstraintsMet(),
}
"""By the name that a task of benchmark.json gives."""
