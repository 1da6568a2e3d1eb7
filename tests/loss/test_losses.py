"""Every closed-form gradient against autograd of the formula, and the chunked head against the plain one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from kit.oracle import cross_entropy, divergence
from torch import Tensor

from dudi.loss.chunked import Positions, Scored, Term, Whole, response_log_probs, score
from dudi.loss.head import Head
from dudi.loss.losses import TokenLoss, by_autograd, dft, forward_kl, jsd, nll, reverse_kl, spin, token_loss
from dudi.methods import Loss, Response, TokenSignal, View

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log p, log q, labels) -> value of each token, differentiable."""
BETAS = (0.1, 0.5, 0.8)


def label_term(name: str) -> Formula:
    return lambda log_p, log_q, labels: cross_entropy(name, log_p[torch.arange(len(labels)), labels])


def divergence_term(name: str, beta: float = 0.5) -> Formula:
    return lambda log_p, log_q, labels: divergence(name, log_p, log_q, beta)


def jsd_of(beta: float) -> TokenLoss:
    return lambda log_p, log_q, labels: jsd(log_p, log_q, labels, beta)


LOSSES: dict[str, tuple[TokenLoss, Formula]] = {
    "nll": (nll, label_term("nll")),
    "dft": (dft, label_term("dft")),
    "reverse_kl": (reverse_kl, divergence_term("reverse_kl")),
    "forward_kl": (forward_kl, divergence_term("forward_kl")),
    **{f"jsd-{beta}": (jsd_of(beta), divergence_term("jsd", beta)) for beta in BETAS},
}


