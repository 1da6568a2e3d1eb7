"""The losses under bfloat16 autocast: products are rounded, and nothing else is.

The reference rounds what a product reads and gives, and is in float64 everywhere else. Hidden states and weights are
small dyadic numbers, so that the sums inside of the products are exact and each rounding falls the same way.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dudi.loss.chunked import Positions, Term, response_log_probs, score
from dudi.loss.head import Head
from dudi.loss.losses import TokenLoss, dft, forward_kl, nll, reverse_kl

H, HT, V, N = 16, 24, 301, 40
HEADS = {"plain": (1.0, None), "scale": (0.3, None), "softcap": (1.0, 4.0), "both": (1.7, 6.0)}
LOSSES: dict[str, TokenLoss] = {"nll": nll, "dft": dft, "reverse_kl": reverse_kl, "forward_kl": forward_kl}
SINGLE = 2e-6
"""What float32 may cost, as a share of the largest value; bfloat16 would cost a thousand times as much."""


def rounded(tensor: Tensor) -> Tensor:
    """To bfloat16 and back to float64."""
    return tensor.bfloat16().double()


def dyadic(seed: int, *shape: int) -> Tensor:
    """Multiples of 1/8 in [-1, 1], in float32."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=g).float() / 8


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def logits_of(hidden: Tensor, weight: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits in float64 from a product that was rounded."""
    logits = rounded(rounded(hidden) @ rounded(weight).T) * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def assert_close(found: Tensor, wanted: Tensor, share: float = SINGLE) -> None:
    """Within a share of the largest entry."""
    assert float((found.double() - wanted).abs().max()) <= share * float(wanted.abs().max())


class Case:
    """Student and teacher, as the trainer has them: float32 weights under autocast, hidden states of either dtype."""

    def __init__(self, kind: str) -> None:
        self.scale, self.softcap = HEADS[kind]
        self.hidden, self.weight = dyadic(1, N, H).requires_grad_(), dyadic(2, V, H).requires_grad_()
        self.theirs, self.teacher_weight = dyadic(3, N, HT), dyadic(4, V, HT)
        self.labels = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(5))
        self.head = Head(self.weight, None, V, self.scale, self.softcap)
        self.teacher_head = Head(self.teacher_weight, None, V, self.scale, self.softcap)
        self.logits = logits_of(self.hidden.detach(), self.weight.detach(), self.scale, self.softcap)
        self.log_p = torch.log_softmax(self.logits, -1)
        self.log_q = torch.log_softmax(logits_of(self.theirs, self.teacher_weight, self.scale, self.softcap), -1)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", LOSSES)
def test_only_products_are_rounded(name: str, kind: str) -> None:
    """Values to float32's own precision; each gradient entry is what a product of bfloat16 numbers gives."""
    case = Case(kind)
    weight = torch.linspace(0.5, 1.5, N, dtype=torch.float64) / N
    with bfloat16():
        term = Term(LOSSES[name], weight)
        found = score(case.hidden, case.head, case.teacher_head, [Positions(case.labels, (term,), case.theirs)], 16)
    found.loss.backward()
    value, grad = LOSSES[name](case.log_p, case.log_q, case.labels)
    assert_close(found.values[0][0], value)
    assert found.loss.item() == pytest.approx((value * weight).sum().item(), rel=1e-6)
    # d loss / d product, which is all that is rounded on the way back
    grad = grad * weight[:, None] * case.scale
    if case.softcap is not None:
        grad = grad * (1 - (case.logits / case.softcap) ** 2)
    grad = rounded(grad)
    d_hidden = rounded(grad @ rounded(case.weight.detach()))
    d_weight = sum(rounded(grad[k : k + 16].T @ rounded(case.hidden.detach()[k : k + 16])) for k in range(0, N, 16))
    assert case.hidden.grad is not None and case.weight.grad is not None
    # a float32 sum falls on the other side of a rounding once in a while: on average far less than a rounding
    for got, wanted in ((case.hidden.grad, d_hidden), (case.weight.grad, d_weight)):
        assert got.dtype is torch.float32
        error = (got.double() - wanted).norm() / wanted.norm()
        assert float(error) < 2**-12, float(error)


@pytest.mark.parametrize("kind", HEADS)
def test_log_probabilities_of_labels_are_not_rounded(kind: str) -> None:
    """What SPIN's margins are made of."""
    case = Case(kind)
    with bfloat16():
        each = Positions(case.labels, row=torch.arange(N))
        (found,) = response_log_probs([case.hidden], case.head, [each], N, 16)
    assert_close(found, case.log_p[torch.arange(N), case.labels])


@pytest.mark.parametrize("chunk", [1, 7])
def test_the_gradient_of_the_head_is_added_up_in_float32(chunk: int) -> None:
    """1,024 positions that all push the same way: a bfloat16 sum stands still once it is 256 times what is added."""
    n = 1024
    hidden, weight = dyadic(1, 1, H).expand(n, H).clone().requires_grad_(), dyadic(2, V, H).requires_grad_()
    labels = torch.full((n,), 5)
    with bfloat16():
        term = Term(nll, torch.full((n,), 1 / n, dtype=torch.float64))
        found = score(hidden, Head(weight, None, V), None, [Positions(labels, (term,))], chunk)
    found.loss.backward()
    log_p = torch.log_softmax(logits_of(hidden.detach(), weight.detach(), 1.0, None), -1)
    grad = rounded(nll(log_p, None, labels)[1] / n)
    wanted = grad.T @ hidden.detach().double()
    assert weight.grad is not None
    error = (weight.grad.double() - wanted).norm() / wanted.norm()
    assert float(error) < 2**-8, float(error)  # one rounding of each product; of a thousand sums, none
