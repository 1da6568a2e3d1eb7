"""A loss of tokens: SFT by the Brier score, sum_v (p_v - onehot_v)^2."""

from torch import Tensor

from dudi.loss.losses import by_autograd
from dudi.methods import GOLD, Method
from dudi.signals import TokenSignal


def score(log_p: Tensor, log_q: Tensor | None, labels: Tensor) -> Tensor:
    """[n]."""
    p = log_p.exp()
    return (p**2).sum(-1) - 2 * p.gather(-1, labels[:, None]).squeeze(-1) + 1


def brier() -> Method:
    """Mean over the tokens of y."""
    signal = TokenSignal("off_policy", 1.0, by_autograd(score), GOLD, teacher=False)
    return Method("brier", "tokens", (signal,), cold_start=False)
