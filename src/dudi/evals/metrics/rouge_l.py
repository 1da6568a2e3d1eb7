"""Summaries: ROUGE-L, the longest common subsequence of words."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.evals.metrics.metric import Value, WordMetric
from dudi.evals.metrics.words import words
from dudi.records import Item


class RougeL(WordMetric):
    """F1 of the longest common subsequence of words, against the best target (Lin 2004); no stemming."""

    mark = "ROUGE-L"

    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """The best target's ROUGE-L."""
        found = words(text, item.asked)
        return Value(max(rouge_l(found, words(target, item.asked)) for target in item.targets))


def rouge_l(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of precision and recall: the length of the longest common subsequence over that of each."""
    common = common_length(found, wanted)
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence: words in the same order, with others between or not."""
    row = [0] * (len(other) + 1)
    """row[j]: of what is read of `one`, and the first j words of `other`."""
    for word in one:
        diagonal = 0
        for j, same in enumerate(other, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == same else max(row[j], row[j - 1])
    return row[-1]
