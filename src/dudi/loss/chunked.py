"""Per-token losses from hidden states, a few rows at a time: logits of all positions never exist.

Shapes, as suffixes of names: N response positions of a micro-batch, n those of one view, c rows of a chunk, b rows of a
block, H hidden size of the student, G of the teacher, V vocabulary entries, T terms of a view.

    forward    for each chunk:  logits_cV = hidden_cH @ weight_VH.T;  value_c, grad_cV = loss(logits_cV, ...)
               d hidden_cH = grad_cV @ weight_VH;  d weight_VH += grad_cV.T @ hidden_cH
    backward   both gradients are there already; they are scaled by the incoming gradient and handed to autograd

so each projection is done once, and the peak above the inputs is d weight, two chunks (student and teacher), and under
autocast the heads in bfloat16, cast once for all chunks. Between the products a chunk is walked through in blocks that
stay in cache. Weights of the rows (weight / global count) are folded in beforehand, so that no [V, H] tensor is scaled
afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dudi.loss.head import Head
from dudi.loss.losses import TokenLoss

OVERLAP_K = 16  # Li et al. 2026
_CPU_BLOCK, _GPU_BLOCK = 2**20, 2**24
"""Entries of a block of logits: on a CPU a handful of such blocks stays in cache, on a GPU one is enough work."""
_SUM_ROWS = 2**14
"""Rows of d weight that a product in bfloat16 is added to at a time."""
_NAMES = ("entropy_student", "entropy_teacher", "overlap", "overlap_mass")


@dataclass(frozen=True)
class Term:
    """One per-token loss on one view's positions: sum over n of weight_n loss_n. Mask and 1/count are in the weight."""

    loss: TokenLoss
    weight: Tensor


@dataclass(frozen=True)
class Positions:
    """The response positions of one view. labels [n]; teacher [n, G] or None: the teacher's hidden states there.

    slope [n] or None: coefficient of log p(label) in the loss, for losses of whole sequences; it changes the gradient
    only, since their value is known before.
    """

    labels: Tensor
    terms: tuple[Term, ...] = ()
    teacher: Tensor | None = None
    slope: Tensor | None = None


@dataclass(frozen=True)
class Scored:
    """What the pass gives. loss: the sum of all terms, differentiable; values: for each view, [T, n]; measures: for
    each view with a teacher, [n] tensors by name (entropies, overlap@16, the student's mass on it), if asked for."""

    loss: Tensor
    values: list[Tensor]
    measures: list[dict[str, Tensor]]


def score(
    hidden: Tensor,
    head: Head,
    teacher_head: Head | None,
    views: Sequence[Positions],
    chunk: int = 256,
    measure: bool = False,
) -> Scored:
    """All per-token losses of a micro-batch in one pass. hidden [N, H]: the views' positions, one after the other.

    The result's `loss` carries gradients to `hidden` and to the head's weight and bias.
    """
    assert sum(len(positions.labels) for positions in views) == len(hidden), "views and hidden states disagree"
    wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
    values = [hidden.new_zeros((len(p.terms), len(p.labels)), dtype=wide) for p in views]
    measures = [hidden.new_zeros((len(_NAMES), len(p.labels)), dtype=wide) for p in views]
    need = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    work = _Work(head, teacher_head, tuple(views), tuple(values), tuple(measures), chunk, measure, need)
    loss = _Score.apply(hidden, head.weight, head.bias, work)
    named = [
        dict(zip(_NAMES, found, strict=True)) if measure and p.teacher is not None else {}
        for p, found in zip(views, measures, strict=True)
    ]
    return Scored(loss, values, named)


@torch.no_grad()
def label_log_probs(hidden: Tensor, head: Head, labels: Tensor, chunk: int = 256) -> Tensor:
    """log p(label) [n] at each position of hidden [n, H]; no gradient."""
    out = []
    head = head.cast()
    for rows in _chunks(len(labels), chunk):
        product_cV = head.product(hidden[rows])
        for inner in _chunks(len(product_cV), _block(product_cV)):
            logits_bV = head.finish(product_cV[inner])
            at = labels[rows][inner, None]
            out.append(logits_bV.gather(-1, at).squeeze(-1) - logits_bV.logsumexp(-1))
    return torch.cat(out) if out else hidden.new_zeros(0)


