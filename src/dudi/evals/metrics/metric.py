"""What a metric is: which items it takes, what one answer is worth, and the score of a task in a language."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from dudi.evals.metrics.words import cannot_cut, packages, words
from dudi.records import Item


@dataclass(frozen=True)
class Value:
    """What one answer is worth, 0..1; prediction: what it was taken for, where the metric reads it as something."""

    value: float
    prediction: str | None = None


class Metric(ABC):
    """A metric. As it stands, answers are right or wrong and the score is the share of right ones.

    A subclass says what an answer is worth (`value`) and, where it differs, the rest.
    """

    needs: tuple[str, ...] = ("targets",)
    """What an item must have, of `targets`, `choices` and `constraints`. Of the last two it may have no other."""
    by_likelihood: bool = False
    """Whether the model writes nothing, and its answer is the one of `choices` that `chosen` takes."""
    mark: str | None = None
    """What 100 times a value is called where one answer is shown, such as `chrF++`; None: the answer is right (1) or
    wrong."""

    def check(self, item: Item) -> str | None:
        """What is wrong with an item that has what is needed, as `field: fault`; None: nothing."""
        return None

    def check_all(self, items: Sequence[Item]) -> str | None:
        """Why the items of a task in one language cannot be scored together; None: they can."""
        return None

    def chosen(self, item: Item, log_p: Sequence[float]) -> str:
        """The answer, of a metric by likelihood: the choice with the highest log_p. log_p: of each, in nats."""
        assert item.choices is not None
        return item.choices[max(range(len(log_p)), key=log_p.__getitem__)]

    def packages(self, item: Item) -> tuple[str, ...]:
        """The packages that an item's value depends on, beside those that every evaluation records."""
        return ()

    @abstractmethod
    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """What an answer is worth. in_language: whether it is in the language asked for; None: that cannot be told."""

    def strata(self, items: Sequence[Item]) -> list[str]:
        """The group of each item, where the raw score is a mean over groups; all of one group: the mean over items."""
        return [""] * len(items)

    def baseline(self, items: Sequence[Item]) -> float:
        """What chance would get, 0..100."""
        return 0.0

    def score(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Value]) -> float:
        """The raw score of a task in one language, 0..100, which `baseline` then normalises: the mean value.

        items, texts and values are in the same order; `check_all` had nothing against the items.
        """
        return 100 * sum(one.value for one in values) / len(values)


class WordMetric(Metric):
    """A metric over words, in the language that the answer should be in (`dudi.evals.metrics.words`)."""

    def check(self, item: Item) -> str | None:
        """A language that can be cut into words here, targets of which some are left."""
        if fault := cannot_cut(item.asked):
            return f"language: {fault}"
        for target in item.targets:
            if not words(target, item.asked):
                return f"targets: {target!r} is only punctuation, and no word"
        return None

    def packages(self, item: Item) -> tuple[str, ...]:
        """What cuts the item's language."""
        return packages(item.asked)
