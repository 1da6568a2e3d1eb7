"""A kind of signal of its own: the mean log-probability that the student gives to its own y', to be lowered."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dudi.loss.scores import Scores, sequence_log_probs
from dudi.loss.signals import Outcome, Share, share
from dudi.methods import Method
from dudi.signals import Items, Response, Signal, View

Y_PRIME = View(Response.Y_PRIME)


@dataclass(frozen=True)
class Unlikely(Signal):
    """weight x mean over rows of log S(y'|x)."""

    @property
    def views(self) -> tuple[View, ...]:
        """y' alone."""
        return (Y_PRIME,)

    @property
    def description(self) -> str:
        """For `dudi check`."""
        return "log-probability of y_prime"

    def count(self, items: Items, weight: Sequence[float]) -> float:
        """Rows."""
        return sum(w for item, w in zip(items[Y_PRIME], weight, strict=True) if item is not None)


@share.register
def _share(signal: Unlikely, scores: Scores, count: float, chunk: int) -> Share:
    block = scores.blocks[Y_PRIME]
    log_s = sequence_log_probs(scores.student[Y_PRIME].detach(), scores.head, block, chunk)
    by_row = signal.weight * block.present().double() / max(count, 1)
    rows = torch.arange(block.rows, device=log_s.device)
    outcome = Outcome(log_s, block.present().double(), rows, block.rows)
    return Share(slopes={Y_PRIME: by_row[block.row]}, value=(by_row * log_s).sum(), outcome=outcome)


def unlikely() -> Method:
    """Nothing but that."""
    return Method("unlikely", "rows", (Unlikely("sequence", 1.0),))
