"""Multiple choice by likelihood: the answer is the choice that the model finds likeliest; it writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.evals.metrics.choice import Choice, balanced_accuracy
from dudi.evals.metrics.metric import Value
from dudi.evals.metrics.text import normalise
from dudi.records import Item


class ChoiceLoglik(Choice):
    """The choice with the highest log p(choice | prompt), the sum over its tokens; scored as `choice` is.

    Where choices are texts of their own in each item, the classes of the balanced accuracy are their places.
    """

    by_likelihood = True

    def check_all(self, items: Sequence[Item]) -> str | None:
        """Two right choices or more, or two places of them."""
        if _same_choices(items):
            return super().check_all(items)
        if len({_place(item, item.targets[0]) for item in items}) > 1:
            return None
        return f"the right choice is at the same place in all {len(items)} items: balanced accuracy needs two"

    def strata(self, items: Sequence[Item]) -> list[str]:
        """The right choice, or its place where choices differ from item to item."""
        return super().strata(items) if _same_choices(items) else [_place(item, item.targets[0]) for item in items]

    def score(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Value]) -> float:
        """Balanced accuracy over the right choices, or over their places where choices differ from item to item."""
        if _same_choices(items):
            return super().score(items, texts, values)
        return balanced_accuracy(
            self.strata(items), [_place(item, text) for item, text in zip(items, texts, strict=True)]
        )


class ChoiceLoglikNorm(ChoiceLoglik):
    """The same by log p(choice | prompt) over the choice's length in characters, for choices of unlike lengths."""

    def chosen(self, item: Item, log_p: Sequence[float]) -> str:
        """The choice with the highest log p a character."""
        assert item.choices is not None
        return super().chosen(item, [value / len(text) for value, text in zip(log_p, item.choices, strict=True)])


def _same_choices(items: Sequence[Item]) -> bool:
    return len({frozenset(map(normalise, item.choices or ())) for item in items}) == 1


def _place(item: Item, choice: str) -> str:
    return str([normalise(one) for one in item.choices or ()].index(normalise(choice)))
