"""What each kind of signal is worth on a micro-batch: its share of the loss, and what is measured of it.

Shapes: n response tokens of one view, N counted values (tokens, or rows). A signal's mean is taken over the whole
optimizer step, so its share divides by the step's count, not by this micro-batch's.

A kind of your own is a class derived from `dudi.signals.Signal` and a function registered here:

    @share.register
    def _(signal: Mine, scores: Scores, count: Count) -> Share: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch

import torch
from torch import Tensor

from dudi.loss.chunked import Term
from dudi.loss.losses import spin, token_loss
from dudi.loss.scores import Block, Scores
from dudi.signals import SequenceSignal, Signal, TokenSignal, View

Count = float | Tensor
"""What the whole step counts for a signal: one number, or [rows] where languages have shares (see `divided`)."""
SATURATED = 0.05
"""A row is saturated where the size of its gradient, sigmoid(-margin) under SPIN's loss, is below this."""


@dataclass(frozen=True)
class Outcome:
    """A signal's values, detached. value, mask (1 where it counts), row: [N], with the micro-batch row of each; rows:
    their number; extra: other [N] tensors by name (`Signal.quantities`)."""

    value: Tensor
    mask: Tensor
    row: Tensor
    rows: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def per_row(self, values: Tensor) -> Tensor:
        """Sum of mask * values by row -> [rows]."""
        counted = (self.mask * values).to(values.dtype)
        return counted.new_zeros(self.rows).index_add_(0, self.row, counted)


@dataclass(frozen=True)
class Settled:
    """What a loss of whole responses is, once log S of each is known.

    slopes: by view [rows], d share / d log S(response); value: the share itself; outcome: what is measured of it.
    """

    slopes: Mapping[View, Tensor]
    value: Tensor
    outcome: Outcome


Whole = Callable[[Mapping[View, Tensor]], Settled]
"""log S(response | prompt) by view, each [rows] in float64 -> what follows. It is also called while only some rows are
known (the others are 0): a row's slope depends on that row alone."""


@dataclass(frozen=True)
class Share:
    """What a signal adds to the loss of a micro-batch.

    terms: by view, a loss of tokens, evaluated in the pass over the vocabulary; mask: of its tokens;
    whole: a loss of the responses of the signal's views, each as a whole.
    """

    terms: Mapping[View, Term] = field(default_factory=dict)
    mask: Tensor | None = None
    whole: Whole | None = None

    def measured(self, block: Block, values: Sequence[Tensor]) -> Outcome:
        """The outcome of a loss of tokens, once the pass has given the values of its terms."""
        assert self.mask is not None
        (value,) = values
        return Outcome(value, self.mask, block.row, block.rows)


@singledispatch
def share(signal: Signal, scores: Scores, count: Count) -> Share:
    """A signal's share. scores hold all of its views; count: what the whole step counts for it."""
    raise AssertionError(f"nobody has said what a {type(signal).__name__} is worth: register a function of it")


def divided(values: Tensor, count: Count, row: Tensor | None = None) -> Tensor:
    """values [N] over what the step counts. row [N]: the micro-batch row of each value; None: there is one a row."""
    if not isinstance(count, Tensor):
        return values / max(count, 1)
    count = count.to(values.device).clamp(min=1)
    return values / (count if row is None else count[row])


@share.register
def _tokens(signal: TokenSignal, scores: Scores, count: Count) -> Share:
    """weight * sum over tokens of mask * loss / count."""
    block = scores.blocks[signal.view]
    mask = token_mask(signal, block)
    weight = divided(signal.weight * mask.double(), count, block.row)
    return Share({signal.view: Term(token_loss(signal), weight)}, mask)


@share.register
def _sequences(signal: SequenceSignal, scores: Scores, count: Count) -> Share:
    """weight * sum over rows of loss(margin) / count. Its gradient reaches the student through log S(y|x) and
    log S(y'|x), with opposite signs."""
    winner, loser = (scores.blocks[view] for view in signal.views)
    log_r = [scores.reference[view] for view in signal.views]
    mask = (winner.present() * loser.present()).double()
    weight = divided(signal.weight * mask, count)

    def whole(log_s: Mapping[View, Tensor]) -> Settled:
        margin = signal.beta * ((log_s[signal.winner] - log_s[signal.loser]) - (log_r[0] - log_r[1]))
        value, derivative = (signal.loss or spin)(margin)
        slope = weight * (signal.beta * derivative)
        extra = {"margin": margin, "saturated": (torch.sigmoid(-margin) < SATURATED).to(value.dtype)}
        outcome = Outcome(value, mask, torch.arange(len(value), device=value.device), len(value), extra)
        return Settled({signal.winner: slope, signal.loser: -slope}, (weight * value).sum(), outcome)

    return Share(whole=whole)


def token_mask(signal: TokenSignal, block: Block) -> Tensor:
    """[n] 1 for the response tokens that this signal counts, else 0."""
    return block.weight * (block.position >= signal.skip_tokens)
