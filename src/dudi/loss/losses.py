"""The losses, each as its value and its gradient. Unreduced: masks, counts and means live in `dudi.loss.objective`.

Shapes: n tokens, V vocabulary entries. A per-token loss reads the log-probabilities of student and teacher and returns

    value [n]    the loss of each token,
    grad  [n, V] d value / d student logits (the gradient through the softmax is in it).

Gradients are closed forms so that `dudi.loss.chunked` needs no graph over the vocabulary; tests compare each with
autograd. A loss of your own needs no closed form: see `by_autograd`. p is the student's distribution, q the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dudi.signals import Loss, TokenSignal

TokenLoss = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]
"""(log p [n, V], log q [n, V] or None, labels [n]) -> (value [n], grad [n, V])."""

MarginLoss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""margin [rows] -> (value [rows], d value / d margin [rows])."""


def nll(log_p: Tensor, log_q: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, -log p(y_t): equation 1 with w = 1. Gradient p - onehot(y_t)."""
    return -_at(log_p, labels), _minus_onehot(log_p.exp(), labels)


def dft(log_p: Tensor, log_q: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """-sg(p(y_t)) log p(y_t): equation 1 with w per token, as in DFT's own code. Gradient p(y_t) (p - onehot(y_t))."""
    log_p_y = _at(log_p, labels)
    w = log_p_y.exp()
    return -w * log_p_y, _minus_onehot(log_p.exp(), labels) * w[:, None]


def reverse_kl(log_p: Tensor, log_q: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || teacher) = sum_v p (log p - log q). Gradient p (log p - log q - KL)."""
    assert log_q is not None
    p, ratio = log_p.exp(), log_p - log_q
    kl = (p * ratio).sum(-1)
    return kl, ratio.sub_(kl[:, None]).mul_(p)


def forward_kl(log_p: Tensor, log_q: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) = sum_v q (log q - log p). Gradient p - q."""
    assert log_q is not None
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(-1), log_p.exp().sub_(q)


def jsd(log_p: Tensor, log_q: Tensor | None, labels: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student (GKD's definition).
    Gradient (1 - beta) p (log p - log m - KL(student || M))."""
    assert log_q is not None
    b = log_p.new_tensor(beta)
    log_m = torch.logaddexp(log_q + b.log(), log_p + (1 - b).log())
    p, q, ratio = log_p.exp(), log_q.exp(), log_p - log_m
    student = (p * ratio).sum(-1)
    teacher = (q * (log_q - log_m)).sum(-1)
    return b * teacher + (1 - b) * student, ratio.sub_(student[:, None]).mul_(p).mul_(1 - b)


def spin(margin: Tensor) -> tuple[Tensor, Tensor]:
    """SPIN's logistic loss of the margin [rows], -logsigmoid(margin), and its derivative (equation 2, sign corrected).

    margin = beta [(log S(y|x) - log S(y'|x)) - (log R(y|x) - log R(y'|x))]. The paper prints the ratio upside down:
    minimising that raises the model's own y' and lowers y, at the same loss value.
    """
    return F.softplus(-margin), -torch.sigmoid(-margin)


def by_autograd(value: Callable[[Tensor, Tensor | None, Tensor], Tensor]) -> TokenLoss:
    """A `TokenLoss` from a differentiable function that returns values only: to try an idea without a derivation."""

    def loss(log_p: Tensor, log_q: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = log_p.detach().requires_grad_()
            values = value(torch.log_softmax(logits, -1), log_q, labels)
            (grad,) = torch.autograd.grad(values.sum(), logits)
        return values.detach(), grad

    return loss


NAMED: dict[Loss, Callable[..., tuple[Tensor, Tensor]]] = {
    Loss.NLL: nll,
    Loss.DFT: dft,
    Loss.REVERSE_KL: reverse_kl,
    Loss.FORWARD_KL: forward_kl,
    Loss.JSD: jsd,
}


def token_loss(signal: TokenSignal) -> TokenLoss:
    """The loss that a token signal names, or its own, with its arguments."""
    function = NAMED[signal.loss] if isinstance(signal.loss, Loss) else signal.loss
    return partial(function, **signal.arguments) if signal.arguments else function


def _at(log_p: Tensor, labels: Tensor) -> Tensor:
    return log_p.gather(-1, labels[:, None]).squeeze(-1)


def _minus_onehot(p: Tensor, labels: Tensor) -> Tensor:
    """p - onehot(labels), in place of p."""
    return p.scatter_add_(-1, labels[:, None], p.new_full((len(labels), 1), -1.0))