def draws(seed: int, n: int = 7, vocab: int = 311, sharpness: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels."""
    g = torch.Generator().manual_seed(seed)
    logits = [sharpness * torch.randn(n, vocab, generator=g, dtype=torch.float64) for _ in range(2)]
    labels = torch.randint(0, vocab, (n,), generator=g)
    labels[:3] = logits[0][:3].argmax(-1)  # likely ones too
    return logits[0], logits[1], labels


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 12.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_closed_form_is_the_gradient_of_its_formula(name: str, sharpness: float) -> None:
    loss, formula = LOSSES[name]
    s, t, labels = draws(0, sharpness=sharpness)
    log_q = torch.log_softmax(t, -1)
    s.requires_grad_()
    wanted = formula(torch.log_softmax(s, -1), log_q, labels)
    (grad,) = torch.autograd.grad(wanted.sum(), s)
    value, found = loss(torch.log_softmax(s.detach(), -1), log_q.clone(), labels)
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-11, atol=1e-13)
    most = float(grad.abs().max())  # a sharp JSD's small entries cancel, on one CPU more than on another
    torch.testing.assert_close(found, grad, rtol=1e-9, atol=1e-11 * most)
    assert float(grad.abs().max()) > 1e-5
    # through a softmax no gradient changes the sum of the logits
    assert float(found.sum(-1).abs().max()) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_leaves_what_it_reads_alone(name: str) -> None:
    """Several terms may read the same log-probabilities."""
    s, t, labels = draws(1)
    log_p, log_q = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    kept = log_p.clone(), log_q.clone(), labels.clone()
    LOSSES[name][0](log_p, log_q, labels)
    assert all(torch.equal(a, b) for a, b in zip((log_p, log_q, labels), kept, strict=True))


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("nll", "dft")])
def test_divergences_are_zero_where_both_agree_and_positive_elsewhere(name: str) -> None:
    s, t, labels = draws(2)
    log_p = torch.log_softmax(s, -1)
    value, grad = LOSSES[name][0](log_p, log_p.clone(), labels)
    assert float(value.abs().max()) < 1e-13 and float(grad.abs().max()) < 1e-13
    value, grad = LOSSES[name][0](log_p, torch.log_softmax(t, -1), labels)
    assert float(value.min()) > 0.01 and float(grad.abs().max()) > 0.001


def test_divergences_by_hand() -> None:
    """Two outcomes, S = (1/2, 1/2) and T = (1/4, 3/4): which direction is which, and whose share beta is."""
    log_p, log_q = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.25, 0.75]]).double().log()
    y = torch.zeros(1, dtype=torch.long)
    assert reverse_kl(log_p, log_q, y)[0].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert forward_kl(log_p, log_q, y)[0].item() == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))
    m = (0.2 * 0.25 + 0.8 * 0.5, 0.2 * 0.75 + 0.8 * 0.5)
    to_teacher = 0.25 * math.log(0.25 / m[0]) + 0.75 * math.log(0.75 / m[1])
    to_student = 0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])
    assert jsd(log_p, log_q, y, 0.2)[0].item() == pytest.approx(0.2 * to_teacher + 0.8 * to_student)
    assert nll(log_p, None, y)[0].item() == pytest.approx(math.log(2))
    assert dft(log_p, None, y)[0].item() == pytest.approx(0.5 * math.log(2))


def test_spin_and_its_derivative() -> None:
    margin = torch.tensor([-30.0, -2.0, -0.1, 0.0, 0.3, 4.0, 30.0], dtype=torch.float64, requires_grad=True)
    wanted = -torch.log(torch.sigmoid(margin))
    (grad,) = torch.autograd.grad(wanted.sum(), margin)
    value, found = spin(margin.detach())
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found, grad, rtol=1e-10, atol=1e-14)
    assert value[3].item() == pytest.approx(math.log(2)) and found[3].item() == pytest.approx(-0.5)
    far = spin(torch.tensor([-1e4, 1e4], dtype=torch.float32))
    assert far[0].tolist() == [1e4, 0.0] and far[1].tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("name", LOSSES)
def test_by_autograd_is_the_closed_form(name: str) -> None:
    loss, formula = LOSSES[name]
    s, t, labels = draws(3)
    log_p, log_q = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    value, grad = loss(log_p, log_q, labels)
    with torch.no_grad():
        automatic = by_autograd(formula)(log_p, log_q, labels)
    torch.testing.assert_close(automatic[0], value, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(automatic[1], grad, rtol=1e-9, atol=1e-13)
    assert not automatic[0].requires_grad and not automatic[1].requires_grad


@pytest.mark.parametrize("name", Loss)
def test_a_signal_gets_the_loss_it_names(name: Loss) -> None:
    s, t, labels = draws(4)
    log_p, log_q = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    arguments = {"beta": 0.8} if name is Loss.JSD else {}
    found = token_loss(TokenSignal("signal", 1.0, name, View(Response.GOLD), arguments))(log_p, log_q, labels)
    wanted = LOSSES["jsd-0.8" if name is Loss.JSD else name.value][0](log_p, log_q, labels)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


# ── the chunked head ─────────────────────────────────────────────────────────────────────────────────────────────────
N, H, HT, V, ROWS = (23, 11, 0), 12, 20, 301, 6
"""Positions of three views, one of them empty; hidden sizes of student and teacher; vocabulary."""
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 4.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 6.0},
}


class Case:
    """Hidden states, heads and views of one call of `score`, and the same by plain autograd."""

    def __init__(self, kind: str = "plain", dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(11)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        self.options = HEADS[kind]
        self.hidden = normal(sum(N), H).requires_grad_()
        self.weight = normal(V + 9, H).requires_grad_()  # nine rows of padding
        self.bias = normal(V + 9).requires_grad_() if self.options.get("bias") else None
        self.head = Head(self.weight, self.bias, V, self.options.get("scale", 1.0), self.options.get("softcap"))
        self.teacher_weight, self.teacher = normal(V + 20, HT) / 2, normal(N[0], HT)
        self.teacher_head = Head(self.teacher_weight, None, V)
        self.labels = [torch.randint(0, V, (n,), generator=g) for n in N]
        self.weights = [torch.rand(N[0], generator=g, dtype=torch.float64) for _ in range(3)]
        self.weights[1][:9] = 0.0  # masked
        # responses of 0 to many tokens, and a row that has none in either view
        self.rows = [torch.randint(0, ROWS - 1, (n,), generator=g).sort().values for n in N[:2]]
        self.whole: Whole | None = Whole((0, 1), ROWS, self.slopes)
        self.names = ("reverse_kl", "jsd-0.1", "dft")
        terms = tuple(Term(LOSSES[name][0], w) for name, w in zip(self.names, self.weights, strict=True))
        self.views = [
            Positions(self.labels[0], terms, self.teacher, self.rows[0]),
            Positions(self.labels[1], (), None, self.rows[1]),
            Positions(self.labels[2], (Term(nll, torch.zeros(0)),)),
        ]

    def score(self, chunk: int = 256, measure: bool = False) -> Scored:
        return score(self.hidden, self.head, self.teacher_head, self.views, chunk, measure, self.whole)

    @staticmethod
    def slopes(log_p: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Of the sum over rows of 2 softplus(-margin / 4), margin = log p of the first response - of the second."""
        slope = -torch.sigmoid(-(log_p[0] - log_p[1]) / 4) / 2
        return {0: slope, 1: -slope}

    def log_p(self) -> Tensor:
        """Logits of all positions, padding sliced off, as a model with such a head has them."""
        logits = self.hidden @ self.weight.T
        if self.bias is not None:
            logits = logits + self.bias
        logits = logits[:, :V] * self.options.get("scale", 1.0)
        if self.options.get("softcap"):
            logits = self.options["softcap"] * torch.tanh(logits / self.options["softcap"])
        return torch.log_softmax(logits, -1)

    def log_q(self) -> Tensor:
        return torch.log_softmax((self.teacher @ self.teacher_weight.T)[:, :V], -1)

    def responses(self) -> list[Tensor]:
        """log p(response) by view, [ROWS]."""
        at = self.log_p()[: sum(N[:2])].gather(1, torch.cat(self.labels[:2])[:, None])[:, 0].double()
        both = zip(self.rows, at.split(N[:2]), strict=True)
        return [at.new_zeros(ROWS).index_add(0, row, found) for row, found in both]

    def plain(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(loss, that of whole responses, values of the first view's terms)."""
        log_p, log_q = self.log_p(), self.log_q()
        values = [LOSSES[name][1](log_p[: N[0]], log_q, self.labels[0]) for name in self.names]
        loss = sum((w * v).sum() for w, v in zip(self.weights, values, strict=True))
        first, second = self.responses()
        return loss, 2 * torch.nn.functional.softplus(-(first - second) / 4).sum(), values

    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight] + ([self.bias] if self.bias is not None else [])


@pytest.mark.parametrize("chunk", [1, 3, 16, 17, 1000])
@pytest.mark.parametrize("kind", HEADS)
def test_score_is_plain_autograd_at_any_chunk(kind: str, chunk: int) -> None:
    """Values, loss, log p of whole responses, and gradients of hidden states, weight and bias, to which whole responses
    add although their loss is not in the loss."""
    case = Case(kind)
    loss, whole, values = case.plain()
    wanted = torch.autograd.grad(3.0 * (loss + whole), case.leaves())
    scored = case.score(chunk)
    found = torch.autograd.grad(3.0 * scored.loss, case.leaves())
    assert scored.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert [len(v) for v in scored.values] == [3, 0, 1] and len(scored.values[2][0]) == 0
    for place, response in enumerate(case.responses()):
        torch.testing.assert_close(scored.log_p[place], response.detach(), rtol=1e-11, atol=1e-12)
    for a, b in zip(scored.values[0], values, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-11, atol=1e-13)
        assert not a.requires_grad
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert float(found[1][V:].abs().max()) == 0.0, "padding has a gradient"


def test_whole_responses_alone() -> None:
    case = Case()
    case.views = [replace(view, terms=(), teacher=None) for view in case.views]
    _, whole, _ = case.plain()
    wanted = torch.autograd.grad(whole, case.leaves())
    scored = case.score(5)
    assert scored.loss.item() == 0.0
    for a, b in zip(torch.autograd.grad(scored.loss, case.leaves()), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert float(b.abs().max()) > 0.1


@pytest.mark.parametrize("kind", HEADS)
def test_without_gradients_the_values_are_the_same(kind: str) -> None:
    case = Case(kind)
    with_gradients = case.score(5, measure=True)
    with torch.no_grad():
        without = case.score(5, measure=True)
    assert torch.equal(without.loss, with_gradients.loss.detach()) and not without.loss.requires_grad
    for a, b in zip(without.values, with_gradients.values, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for m, n in zip(without.measures, with_gradients.measures, strict=True):
        assert m.keys() == n.keys() and all(torch.equal(m[k], n[k]) for k in m)


def test_a_frozen_head_still_lets_gradients_through_to_the_hidden_states() -> None:
    case = Case("bias")
    wanted = torch.autograd.grad(case.score().loss, case.hidden)[0]
    case.head = replace(case.head, weight=case.weight.detach(), bias=case.bias.detach())
    case.score().loss.backward()
    torch.testing.assert_close(case.hidden.grad, wanted)


def test_score_in_float32_is_close_to_float64() -> None:
    case, exact = Case("all", torch.float32), Case("all")
    with torch.no_grad():
        for mine, theirs in zip(exact.leaves(), case.leaves(), strict=True):
            mine.copy_(theirs)
        exact.teacher_weight.copy_(case.teacher_weight)
        exact.teacher.copy_(case.teacher)
    loss, whole, _ = exact.plain()
    scored = case.score(5)
    assert scored.loss.dtype is torch.float32
    assert scored.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    wanted = torch.autograd.grad(loss + whole, exact.leaves())
    for a, b in zip(torch.autograd.grad(scored.loss, case.leaves()), wanted, strict=True):
        assert a.dtype is torch.float32
        assert float((a.double() - b).norm()) < 1e-5 * float(b.norm())


@pytest.mark.parametrize("kind", HEADS)
def test_response_log_probs(kind: str) -> None:
    """And bit for bit those of the pass, whatever a chunk holds."""
    case = Case(kind)
    hidden = list(case.hidden.split(N))[:2]
    for chunk in (1, 7, 1000):
        found = response_log_probs(hidden, case.head, case.views[:2], ROWS, chunk)
        scored = case.score(chunk)
        for place, (got, wanted) in enumerate(zip(found, case.responses(), strict=True)):
            torch.testing.assert_close(got, wanted.detach(), rtol=1e-11, atol=1e-12)
            assert torch.equal(got, scored.log_p[place])
    assert response_log_probs([], case.head, [], 0) == []


def test_measures_by_brute_force() -> None:
    """Entropies in nats, overlap@16 and the student's mass on the shared tokens, position by position."""
    case = Case("bias")
    measures = case.score(5, measure=True).measures
    assert [sorted(m) for m in measures[1:]] == [[], []], "views without a teacher have none"
    found = {name: values.tolist() for name, values in measures[0].items()}
    log_p, log_q = case.log_p()[: N[0]].tolist(), case.log_q().tolist()
    for n in range(N[0]):
        top = [set(sorted(range(V), key=lambda v, row=row: -row[v])[:16]) for row in (log_p[n], log_q[n])]
        shared = top[0] & top[1]
        assert found["entropy_student"][n] == pytest.approx(-sum(math.exp(x) * x for x in log_p[n]))
        assert found["entropy_teacher"][n] == pytest.approx(-sum(math.exp(x) * x for x in log_q[n]))
        assert found["overlap"][n] == pytest.approx(len(shared) / 16)
        assert found["overlap_mass"][n] == pytest.approx(sum(math.exp(log_p[n][v]) for v in shared))
    assert len(set(found["overlap"])) > 1
    assert case.score(5).measures == [{}, {}, {}]


def test_a_teacher_like_the_student_overlaps_entirely() -> None:
    case = Case()
    case.views = [Positions(case.labels[0], (), case.hidden.detach()[: N[0]])]
    case.hidden = case.hidden[: N[0]]
    case.teacher_head, case.whole = case.head, None
    measure = case.score(measure=True).measures[0]
    assert measure["overlap"].tolist() == [1.0] * N[0]
    torch.testing.assert_close(measure["entropy_student"], measure["entropy_teacher"])
