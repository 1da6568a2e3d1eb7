"""A kind of signal of its own: the mean log-probability that the student gives to its own y', to be lowered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dudi.loss.scores import Scores
from dudi.loss.signals import Count, Outcome, Settled, Share, divided, share
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
def _share(signal: Unlikely, scores: Scores, count: Count) -> Share:
    block = scores.blocks[Y_PRIME]
    present = block.present().double()
    weight = divided(signal.weight * present, count)

    def whole(log_s: Mapping[View, Tensor]) -> Settled:
        value = log_s[Y_PRIME]
        outcome = Outcome(value, present, torch.arange(block.rows, device=value.device), block.rows)
        return Settled({Y_PRIME: weight}, (weight * value).sum(), outcome)

    return Share(whole=whole)


def unlikely() -> Method:
    """Nothing but that."""
    return Method("unlikely", "rows", (Unlikely("sequence", 1.0),))
