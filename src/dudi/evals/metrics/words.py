"""Texts as words: at spaces, in Thai by dictionary (pythainlp's newmm), in Burmese by syllables, which no space parts.

No library that can be depended on cuts Burmese into words; its syllables are found by rule (as sylbreak does: Ye Kyaw
Thu, https://github.com/ye-kyaw-thu/sylbreak), and any two systems that cut by that rule agree.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec

from dudi.errors import DudiError

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
_SYLLABLE = re.compile(
    r"(?<!\u1039)(?=[\u1000-\u1021](?!\u1037?[\u103a\u1039])|[\u1023-\u102a\u103f-\u1049\u104c-\u104f])"
)
"""Before a consonant that is neither stacked under another nor itself final (with asat) or stacked upon; before an
independent vowel, a digit and a sign that is a word."""
_MYANMAR = re.compile(r"[\u1000-\u109f]+|[^\u1000-\u109f]+")
_SIGNS_THAT_ARE_WORDS = "\u104c\u104d\u104e\u104f"
"""Burmese: at, and, it, of. Unicode has them as punctuation."""
UNSPACED = ("th", "my")
"""Languages whose words no space parts."""


def words(text: str, language: str, punctuation: str = " ") -> list[str]:
    """The words of a text, in lower case and NFC. punctuation: what stands for each sign of it: a space, which parts
    words (ROUGE), or nothing (SQuAD: `isn't` is one word). Raises `DudiError` where Thai cannot be cut.
    """
    text = unicodedata.normalize("NFC", text.lower().translate(_INVISIBLE))
    if punctuation:
        text = _replaced(text, punctuation)
    cut = _CUTTERS.get(language)
    # Where nothing stands for a sign, the text is cut with it first: signs are borders of words.
    return " ".join(_replaced(piece, "") for piece in ([text] if cut is None else cut(text))).split()


def joined(found: Iterable[str], language: str) -> str:
    """Words as one text again, as the language writes them."""
    return ("" if language in UNSPACED else " ").join(found)


def occurrences(phrase: str, text: str, language: str) -> int:
    """How often a phrase occurs in a text, from the border of a word to the border of a word."""
    found = words(text, language)
    place, starts, ends = 0, set(), set()
    for word in found:
        starts.add(place)
        ends.add(place + len(word))
        place += len(word) + (language not in UNSPACED)
    whole, wanted = joined(found, language), joined(words(phrase, language), language)
    at = [one.start() for one in re.finditer(f"(?={re.escape(wanted)})", whole)]
    return sum(start in starts and start + len(wanted) in ends for start in at)


def packages(language: str) -> tuple[str, ...]:
    """The packages that cut a language's texts into words."""
    return ("pythainlp",) if language == "th" else ()


def cannot_cut(language: str) -> str | None:
    """Why texts in a language cannot be cut into words here; None: they can."""
    if language == "th" and not _has_pythainlp():
        return "Thai is cut into words by pythainlp, which is not installed: pip install 'dudi[thai]'"
    return None


def _thai(text: str) -> list[str]:
    if fault := cannot_cut("th"):
        raise DudiError(fault)
    from pythainlp.tokenize import word_tokenize

    return list(word_tokenize(text, engine="newmm"))


def _burmese(text: str) -> list[str]:
    runs = (run for chunk in text.split() for run in _MYANMAR.findall(chunk))
    return [piece for run in runs for piece in _SYLLABLE.split(run) if piece]


_CUTTERS: dict[str, Callable[[str], list[str]]] = {"th": _thai, "my": _burmese}


@cache
def _has_pythainlp() -> bool:
    return find_spec("pythainlp") is not None


def _replaced(text: str, instead: str) -> str:
    return "".join(instead if _is_punctuation(sign) else sign for sign in text)


@cache
def _is_punctuation(sign: str) -> bool:
    """Unicode's punctuation, and the symbols of ASCII, which SQuAD and ROUGE count as such."""
    return sign in string.punctuation or (unicodedata.category(sign)[0] == "P" and sign not in _SIGNS_THAT_ARE_WORDS)
