"""Which language a response is in: by script, then by the benchmark's word lists or by py3langid. No torch.

The answer is a set of codes. Empty: undetermined, as of a letter, a number, or Latin text too short for statistics.
{OTHER}: a language that is none of the candidates. Several codes: a text that is as good in each, as many are in id and
ms.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from dudi.languages import LANGUAGES, letters_by_script, script_of_letter

OTHER = "other"
LATIN = "LATIN"
SHORTEST = 20
"""Letters that py3langid needs."""

Phrases = Mapping[str, frozenset[tuple[str, ...]]]
"""Language -> its phrases, each as a tuple of words."""


def identify(text: str, candidates: Iterable[str], words: Mapping[str, Sequence[str]] | None = None) -> frozenset[str]:
    """The languages among the candidates that a text is in.

    The script that most letters are of decides where only one candidate writes it. Latin text: with `words`, the
    languages whose phrases cover the most letters; without, py3langid among the candidates, from 20 letters on.
    """
    candidates = sorted(set(candidates))
    scripts = letters_by_script(text)
    most = max(scripts.values(), default=0)
    leading = [script for script, count in scripts.items() if count == most]
    if most == 0 or (most == 1 and LATIN in leading):
        return frozenset()  # a lone Latin letter is the label of a choice
    found: set[str] = set()
    for script in leading:
        writers = [code for code in candidates if script_of(code, words) == script]
        found |= _latin(text, writers, words) if script == LATIN else set(writers)
    too_short = LATIN in leading and not words and most < SHORTEST
    return frozenset(found) if found or too_short else frozenset({OTHER})


def script_of(code: str, words: Mapping[str, Sequence[str]] | None = None) -> str:
    """A language's script: known by its code, or that of its word list; Latin where neither says."""
    if code in LANGUAGES:
        return LANGUAGES[code].script.upper()
    return _script_of_words(tuple((words or {}).get(code, ())))


@functools.cache
def _script_of_words(words: tuple[str, ...]) -> str:
    counts = letters_by_script("".join(words))
    return counts.most_common(1)[0][0] if counts else LATIN


def _latin(text: str, writers: Sequence[str], words: Mapping[str, Sequence[str]] | None) -> set[str]:
    if words:
        covered = {code: coverage(text, words[code]) for code in writers if code in words}
        most = max(covered.values(), default=0)
        return {code for code, letters in covered.items() if letters == most > 0}
    if not writers or letters_by_script(text).total() < SHORTEST:
        return set()
    return {_identifier(tuple(writers)).classify(text)[0]}


def coverage(text: str, phrases: Sequence[str]) -> int:
    """Letters of a text that are covered by phrases, the longest first, from word border to word border."""
    known = _phrases(tuple(phrases))
    split = _split(text)
    free = [True] * len(split)
    for length in sorted({len(phrase) for phrase in known}, reverse=True):
        for at in range(len(split) - length + 1):
            if all(free[at : at + length]) and split[at : at + length] in known:
                free[at : at + length] = [False] * length
    return sum(len(word) for word, uncovered in zip(split, free, strict=True) if not uncovered)


@functools.cache
def _phrases(phrases: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    return frozenset(split for split in map(_split, phrases) if split)


def _split(text: str) -> tuple[str, ...]:
    """The words of a text, case folded: runs of letters."""
    text = unicodedata.normalize("NFC", text).casefold()
    return tuple("".join(c if script_of_letter(c) else " " for c in text).split())


@functools.cache
def _identifier(codes: tuple[str, ...]):  # type: ignore[no-untyped-def]
    """py3langid restricted to some languages; a copy of its own, since the restriction is a state of the object."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    made = LanguageIdentifier.from_model_file(MODEL_FILE)
    made.set_languages(codes)
    return made
