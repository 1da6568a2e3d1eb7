"""What an item may ask of the form of its answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, NonNegativeInt, PositiveInt, model_validator

from dudi.strict import STRICT, Text, expected


class Written(BaseModel):
    """A table that somebody writes by hand."""

    model_config = STRICT


class Bounds(Written):
    """A number between two others, both included."""

    at_least: NonNegativeInt | None = None
    at_most: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        low, high = self.at_least, self.at_most
        if (low is None and high is None) or (low is not None and high is not None and low > high):
            raise ValueError("no number lies there")
        return self


HowMany = Annotated[
    NonNegativeInt | Bounds,
    expected('a whole number, or a table of bounds such as {"at_least": 2}, {"at_least": 2, "at_most": 5}'),
]
"""Exactly so many, or so many within bounds."""


class Constraints(Written):
    """What a response's form has to satisfy: the parts that it is split into, then the whole (after IFEval)."""

    count: PositiveInt | None = None
    """Exactly so many parts."""
    separator: Text = ", "
    """What lies between the parts, exactly; but where it is a comma, any comma will do, with or without spaces."""
    distinct: bool = False
    """No part twice."""
    among: tuple[Text, ...] | None = None
    """Every part is one of these."""
    all: Text | None = None
    """Every part is this one."""

    words: HowMany | None = None
    sentences: HowMany | None = None
    paragraphs: HowMany | None = None
    """Parted by an empty line or by `***`."""
    bullets: HowMany | None = None
    """Lines that begin with `-`, `*` or `•` and a space."""
    highlights: HowMany | None = None
    """Of the kind `*so*` or `**so**`."""
    placeholders: HowMany | None = None
    """Of the kind `[address]`."""
    capital_words: HowMany | None = None
    """Words in capitals throughout."""
    occurs: dict[Text, HowMany] | None = None
    """Words or phrases, and how often each occurs."""
    letters: dict[Text, HowMany] | None = None
    """Letters or signs, and how often each occurs, in words too."""
    includes: tuple[Text, ...] | None = None
    """Words or phrases that all occur."""
    excludes: tuple[Text, ...] | None = None
    """Words or phrases none of which occurs."""
    starts: Text | None = None
    ends: Text | None = None
    paragraph: tuple[PositiveInt, Text] | None = None
    """The number of a paragraph, from 1 on, and how it begins."""
    sections: dict[Text, HowMany] | None = None
    """Names, and how many lines begin with each and a number, such as `Bagian 1`."""
    postscript: Text | None = None
    """A line that begins so, such as `P.S.`."""
    repeats: Text | None = None
    """It begins with this text, such as the request, and goes on after it."""
    case: Literal["upper", "lower"] | None = None
    """No letter is of the other."""
    script: Text | None = None
    """Every letter is of this script, as Unicode names it (`Latin`, `Thai`). The language then only must not be told to
    be another one: a list of a few words may belong to several, or to none that is known."""
    title: bool = False
    """Somewhere a `<<title>>`."""
    json_only: bool = False
    """Nothing but JSON, in a code fence or not."""
    quoted: bool = False
    """Within quotation marks."""
    no_comma: bool = False
    two_answers: bool = False
    """Two different ones, parted by `******`."""

    @property
    def of_parts(self) -> bool:
        """Whether there is anything for the parts to satisfy."""
        return self.count is not None or self.distinct or self.among is not None or self.all is not None

    @property
    def given(self) -> bool:
        """Whether there is anything to satisfy."""
        return self != Constraints(separator=self.separator)
