"""What each kind of signal is worth on a micro-batch: its share of the loss, and what is measured of it.

Shapes: n response tokens of one view, N counted values (tokens, or rows). A signal's mean is taken over the whole
optimizer step, so its share divides by the step's count, not by this micro-batch's.

A kind of your own is a class derived from `dudi.signals.Signal` and a function registered here:

    @share.register
    def _(signal: Mine, scores: Scores, count: float, chunk: int) -> Share: ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch

import torch
from torch import Tensor

from dudi.loss.chunked import Term
from dudi.loss.losses import spin, token_loss
from dudi.loss.scores import Block, Scores, sequence_log_probs
from dudi.signals import SequenceSignal, Signal, TokenSignal, View

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
class Share:
    """What a signal adds to the loss of a micro-batch.

    terms: by view, a loss of tokens, evaluated in the pass over the vocabulary; mask: of its tokens;
    slopes: by view [n], d share / d log p(label), of a loss of whole responses, whose value is known before the pass;
    value, outcome: that value, and what is measured of it.
    """

    terms: Mapping[View, Term] = field(default_factory=dict)
    mask: Tensor | None = None
    slopes: Mapping[View, Tensor] = field(default_factory=dict)
    value: Tensor | None = None
    outcome: Outcome | None = None

    def measured(self, block: Block, values: Sequence[Tensor]) -> Outcome:
        """The outcome, once the pass has given the values of its terms."""
        if self.outcome is not None:
            return self.outcome
        assert self.mask is not None
        (value,) = values
        return Outcome(value, self.mask, block.row, block.rows)


@singledispatch
def share(signal: Signal, scores: Scores, count: float, chunk: int) -> Share:
    """A signal's share. scores hold all of its views; count: what the whole step counts for it; chunk: positions that
    are projected to the vocabulary at a time."""
    raise AssertionError(f"nobody has said what a {type(signal).__name__} is worth: register a function of it")


@share.register
def _tokens(signal: TokenSignal, scores: Scores, count: float, chunk: int) -> Share:
    """weight * sum over tokens of mask * loss / count."""
    block = scores.blocks[signal.view]
    mask = token_mask(signal, block)
    return Share({signal.view: Term(token_loss(signal), signal.weight * mask.double() / max(count, 1))}, mask)


@share.register
def _sequences(signal: SequenceSignal, scores: Scores, count: float, chunk: int) -> Share:
    """weight * sum over rows of loss(margin) / count. Its gradient reaches the student through log p of each token:
    d log S(y|x) is the sum of d log p(y_t), so every token of y has the row's slope, and of y' its negative."""
    winner, loser = (scores.blocks[view] for view in signal.views)
    log_s = [
        sequence_log_probs(scores.student[view].detach(), scores.head, scores.blocks[view], chunk)
        for view in signal.views
    ]
    log_r = [scores.reference[view] for view in signal.views]
    margin = signal.beta * ((log_s[0] - log_s[1]) - (log_r[0] - log_r[1]))
    value, derivative = (signal.loss or spin)(margin)
    mask = (winner.present() * loser.present()).double()
    by_row = signal.weight * mask / max(count, 1)
    slope = by_row * (signal.beta * derivative)
    extra = {"margin": margin, "saturated": (torch.sigmoid(-margin) < SATURATED).to(value.dtype)}
    return Share(
        slopes={signal.winner: slope[winner.row], signal.loser: -slope[loser.row]},
        value=(by_row * value).sum(),
        outcome=Outcome(value, mask, torch.arange(len(value), device=value.device), len(value), extra),
    )


def token_mask(signal: TokenSignal, block: Block) -> Tensor:
    """[n] 1 for the response tokens that this signal counts, else 0."""
    return block.weight * (block.position >= signal.skip_tokens)
