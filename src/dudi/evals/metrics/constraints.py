"""Instructions that a program can check: the form of an answer, and its language."""

from __future__ import annotations

import re

from dudi.evals.metrics.exact import exact
from dudi.evals.metrics.form import COMMAS, cannot_check, holds, needed
from dudi.evals.metrics.metric import Metric, Value
from dudi.evals.metrics.text import normalise, only_punctuation
from dudi.records import Item
from dudi.records.form import Constraints


class ConstraintsMet(Metric):
    """All constraints hold; with targets the answer equals one, with a response language it is in that language."""

    needs = ("constraints",)

    def check(self, item: Item) -> str | None:
        """Something to check."""
        assert item.constraints is not None
        if item.targets or item.response_language or item.constraints.given:
            return only_punctuation("targets", item.targets) or cannot_check(item.constraints, item.asked)
        return "constraints: nothing to check; expected a constraint, targets or response_language"

    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """1 where all of it holds; an answer whose language cannot be told is not in the one asked for."""
        assert item.constraints is not None
        good = satisfies(text, item.constraints) and holds(text, item.constraints, item.asked)
        good = good and (not item.targets or bool(exact(text, item.targets)))
        if item.constraints.script is not None:
            return Value(float(good and in_language is not False))
        return Value(float(good and (item.response_language is None or bool(in_language))))

    def packages(self, item: Item) -> tuple[str, ...]:
        """What cuts the item's language into words, where a constraint is about words."""
        assert item.constraints is not None
        return needed(item.constraints, item.asked)


def parts(response: str, separator: str) -> tuple[str, ...]:
    """A response split, each part normalised. A comma stands for any comma, a space for any run of space."""
    text = response.strip()
    if separator.strip() in COMMAS:
        pieces = re.split("|".join(map(re.escape, COMMAS)), text.strip("".join(COMMAS)))
    else:
        pieces = text.split(None if separator == " " else separator)
    return tuple(normalise(piece) for piece in pieces)


def satisfies(response: str, constraints: Constraints) -> bool:
    """Whether the parts of a response satisfy every constraint on them; an empty part never does."""
    if not constraints.of_parts:
        return True
    found = parts(response, constraints.separator)
    return (
        bool(found)
        and all(found)
        and (constraints.count is None or len(found) == constraints.count)
        and (not constraints.distinct or len(set(found)) == len(found))
        and (constraints.among is None or set(found) <= {normalise(one) for one in constraints.among})
        and (constraints.all is None or set(found) == {normalise(constraints.all)})
    )
