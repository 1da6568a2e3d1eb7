"""Exact match, of any answer or of one that the question names."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.evals.metrics.metric import Metric, Value
from dudi.evals.metrics.text import alike, normalise, only_punctuation
from dudi.records import Item
from dudi.strict import shown


class Exact(Metric):
    """The normalised answer equals a normalised target."""

    def check(self, item: Item) -> str | None:
        """Targets of which something is left."""
        return only_punctuation("targets", item.targets)

    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """1 where they are equal; predicted is the normalised answer."""
        return Value(exact(text, item.targets), normalise(text))


class ExactAmong(Exact):
    """The same where the question names what the answer can be, in `choices` that differ from item to item: chance is
    one of them."""

    needs = ("choices", "targets")

    def check(self, item: Item) -> str | None:
        """Choices that differ, one of which is a target; other targets say it in other words."""
        assert item.choices is not None
        if fault := super().check(item) or only_punctuation("choices", item.choices) or alike(item.choices):
            return fault
        if sum(exact(choice, item.targets) for choice in item.choices) != 1:
            return (
                f"targets: expected exactly one of the choices {shown(item.choices)} among them, found"
                f" {shown(item.targets)}"
            )
        return None

    def baseline(self, items: Sequence[Item]) -> float:
        """The mean of one of an item's choices."""
        return 100 * sum(1 / len(item.choices or ()) for item in items) / len(items)


def exact(response: str, targets: Sequence[str]) -> float:
    """1 where the normalised response equals a normalised target."""
    return float(normalise(response) in {normalise(target) for target in targets})
