"""Per-token losses from hidden states, a few rows at a time: logits of all positions never exist.

Shapes: N response positions of a micro-batch, H hidden size, V vocabulary entries, c rows of a chunk.

    forward    for each chunk:  logits_cV = hidden_cH @ weight.T;  value, grad_cV = loss(log_softmax(logits_cV), ...)
               d hidden_cH = grad_cV @ weight;  d weight += grad_cV.T @ hidden_cH
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

from dudi.loss.losses import TokenLoss

OVERLAP_K = 16  # Li et al. 2026
_CPU_BLOCK, _GPU_BLOCK = 2**20, 2**24
"""Entries of a block of logits: on a CPU a handful of such blocks stays in cache, on a GPU one is enough work."""
_SUM_ROWS = 2**14
"""Rows of d weight that a product in bfloat16 is added to at a time."""
_NAMES = ("entropy_student", "entropy_teacher", "overlap", "overlap_mass")


@dataclass(frozen=True)
class Head:
    """The output head: logits = softcap(scale (hidden @ weight.T + bias)), of the first `vocab` entries only.

    weight [>= vocab, H], bias [>= vocab] or None. Rows past `vocab` are padding: they never have mass in a label.
    """

    weight: Tensor
    bias: Tensor | None = None
    vocab: int = 0
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [c, H] -> logits [c, V], float32 (float64 for float64 weights). Under autocast the product is bf16."""
        head = self.cast()
        return head.finish(head.product(hidden))

    def cast(self) -> Head:
        """The first `vocab` entries in the dtype of products, to cast [V, H] once and not once a chunk."""
        weight, bias = self.weight[: self.vocab], None if self.bias is None else self.bias[: self.vocab]
        device = weight.device.type
        if torch.is_autocast_enabled(device) and weight.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return replace(self, weight=weight, bias=bias)

    def product(self, hidden: Tensor) -> Tensor:
        """hidden @ weight.T + bias, of a head that was `cast`."""
        return torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def finish(self, product: Tensor) -> Tensor:
        """Logits from products, in float32 (float64), and in the products' memory where that is their dtype."""
        out = product if product.dtype is torch.float64 else product.float()
        if self.scale != 1.0:
            out.mul_(self.scale)
        return out if self.softcap is None else torch.tanh(out / self.softcap) * self.softcap

    def through(self, grad: Tensor, logits: Tensor) -> Tensor:
        """d loss / d product, from d loss / d logits, in place."""
        if self.softcap is not None:
            grad.mul_(1 - (logits / self.softcap) ** 2)
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


@dataclass(frozen=True)
class Term:
    """One per-token loss on one view's positions: sum over n of weight_n loss_n. Mask and 1/count are in the weight."""

    loss: TokenLoss
    weight: Tensor


@dataclass(frozen=True)
class Positions:
    """The response positions of one view. labels [n]; teacher [n, Ht] or None: the teacher's hidden states there.

    slope [n] or None: coefficient of log p(label) in the loss, for losses of whole sequences; it changes the gradient
    only, since their value is known before.
    """

    labels: Tensor
    terms: tuple[Term, ...] = ()
    teacher: Tensor | None = None
    slope: Tensor | None = None


@dataclass(frozen=True)
class Scored:
    """loss: the sum of all terms, differentiable. values: for each view, for each term, [n]. measures: for each view
    with a teacher, [n] tensors by name (entropies, overlap@16 and the student's mass on it), if asked for."""

    loss: Tensor
    values: list[list[Tensor]]
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
    need = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    work = _Work(head, teacher_head, tuple(views), chunk, measure, need)
    loss, *tensors = _Score.apply(hidden, head.weight, head.bias, work)
    flat = iter(tensors)
    values = [[next(flat) for _ in view.terms] for view in views]
    measures = [{name: next(flat) for name in _NAMES} if measure and view.teacher is not None else {} for view in views]
    return Scored(loss, values, measures)


@torch.no_grad()
def label_log_probs(hidden: Tensor, head: Head, labels: Tensor, chunk: int = 256) -> Tensor:
    """log p(label) [n] at each position; no gradient."""
    out = []
    head = head.cast()
    for rows in _chunks(len(labels), chunk):
        product = head.product(hidden[rows])
        for inner in _chunks(len(product), _block(product)):
            logits = head.finish(product[inner])
            at = labels[rows][inner, None]
            out.append(logits.gather(-1, at).squeeze(-1) - logits.logsumexp(-1))
    return torch.cat(out) if out else hidden.new_zeros(0)