@dataclass(frozen=True)
class _Work:
    """What a pass reads, and the tensors that it fills: values and measures, by view."""

    head: Head
    teacher_head: Head | None
    views: tuple[Positions, ...]
    values: tuple[Tensor, ...]
    measures: tuple[Tensor, ...]
    chunk: int
    measure: bool
    need_grad: bool

    def cast(self) -> _Work:
        """Both heads in the dtype of products."""
        return replace(self, head=self.head.cast(), teacher_head=self.teacher_head and self.teacher_head.cast())


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> Tensor:
        wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
        work = work.cast()
        head = work.head
        loss = hidden.new_zeros((), dtype=torch.float64)
        ctx.grads = None
        if work.need_grad:
            d_hidden_NH = torch.zeros_like(hidden)
            d_weight_VH = torch.zeros_like(weight, dtype=wide)  # bfloat16 sums would bias training
            d_bias_V = None if bias is None else torch.zeros_like(bias, dtype=wide)
        start = 0
        for place, positions in enumerate(work.views):
            for rows in _chunks(len(positions.labels), work.chunk):
                here = slice(start + rows.start, start + rows.stop)
                grad_cV = _chunk(hidden[here], place, rows, work)
                if work.need_grad:
                    d_hidden_NH[here] = grad_cV @ head.weight
                    _add_outer(d_weight_VH[: head.vocab], grad_cV, hidden[here])
                    if d_bias_V is not None:
                        d_bias_V[: head.vocab] += grad_cV.sum(0, dtype=wide)
                del grad_cV  # before the next chunk's logits are there
            for term, values_n in zip(positions.terms, work.values[place], strict=True):
                loss = loss + (values_n.double() * term.weight.double()).sum()
            start += len(positions.labels)
        if work.need_grad:
            d_bias = None if d_bias_V is None else d_bias_V.to(weight.dtype)
            ctx.grads = (d_hidden_NH, d_weight_VH.to(weight.dtype), d_bias)
        return loss.to(wide)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        (grad_loss,) = incoming
        scaled = [None if g is None else g.mul_(grad_loss.to(g.dtype)) for g in ctx.grads]
        ctx.grads = None  # scaled in place: a second backward would scale twice, so there is none
        return (*scaled, None)


def _chunk(hidden_cH: Tensor, place: int, rows: slice, work: _Work) -> Tensor:
    """Fill a view's values and measures for these rows; return grad_cV = d loss / d (hidden_cH @ weight_VH.T).

    The products' own memory is reused for it, block by block: a block's logits are no longer needed once its gradient
    is there.
    """
    head, teacher_head, positions, values = work.head, work.teacher_head, work.views[place], work.values[place]
    product_cV, theirs_cV = head.product(hidden_cH), None
    if positions.teacher is not None:
        assert teacher_head is not None
        theirs_cV = teacher_head.product(positions.teacher[rows])
    for inner in _chunks(len(product_cV), _block(product_cV)):
        at = slice(rows.start + inner.start, rows.start + inner.stop)
        labels_b = positions.labels[at]
        logits_bV = head.finish(product_cV[inner])
        log_p_bV, log_q_bV = torch.log_softmax(logits_bV, -1), None
        if theirs_cV is not None and teacher_head is not None:
            log_q_bV = torch.log_softmax(teacher_head.finish(theirs_cV[inner]).to(log_p_bV.dtype), -1)
        total_bV = torch.zeros_like(log_p_bV)
        for k, term in enumerate(positions.terms):
            values[k, at], grad_bV = term.loss(log_p_bV, log_q_bV, labels_b)
            if work.need_grad:
                total_bV.addcmul_(grad_bV, term.weight[at, None].to(grad_bV.dtype))
        if positions.slope is not None and work.need_grad:  # c d log p(label) = c (onehot - p)
            c = positions.slope[at, None].to(total_bV.dtype)
            total_bV.addcmul_(log_p_bV.exp(), -c).scatter_add_(-1, labels_b[:, None], c)
        if work.measure and log_q_bV is not None:
            work.measures[place][:, at] = _measure(log_p_bV, log_q_bV)
        if work.need_grad:
            product_cV[inner] = head.through(total_bV, logits_bV)
    return product_cV


def _block(product: Tensor) -> int:
    """Rows of a block."""
    return max(1, (_GPU_BLOCK if product.is_cuda else _CPU_BLOCK) // product.shape[-1])


def _measure(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[4, n]: entropy of student and teacher (nats), |top-k(S) and top-k(T)| / k, and the student's mass on those."""
    p = log_p.exp()
    k = min(OVERLAP_K, log_p.shape[-1])
    top_p, top_q = log_p.topk(k, -1), log_q.topk(k, -1)
    shared = (top_p.indices[:, :, None] == top_q.indices[:, None, :]).any(-1)
    entropy_p, entropy_q = -(p * log_p).sum(-1), -(log_q.exp() * log_q).sum(-1)
    overlap = shared.to(p.dtype).sum(-1) / k
    return torch.stack((entropy_p, entropy_q, overlap, (top_p.values.exp() * shared).sum(-1)))


def _add_outer(total_VH: Tensor, grad_cV: Tensor, hidden_cH: Tensor) -> None:
    """total_VH += grad_cV.T @ hidden_cH, accumulated in the precision of the total: bfloat16 sums bias training."""
    hidden_cH = hidden_cH.to(grad_cV.dtype)
    if total_VH.dtype is grad_cV.dtype:
        total_VH.addmm_(grad_cV.T, hidden_cH)
    else:
        for rows in _chunks(len(total_VH), _SUM_ROWS):
            total_VH[rows] += grad_cV[:, rows].T @ hidden_cH


def _chunks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
