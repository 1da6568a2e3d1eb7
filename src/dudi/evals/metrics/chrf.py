"""Translation: chrF++, where SEA-HELM has a learned metric."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from dudi.evals.metrics.metric import Metric, Value
from dudi.records import Item

WORD_ORDER = 2
"""chrF++: character n-grams up to 6 and word n-grams up to 2."""


class Chrf(Metric):
    """chrF++ against the best target: of one answer, and of the corpus."""

    mark = "chrF++"

    def value(self, item: Item, text: str, in_language: bool | None) -> Value:
        """Sentence chrF++."""
        return Value(sentence_chrf(text, item.targets))

    def score(self, items: Sequence[Item], texts: Sequence[str], values: Sequence[Value]) -> float:
        """Corpus chrF++, which is not the mean over sentences."""
        return corpus_chrf(texts, [item.targets for item in items])


def sentence_chrf(response: str, targets: Sequence[str]) -> float:
    """chrF++ of one response, 0..1: against its best target."""
    score = CHRF(word_order=WORD_ORDER).sentence_score(_nfc(response), [_nfc(target) for target in targets])
    return float(score.score) / 100


def corpus_chrf(responses: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    """chrF++ of all responses together, 0..100: n-grams are counted over the corpus, each against its best target."""
    most = max(map(len, targets))
    padded = [
        [*map(_nfc, own), *[_nfc(own[0])] * (most - len(own))] for own in targets
    ]  # one more copy changes no best
    references = [list(stream) for stream in zip(*padded, strict=True)]
    return float(CHRF(word_order=WORD_ORDER).corpus_score([_nfc(r) for r in responses], references).score)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