@dataclass(frozen=True)
class _Work:
    head: Head
    teacher_head: Head | None
    views: tuple[Positions, ...]
    chunk: int
    measure: bool
    need_grad: bool

    def cast(self) -> _Work:
        """Both heads in the dtype of products."""
        return replace(self, head=self.head.cast(), teacher_head=self.teacher_head and self.teacher_head.cast())


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> Any:
        wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
        work = work.cast()
        head = work.head
        loss = hidden.new_zeros((), dtype=torch.float64)
        values: list[Tensor] = []
        measures: list[Tensor] = []
        ctx.grads = None
        if work.need_grad:
            d_hidden = torch.zeros_like(hidden)
            d_weight = torch.zeros_like(weight, dtype=wide)
            d_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        start = 0
        for view in work.views:
            n = len(view.labels)
            view_values = hidden.new_zeros((len(view.terms), n), dtype=wide)
            view_measures = hidden.new_zeros((len(_NAMES), n), dtype=wide)
            for rows in _chunks(n, work.chunk):
                here = slice(start + rows.start, start + rows.stop)
                grad = _chunk(hidden[here], view, rows, work, view_values, view_measures)
                if work.need_grad:
                    d_hidden[here] = grad @ head.weight
                    _add_outer(d_weight[: head.vocab], grad, hidden[here])
                    if d_bias is not None:
                        d_bias[: head.vocab] += grad.sum(0, dtype=wide)
                del grad  # before the next chunk's logits are there
            for k, term in enumerate(view.terms):
                loss = loss + (view_values[k].double() * term.weight.double()).sum()
            values.extend(view_values)
            if work.measure and view.teacher is not None:
                measures.extend(view_measures)
            start += n
        assert start == len(hidden), "views and hidden states disagree"
        if work.need_grad:
            ctx.grads = (d_hidden, d_weight.to(weight.dtype), None if d_bias is None else d_bias.to(weight.dtype))
        ctx.mark_non_differentiable(*values, *measures)
        return (loss.to(wide), *values, *measures)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> Any:
        scaled = [None if g is None else g.mul_(grad_loss.to(g.dtype)) for g in ctx.grads]
        ctx.grads = None  # scaled in place: a second backward would scale twice, so there is none
        return (*scaled, None)


def _chunk(hidden: Tensor, view: Positions, rows: slice, work: _Work, values: Tensor, measures: Tensor) -> Tensor:
    """Fill values [terms, n] and measures for these rows; return d loss / d (hidden @ weight.T), in its own memory."""
    head, teacher_head = work.head, work.teacher_head
    product = head.product(hidden)
    theirs = None
    if view.teacher is not None:
        assert teacher_head is not None
        theirs = teacher_head.product(view.teacher[rows])
    for inner in _chunks(len(product), _block(product)):
        at = slice(rows.start + inner.start, rows.start + inner.stop)
        labels = view.labels[at]
        logits = head.finish(product[inner])
        log_p, log_q = torch.log_softmax(logits, -1), None
        if theirs is not None and teacher_head is not None:
            log_q = torch.log_softmax(teacher_head.finish(theirs[inner]).to(log_p.dtype), -1)
        total = torch.zeros_like(log_p)
        for k, term in enumerate(view.terms):
            values[k, at], grad = term.loss(log_p, log_q, labels)
            if work.need_grad:
                total.addcmul_(grad, term.weight[at, None].to(grad.dtype))
        if view.slope is not None and work.need_grad:  # c d log p(label) = c (onehot - p)
            c = view.slope[at, None].to(total.dtype)
            total.addcmul_(log_p.exp(), -c).scatter_add_(-1, labels[:, None], c)
        if work.measure and log_q is not None:
            measures[:, at] = _measure(log_p, log_q)
        if work.need_grad:
            product[inner] = head.through(total, logits)
    return product


def _block(product: Tensor) -> int:
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


def _add_outer(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total += grad.T @ hidden, accumulated in the precision of `total`: bfloat16 sums bias training."""
    hidden = hidden.to(grad.dtype)
    if total.dtype is grad.dtype:
        total.addmm_(grad.T, hidden)
    else:
        for rows in _chunks(len(total), _SUM_ROWS):
            total[rows] += grad[:, rows].T @ hidden


def _chunks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
