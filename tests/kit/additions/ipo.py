"""A loss of the margin between two responses: IPO's (margin - 1/2)^2."""

from torch import Tensor

from dudi.methods import Method
from dudi.signals import Response, SequenceSignal, View


def squared(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative, [rows]."""
    return (margin - 0.5) ** 2, 2 * (margin - 0.5)


def ipo(beta: float = 0.2) -> Method:
    """y against y', which is sampled in each step."""
    signal = SequenceSignal("sequence", 1.0, View(Response.Y_PRIME), beta, loss=squared)
    return Method("ipo", "online", (signal,))
