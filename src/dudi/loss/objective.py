"""A method evaluated: weight x mean of loss, for every signal (equation 8 is `dudi.methods.dudi`).

    loss = sum over token signals     weight * sum over tokens of mask * loss / tokens of the whole step
         + sum over sequence signals  weight * sum over rows of loss / rows of the whole step

"Of the whole step" means all micro-batches and all ranks: the counts are taken after sampling, and passed in, so that
neither gradient accumulation nor the number of processes changes the result.

To add a signal: a per-token loss goes into `losses.py` (its value alone is enough, with `by_autograd`) and into the
table of `token_loss`, its name into `methods.Loss`, and a method in `methods.py` lists it with a weight and a view.
Nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dudi.loss.chunked import Positions, Term, score
from dudi.loss.losses import spin, token_loss
from dudi.loss.scores import Block, Scores, sequence_log_probs
from dudi.methods import SequenceSignal, Signal, TokenSignal, View, views


@dataclass(frozen=True)
class Objective:
    """loss: differentiable scalar, this micro-batch's share of the step's loss.

    by_token: for each token signal, (values [N], mask [N], block); by_row: for each sequence signal, (values [rows],
    margins [rows], mask [rows]); measures: by view, [N] tensors by name (see `chunked.Scored`). All detached.
    """

    loss: Tensor
    by_token: Mapping[str, tuple[Tensor, Tensor, Block]]
    by_row: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    measures: Mapping[View, Mapping[str, Tensor]]


def objective(
    signals: Sequence[Signal],
    scores: Scores,
    counts: Mapping[str, float],
    chunk: int = 256,
    measure: bool = False,
) -> Objective:
    """Evaluate signals on scores. counts: for each signal, its tokens (or rows) in the whole optimizer step."""
    read = [view for view in views(tuple(signals)) if view in scores.blocks]
    slopes: dict[View, Tensor] = {}
    by_row: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    extra = torch.zeros((), dtype=torch.float64, device=scores.head.weight.device)
    for signal in signals:
        if isinstance(signal, SequenceSignal) and {signal.winner, signal.loser} <= scores.blocks.keys():
            value, margin, mask, slope = _sequence(signal, scores, chunk)
            share = signal.weight * mask / max(counts[signal.name], 1)
            extra = extra + (share * value).sum()
            for view, sign in ((signal.winner, 1.0), (signal.loser, -1.0)):
                per_token = sign * (share * slope)[scores.blocks[view].row]
                slopes[view] = slopes.get(view, 0) + per_token
            by_row[signal.name] = (value, margin, mask)

    positions, named = [], []
    for view in read:
        block = scores.blocks[view]
        here = [s for s in signals if isinstance(s, TokenSignal) and s.view == view]
        terms = tuple(
            Term(token_loss(s), s.weight * token_mask(s, block).double() / max(counts[s.name], 1)) for s in here
        )
        positions.append(Positions(block.labels, terms, scores.teacher.get(view), slopes.get(view)))
        named.append([s.name for s in here])
    hidden = torch.cat([scores.student[view] for view in read])
    scored = score(hidden, scores.head, scores.teacher_head, positions, chunk, measure)

    by_token = {}
    for view, names, values in zip(read, named, scored.values, strict=True):
        for name, value in zip(names, values, strict=True):
            signal = next(s for s in signals if s.name == name)
            assert isinstance(signal, TokenSignal)
            by_token[name] = (value, token_mask(signal, scores.blocks[view]), scores.blocks[view])
    measures = {view: m for view, m in zip(read, scored.measures, strict=True) if m}
    return Objective(scored.loss + extra.to(scored.loss.dtype), by_token, by_row, measures)


def token_mask(signal: TokenSignal, block: Block) -> Tensor:
    """[N] 1 for the response tokens that this signal counts, else 0."""
    return block.weight * (block.position >= signal.skip_tokens)


def _sequence(signal: SequenceSignal, scores: Scores, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SPIN's value, margin, mask and d value / d log S(y|x), each [rows]. The derivative for y' is its negative."""
    winner, loser = scores.blocks[signal.winner], scores.blocks[signal.loser]
    log_s = [
        sequence_log_probs(scores.student[view].detach(), scores.head, scores.blocks[view], chunk)
        for view in (signal.winner, signal.loser)
    ]
    log_r = [scores.reference[view] for view in (signal.winner, signal.loser)]
    margin = signal.beta * ((log_s[0] - log_s[1]) - (log_r[0] - log_r[1]))
    value, derivative = spin(margin)
    mask = (winner.present() * loser.present()).double()
    return value, margin, mask, signal.beta * derivative
