"""Texts as answers and targets are compared (SEA-HELM's normalisation)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from dudi.strict import shown

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\ufeff\u2060\u00ad"))


def normalise(text: str) -> str:
    """NFC, case folded, no zero-width spaces, runs of space as one, outer punctuation and quotes stripped.

    Punctuation is Unicode's, so ။ and ၊ and curly quotes are among it. A minus before a digit and a percent sign stay.
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.translate(_INVISIBLE)).casefold())
    text = " ".join(text.split())
    start, end = 0, len(text)
    while start < end and _outer(text[start]) and not _sign(text, start):
        start += 1
    while end > start and _outer(text[end - 1]):
        end -= 1
    return text[start:end]


def _outer(character: str) -> bool:
    return character in " `" or (character != "%" and unicodedata.category(character)[0] == "P")


def _sign(text: str, at: int) -> bool:
    return text[at] == "-" and text[at + 1 : at + 2].isdigit()


def alike(choices: Sequence[str]) -> str | None:
    """The fault of an item of whose choices two are the same once normalised."""
    if len({normalise(choice) for choice in choices}) < len(choices):
        return f"choices: two are the same once normalised, in {shown(choices)}"
    return None


def only_punctuation(field: str, texts: Sequence[str]) -> str | None:
    """The fault of an item of whose texts one would be nothing once normalised, and so equal any empty answer."""
    for text in texts:
        if not normalise(text):
            return f"{field}: {text!r} is only punctuation, and nothing once that is stripped"
    return None
