"""Question answering: SQuAD's F1 over words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dudi.evals.metrics.metric import Value, WordMetric
from dudi.evals.metrics.words import words
from dudi.records import Item


class TokenF1(WordMetric):
    """F1 over words in any order, against the best target (Rajpurkar et al. 2016, articles kept: they are English)."""

    mark = "F1"

    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """The best target's F1."""
        found = words(text, item.asked, punctuation="")
        return Value(max(token_f1(found, words(target, item.asked, punctuation="")) for target in item.targets))


def token_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the words found, each as often as it occurs."""
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else 0.0
