"""Multiple choice: balanced accuracy, with chance as the baseline (SEA-HELM's)."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.evals.metrics.metric import Metric, Value
from dudi.evals.metrics.text import alike, normalise, only_punctuation
from dudi.records import Item
from dudi.strict import shown


class Choice(Metric):
    """The answer equals the one target; an answer that equals no choice is wrong."""

    needs = ("choices", "targets")

    def check(self, item: Item) -> str | None:
        """Choices that differ, one of which is the target."""
        assert item.choices is not None
        if fault := only_punctuation("targets", item.targets) or only_punctuation("choices", item.choices):
            return fault
        if fault := alike(item.choices):
            return fault
        if len(item.targets) != 1 or not predicted(item.targets[0], item.choices):
            return (
                f"targets: expected exactly one, which is among the choices {shown(item.choices)}, found"
                f" {shown(item.targets)}"
            )
        return None

    def check_all(self, items: Sequence[Item]) -> str | None:
        """Two right choices or more."""
        if len(set(_gold(items))) > 1:
            return None
        return f"the right choice is the same in all {len(items)} items: balanced accuracy needs two"

    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """1 for the right choice; predicted is the choice, or "" for none of them."""
        assert item.choices is not None
        prediction = predicted(text, item.choices)
        return Value(float(prediction == normalise(item.targets[0])), prediction)

    def strata(self, items: Sequence[Item]) -> list[str]:
        """The right choice."""
        return _gold(items)

    def baseline(self, items: Sequence[Item]) -> float:
        """One of the groups."""
        return 100 / len(set(self.strata(items)))

    def score(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Value]) -> float:
        """Balanced accuracy."""
        return balanced_accuracy(_gold(items), [one.prediction or "" for one in values])


def _gold(items: Sequence[Item]) -> list[str]:
    return [normalise(item.targets[0]) for item in items]


def predicted(response: str, choices: Sequence[str]) -> str:
    """The choice that a response equals, normalised; "" where it equals none."""
    found = normalise(response)
    return found if found in {normalise(choice) for choice in choices} else ""


def balanced_accuracy(gold: Sequence[str], predictions: Sequence[str]) -> float:
    """0..100: the mean over the gold labels present of the share found."""
    labels = sorted(set(gold))
    pairs = list(zip(gold, predictions, strict=True))
    recall = [sum(p == label for g, p in pairs if g == label) / sum(g == label for g in gold) for label in labels]
    return 100 * sum(recall) / len(labels)
