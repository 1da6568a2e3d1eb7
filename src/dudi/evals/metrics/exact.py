"""Exact match."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.evals.metrics.metric import Metric, Value
from dudi.evals.metrics.text import normalise, only_punctuation
from dudi.records import Item


class Exact(Metric):
    """The normalised answer equals a normalised target."""

    def check(self, item: Item) -> str | None:
        """Targets of which something is left."""
        return only_punctuation("targets", item.targets)

    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """1 where they are equal; predicted is the normalised answer."""
        return Value(exact(text, item.targets), normalise(text))


def exact(response: str, targets: Sequence[str]) -> float:
    """1 where the normalised response equals a normalised target."""
    return float(normalise(response) in {normalise(target) for target in targets})
