"""Per-token losses from hidden states, a few rows at a time: logits of all positions never exist.

Shapes, as suffixes of names: N response positions of a micro-batch, n those of one view, c rows of a chunk, b rows of a
block, H hidden size of the student, G of the teacher, V vocabulary entries, T terms of a view.

    forward    for each chunk:  logits_cV = hidden_cH @ weight_VH.T;  value_c, grad_cV = loss(logits_cV, ...)
               d hidden_cH = grad_cV @ weight_VH;  d weight_VH += grad_cV.T @ hidden_cH
    backward   both gradients are there already; they are scaled by the incoming gradient and handed to autograd

so each projection is done once, and the peak above the inputs is d weight (none, of a frozen head), two chunks (student
and teacher), and under autocast the heads in bfloat16, cast once for all chunks. Between the products a chunk is walked
through in blocks that stay in cache. Weights of the rows (weight / global count) are folded in beforehand, so that no
[V, H] tensor is scaled afterwards.

A loss of whole responses (`Whole`) has a gradient only once log p of every token of the responses that it compares is
known. The positions of those share a chunk, so that its products, made for log p, are there for the gradient; only
responses that are longer than a chunk are projected twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dudi.loss.groups import Part, chunks, gathered, groups, within
from dudi.loss.head import Head
from dudi.loss.losses import TokenLoss

OVERLAP_K = 16  # Li et al. 2026
_CPU_BLOCK, _GPU_BLOCK = 2**18, 2**24
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
    """The response positions of one view. labels [n]; teacher [n, G] or None: the teacher's hidden states there;
    row [n], ascending: the row whose response each position belongs to, needed where responses count as a whole."""

    labels: Tensor
    terms: tuple[Term, ...] = ()
    teacher: Tensor | None = None
    row: Tensor | None = None


@dataclass(frozen=True)
class Whole:
    """Losses of whole responses. places: of the views that they read; rows: of the micro-batch.

    slopes: log p(response) by place, each [rows], of rows whose responses are complete (0 for the others) ->
    d loss / d log p(response), likewise. It changes the gradient only: the loss's value is for who knows `log_p` after.
    """

    places: tuple[int, ...]
    rows: int
    slopes: Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]]


@dataclass(frozen=True)
class Scored:
    """What the pass gives. loss: the sum of all terms, differentiable; values: for each view, [T, n]; measures: for
    each view with a teacher, [n] tensors by name (entropies, overlap@16, the student's mass on it), if asked for;
    log_p: log p(response) of the views of `Whole` by place, [rows], in float64."""

    loss: Tensor
    values: list[Tensor]
    measures: list[dict[str, Tensor]]
    log_p: Mapping[int, Tensor]


def score(
    hidden: Tensor,
    head: Head,
    teacher_head: Head | None,
    views: Sequence[Positions],
    chunk: int = 256,
    measure: bool = False,
    whole: Whole | None = None,
) -> Scored:
    """All losses of a micro-batch in one pass. hidden [N, H]: the views' positions, one after the other.

    The result's `loss` carries gradients to `hidden` and to the head's weight and bias.
    """
    assert sum(len(positions.labels) for positions in views) == len(hidden), "views and hidden states disagree"
    wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
    values = [hidden.new_zeros((len(p.terms), len(p.labels)), dtype=wide) for p in views]
    measures = [hidden.new_zeros((len(_NAMES), len(p.labels)), dtype=wide) for p in views]
    log_p = {k: hidden.new_zeros(whole.rows, dtype=torch.float64) for k in whole.places} if whole else {}
    need = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
    work = _Work(head, teacher_head, tuple(views), tuple(values), tuple(measures), log_p, chunk, measure, need, whole)
    loss = _Score.apply(hidden, head.weight, head.bias, work)
    named = [
        dict(zip(_NAMES, found, strict=True)) if measure and p.teacher is not None else {}
        for p, found in zip(views, measures, strict=True)
    ]
    return Scored(loss, values, named, log_p)


@torch.no_grad()
def response_log_probs(
    hidden: Sequence[Tensor], head: Head, views: Sequence[Positions], rows: int, chunk: int = 256
) -> list[Tensor]:
    """log p(response) by view, each [rows], in float64. hidden: by view, [n, H]; no gradient.

    The chunks are those of `score`, so that equal models say equal numbers, bit for bit.
    """
    head = head.cast()
    log_p = {k: positions.labels.new_zeros(rows, dtype=torch.float64) for k, positions in enumerate(views)}
    for group in _groups(views, log_p, rows, chunk):
        for parts in group:
            _add_log_probs(head.product(gathered(hidden, parts)), parts, head, views, log_p)
    return list(log_p.values())


@dataclass(frozen=True)
class _Work:
    """What a pass reads, and the tensors that it fills: values and measures by view, and log_p."""

    head: Head
    teacher_head: Head | None
    views: tuple[Positions, ...]
    values: tuple[Tensor, ...]
    measures: tuple[Tensor, ...]
    log_p: Mapping[int, Tensor]
    chunk: int
    measure: bool
    need_grad: bool
    whole: Whole | None

    def cast(self) -> _Work:
        """Both heads in the dtype of products."""
        return replace(self, head=self.head.cast(), teacher_head=self.teacher_head and self.teacher_head.cast())

    def groups(self) -> Iterator[list[list[Part]]]:
        """The chunks of the pass."""
        return _groups(self.views, self.log_p, self.whole.rows if self.whole else 0, self.chunk)


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> Tensor:
        wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
        work = work.cast()
        head = work.head
        loss = hidden.new_zeros((), dtype=torch.float64)
        ctx.grads = None
        by_view = hidden.split([len(positions.labels) for positions in work.views])
        if work.need_grad:
            d_hidden_NH = torch.zeros_like(hidden)
            d_by_view = d_hidden_NH.split([len(positions.labels) for positions in work.views])
            # bfloat16 sums would bias training; a head that is frozen needs none
            d_weight_VH, d_bias_V = (
                torch.zeros_like(of, dtype=wide) if of is not None and learns else None
                for of, learns in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
            )
        for group in work.groups():
            product_cV, slopes = _judge_whole(group, by_view, work)
            for parts in group:
                states_cH = gathered(by_view, parts)
                if product_cV is None:
                    product_cV = head.product(states_cH)
                for rows_c, (place, rows) in within(parts):
                    _fill(product_cV[rows_c], place, rows, slopes.get(place), work)
                if work.need_grad:
                    d_states_cH = product_cV @ head.weight
                    for rows_c, (place, rows) in within(parts):
                        d_by_view[place][rows] = d_states_cH[rows_c]
                    if d_weight_VH is not None:
                        _add_outer(d_weight_VH[: head.vocab], product_cV, states_cH)
                    if d_bias_V is not None:
                        d_bias_V[: head.vocab] += product_cV.sum(0, dtype=wide)
                product_cV = None  # before the next chunk's logits are there
        for positions, values_Tn in zip(work.views, work.values, strict=True):
            for term, values_n in zip(positions.terms, values_Tn, strict=True):
                loss = loss + (values_n.double() * term.weight.double()).sum()
        if work.need_grad:
            ctx.grads = (d_hidden_NH, *(None if d is None else d.to(weight.dtype) for d in (d_weight_VH, d_bias_V)))
        return loss.to(wide)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Any:
        (grad_loss,) = incoming
        scaled = [None if g is None else g.mul_(grad_loss.to(g.dtype)) for g in ctx.grads]
        ctx.grads = None  # scaled in place: a second backward would scale twice, so there is none
        return (*scaled, None)


def _judge_whole(
    group: list[list[Part]], hidden: Sequence[Tensor], work: _Work
) -> tuple[Tensor | None, Mapping[int, Tensor]]:
    """Where a group's responses count as a whole: add its log p, and return the slopes that follow, by place [rows];
    also the products of its only chunk, which are not made again."""
    if work.whole is None or group[0][0][0] not in work.log_p:
        return None, {}
    product_cV: Tensor | None = None
    for parts in group:
        product_cV = None  # before the next chunk's logits are there
        product_cV = work.head.product(gathered(hidden, parts))
        _add_log_probs(product_cV, parts, work.head, work.views, work.log_p)
    return (product_cV if len(group) == 1 else None), work.whole.slopes(work.log_p)


def _add_log_probs(
    product_cV: Tensor, parts: list[Part], head: Head, views: Sequence[Positions], log_p: Mapping[int, Tensor]
) -> None:
    """Add log p(label) at each position of a chunk to its response's; the products stay as they are."""
    for rows_c, (place, rows) in within(parts):
        part_nV, labels_n, row_n = product_cV[rows_c], views[place].labels[rows], _row(views[place])
        for inner in chunks(len(part_nV), _block(part_nV)):
            logits_bV = head.finish(part_nV[inner].clone())
            found_b = logits_bV.gather(-1, labels_n[inner, None]).squeeze(-1) - logits_bV.logsumexp(-1)
            log_p[place].index_add_(0, row_n[rows][inner], found_b.double())


def _fill(product_nV: Tensor, place: int, rows: slice, slopes: Tensor | None, work: _Work) -> None:
    """Fill a view's values and measures for these rows, and turn products into d loss / d product.

    The products' own memory is reused for it, block by block: a block's logits are no longer needed once its gradient
    is there. slopes [rows of the micro-batch] or None: d loss / d log p(response).
    """
    head, teacher_head, positions, values = work.head, work.teacher_head, work.views[place], work.values[place]
    theirs_nV = None
    if positions.teacher is not None:
        assert teacher_head is not None
        theirs_nV = teacher_head.product(positions.teacher[rows])
    for inner in chunks(len(product_nV), _block(product_nV)):
        at = slice(rows.start + inner.start, rows.start + inner.stop)
        labels_b = positions.labels[at]
        logits_bV = head.finish(product_nV[inner])
        log_p_bV, log_q_bV = torch.log_softmax(logits_bV, -1), None
        if theirs_nV is not None and teacher_head is not None:
            log_q_bV = torch.log_softmax(teacher_head.finish(theirs_nV[inner]).to(log_p_bV.dtype), -1)
        total_bV = torch.zeros_like(log_p_bV)
        for k, term in enumerate(positions.terms):
            values[k, at], grad_bV = term.loss(log_p_bV, log_q_bV, labels_b)
            if work.need_grad:
                total_bV.addcmul_(grad_bV, term.weight[at, None].to(grad_bV.dtype))
        if slopes is not None and work.need_grad:  # c d log p(label) = c (onehot - p)
            c = slopes[_row(positions)[at], None].to(total_bV.dtype)
            total_bV.addcmul_(log_p_bV.exp(), -c).scatter_add_(-1, labels_b[:, None], c)
        if work.measure and log_q_bV is not None:
            work.measures[place][:, at] = _measure(log_p_bV, log_q_bV)
        if work.need_grad:
            product_nV[inner] = head.through(total_bV, logits_bV)


def _groups(views: Sequence[Positions], compared: Iterable[int], rows: int, chunk: int) -> Iterator[list[list[Part]]]:
    """The chunks of these positions (see `dudi.loss.groups`). compared: places of the views that count as a whole."""
    return groups([len(p.labels) for p in views], {place: _row(views[place]) for place in compared}, rows, chunk)


def _row(positions: Positions) -> Tensor:
    assert positions.row is not None, "responses count as a whole: whose are these positions?"
    return positions.row


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
        for rows in chunks(len(total_VH), _SUM_ROWS):
            total_VH[rows] += grad_cV[:, rows].T @ hidden_cH
