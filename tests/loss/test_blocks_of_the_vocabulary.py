"""A chunk is walked in blocks that stay in cache: with a real vocabulary each block reads its own labels and hidden
states. A small vocabulary fits into one block, so that small tests see none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kit
import pytest
import torch

import dudi.loss.chunked
from dudi.loss.chunked import Positions, Term, Whole, score
from dudi.loss.head import Head
from dudi.loss.losses import nll, reverse_kl

QWEN = 151_936


def test_a_real_vocabulary() -> None:
    """Rows of two views, several blocks a chunk and several chunks, against the whole logits and autograd."""
    g = torch.Generator().manual_seed(3)
    sizes, chunk, h = (9, 8), 8, 4
    hidden = torch.randn(sum(sizes), h, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(QWEN, h, generator=g, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(sizes[0], h, generator=g, dtype=torch.float64)
    labels = [torch.randint(0, QWEN, (n,), generator=g) for n in sizes]
    weights = [torch.rand(n, generator=g, dtype=torch.float64) for n in (*sizes, sizes[1])]
    head, teacher_head = Head(weight, None, QWEN), Head(weight.detach().flip(0), None, QWEN)
    assert dudi.loss.chunked._block(torch.empty(chunk, QWEN, device="meta")) < min(chunk, *sizes)
    views = [
        Positions(labels[0], (Term(nll, weights[0]), Term(reverse_kl, weights[0])), teacher),
        Positions(labels[1], (Term(nll, weights[1]),), None, torch.arange(sizes[1])),  # each token a response
    ]
    whole = Whole((1,), sizes[1], lambda log_p: {1: weights[2]})
    found = score(hidden, head, teacher_head, views, chunk, measure=True, whole=whole)
    found.loss.backward()
    got = hidden.grad.clone(), weight.grad.clone()  # type: ignore[union-attr]
    hidden.grad = weight.grad = None

    log_p = torch.log_softmax(hidden @ weight.T, -1)
    log_q = torch.log_softmax(teacher @ teacher_head.weight.T, -1)
    every = torch.cat(labels)
    at = log_p[torch.arange(len(every)), every]
    first, second = at.split(sizes)
    kl = (log_p[: sizes[0]].exp() * (log_p[: sizes[0]] - log_q)).sum(-1)
    loss = (weights[0] * (kl - first)).sum() - (weights[1] * second).sum()
    (loss + (weights[2] * second).sum()).backward()  # a slope changes the gradient only
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(found.values[0], torch.stack((-first, kl)).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.values[1], -second[None].detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.log_p[1], second.detach(), rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(got, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    entropy = -(log_p.exp() * log_p).sum(-1)[: sizes[0]]
    torch.testing.assert_close(found.measures[0]["entropy_student"], entropy.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "method",
    [{"name": "dudi"}, {"name": "gkd", "lam": 0.0}, {"name": "dft"}],
    ids=lambda method: method["name"],
)
def test_the_size_of_a_block_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    """A whole step, in float64: blocks of a few rows, several in each chunk, give the loss and gradients of one."""
    rows = 3
    whole = kit.step(kit.trainer(tmp_path / "whole", method, head_chunk=8))
    walked: list[int] = []
    block = dudi.loss.chunked._block
    monkeypatch.setattr(dudi.loss.chunked, "_CPU_BLOCK", rows * kit.VOCAB)
    monkeypatch.setattr(dudi.loss.chunked, "_block", lambda product: walked.append(block(product)) or walked[-1])
    small = kit.step(kit.trainer(tmp_path / "small", method, head_chunk=8))
    assert walked and set(walked) == {rows}
    assert small[0] == pytest.approx(whole[0], rel=1e-12)
    assert small[1].keys() == whole[1].keys()
    for name, grad in whole[1].items():
        torch.testing.assert_close(small[1][name], grad, rtol=1e-9, atol=1e-12 * float(grad.abs().max()) + 1e-15)
