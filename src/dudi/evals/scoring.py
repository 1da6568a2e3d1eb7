"""The metrics: response -> value of an item in 0..1 -> raw score of a task and language in 0..100 -> normalised.

All are pure functions of texts. `choice` and the normalisation are SEA-HELM's; translation is scored by chrF++ instead
of a learned metric.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from pydantic import PositiveInt
from sacrebleu.metrics.chrf import CHRF

from dudi.recipe.schema import Section, Text

WORD_ORDER = 2
"""chrF++: character n-grams up to 6 and word n-grams up to 2."""
COMMAS = (",", "၊", "،", "、")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\ufeff\u2060\u00ad"))


class Constraints(Section):
    """What a response's form has to satisfy, after it is split into parts."""

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

    @property
    def given(self) -> bool:
        """Whether there is anything to satisfy."""
        return self.count is not None or self.distinct or self.among is not None or self.all is not None


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


# ── items ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def predicted(response: str, choices: Sequence[str]) -> str:
    """The choice that a response equals, normalised; "" where it equals none."""
    found = normalise(response)
    return found if found in {normalise(choice) for choice in choices} else ""


def exact(response: str, targets: Sequence[str]) -> float:
    """1 where the normalised response equals a normalised target."""
    return float(normalise(response) in {normalise(target) for target in targets})


def parts(response: str, separator: str) -> tuple[str, ...]:
    """A response split, each part normalised. A comma stands for any comma, a space for any run of space."""
    text = response.strip()
    if separator.strip() in COMMAS:
        pieces = re.split("|".join(map(re.escape, COMMAS)), text.strip("".join(COMMAS)))
    else:
        pieces = text.split(None if separator == " " else separator)
    return tuple(normalise(piece) for piece in pieces)


def satisfies(response: str, constraints: Constraints) -> bool:
    """Whether the parts of a response satisfy every constraint; an empty part never does."""
    if not constraints.given:
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


def sentence_chrf(response: str, targets: Sequence[str]) -> float:
    """chrF++ of one response, 0..1: against its best target."""
    score = CHRF(word_order=WORD_ORDER).sentence_score(_nfc(response), [_nfc(target) for target in targets])
    return float(score.score) / 100


# ── a task in one language ───────────────────────────────────────────────────────────────────────────────────────────
def balanced_accuracy(gold: Sequence[str], predictions: Sequence[str]) -> tuple[float, float]:
    """(score, baseline), both 0..100: mean over the gold labels present of the share found; 100 / number of labels."""
    labels = sorted(set(gold))
    pairs = list(zip(gold, predictions, strict=True))
    recall = [sum(p == label for g, p in pairs if g == label) / sum(g == label for g in gold) for label in labels]
    return 100 * sum(recall) / len(labels), 100 / len(labels)


def corpus_chrf(responses: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    """chrF++ of all responses together, 0..100: n-grams are counted over the corpus, each against its best target."""
    most = max(map(len, targets))
    padded = [
        [*map(_nfc, own), *[_nfc(own[0])] * (most - len(own))] for own in targets
    ]  # one more copy changes no best
    references = [list(stream) for stream in zip(*padded, strict=True)]
    return float(CHRF(word_order=WORD_ORDER).corpus_score([_nfc(r) for r in responses], references).score)


def normalised(score: float, baseline: float, best: float = 100.0) -> float:
    """max((s - baseline) / (max - baseline), 0) * 100: 0 is chance or worse, 100 is the best there is."""
    return max((score - baseline) / (best - baseline), 0.0) * 100


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
