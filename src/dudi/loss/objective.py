"""A method evaluated: weight x mean of loss, for every signal (equation 8 is `dudi.methods.dudi`).

    loss = sum over token signals     weight * sum over tokens of mask * loss / tokens of the whole step
         + sum over sequence signals  weight * sum over rows of loss / rows of the whole step

"Of the whole step" means all micro-batches and all ranks: the counts are taken after sampling, and passed in, so that
neither gradient accumulation nor the number of processes changes the result. Where languages have shares
(`dudi.training.shares`), a row's loss is divided by the count of its language over that language's share.

To add a loss, in ten lines and in a file of your own:

    def brier(log_p, log_q, labels):  # [n, V], None or [n, V], [n] -> [n]
        p = log_p.exp()
        return (p**2).sum(-1) - 2 * p.gather(-1, labels[:, None]).squeeze(-1) + 1

    def sft_brier() -> Method:
        signal = TokenSignal("off_policy", 1.0, by_autograd(brier), GOLD, teacher=False)
        return Method("sft_brier", "brier", (signal,), cold_start=False)

    METHODS["sft_brier"] = sft_brier

A loss of whole responses is a function of the margin (`losses.MarginLoss`) that a `SequenceSignal` is given; anything
else is a signal of your own kind (`dudi.loss.signals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dudi.loss.chunked import Positions, Whole, score
from dudi.loss.scores import Block, Scores
from dudi.loss.signals import Count, Outcome, Share, share
from dudi.signals import Signal, View, views


@dataclass(frozen=True)
class Objective:
    """loss: differentiable scalar, this micro-batch's share of the step's loss; outcomes: by signal, what came of it;
    measures: by view, its block and [n] tensors by name (see `chunked.Scored`). All but the loss are detached."""

    loss: Tensor
    outcomes: Mapping[str, Outcome]
    measures: Mapping[View, tuple[Block, Mapping[str, Tensor]]]


def objective(
    signals: Sequence[Signal],
    scores: Scores,
    counts: Mapping[str, Count],
    chunk: int = 256,
    measure: bool = False,
) -> Objective:
    """Evaluate signals on scores. counts: for each signal, its tokens (or rows) in the whole optimizer step; by
    row of the micro-batch, [rows], where rows are divided by different ones.

    A signal that misses one of its views here (no row of the micro-batch has it) adds nothing.
    """
    read = [view for view in views(signals) if view in scores.blocks]
    here = [s for s in signals if all(view in scores.blocks for view in s.views)]
    shares = {s.name: share(s, scores, counts[s.name]) for s in here}
    # one pass over the vocabulary for all views and terms: hidden_NH is projected once
    hidden_NH = torch.cat([scores.student[view] for view in read])
    positions = [_positions(view, scores, shares) for view in read]
    whole = _whole(read, here, shares, scores)
    scored = score(hidden_NH, scores.head, scores.teacher_head, positions, chunk, measure, whole)
    values = {
        (name, view): value
        for view, found in zip(read, scored.values, strict=True)
        for name, value in zip(_names(view, shares), found, strict=True)
    }
    log_s = {read[place]: log_p for place, log_p in scored.log_p.items()}
    loss, outcomes = scored.loss.double(), {}
    for signal in here:
        one = shares[signal.name]
        if one.whole is None:
            found = [values[signal.name, view] for view in one.terms]
            outcomes[signal.name] = one.measured(scores.blocks[signal.views[0]], found)
        else:
            settled = one.whole(log_s)
            loss, outcomes[signal.name] = loss + settled.value, settled.outcome
    measures = {view: (scores.blocks[view], m) for view, m in zip(read, scored.measures, strict=True) if m}
    return Objective(loss.to(scored.loss.dtype), outcomes, measures)


def _names(view: View, shares: Mapping[str, Share]) -> list[str]:
    """The signals that have a term on a view."""
    return [name for name, one in shares.items() if view in one.terms]


def _positions(view: View, scores: Scores, shares: Mapping[str, Share]) -> Positions:
    """One view's tokens with all that the signals ask of them."""
    terms = tuple(shares[name].terms[view] for name in _names(view, shares))
    return Positions(scores.blocks[view].labels, terms, scores.teacher.get(view), scores.blocks[view].row)


def _whole(read: Sequence[View], here: Sequence[Signal], shares: Mapping[str, Share], scores: Scores) -> Whole | None:
    """The losses of whole responses, as one: their slopes on a view add up."""
    losses = [whole for s in here if (whole := shares[s.name].whole) is not None]
    places = {view: read.index(view) for s in here if shares[s.name].whole is not None for view in s.views}

    def slopes(log_p: Mapping[int, Tensor]) -> dict[int, Tensor]:
        log_s = {view: log_p[place] for view, place in places.items()}
        total = {place: torch.zeros_like(of) for place, of in log_p.items()}
        for whole in losses:
            for view, slope in whole(log_s).slopes.items():
                total[places[view]] += slope
        return total

    return Whole(tuple(places.values()), scores.blocks[read[0]].rows, slopes) if losses else None
