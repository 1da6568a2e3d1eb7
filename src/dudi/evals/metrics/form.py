"""The form of a whole answer: instructions that a program can check (IFEval, Zhou et al. 2023), in any language.

Each field of `Constraints` that is about the whole answer has a check here: (answer, what the field says, language).
Words are those of `dudi.evals.metrics.words`, so that a word is found neither within another nor across its marks.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from dudi.evals.metrics.text import normalise
from dudi.evals.metrics.words import cannot_cut, occurrences, packages, words
from dudi.languages import has_letters, letters_by_script, script_of
from dudi.records.form import Bounds, Constraints

COMMAS = (",", "၊", "،", "、")
QUOTES = {'"': '"', "“": "”", "«": "»", "‘": "’", "「": "」"}
CASED = ("Latin", "Greek", "Cyrillic", "Armenian")
"""Scripts that have upper and lower case."""
_PHRASES = ("includes", "excludes", "occurs")
_OF_WORDS = ("words", *_PHRASES)
_OF_CASE = ("case", "capital_words")
_DIVIDER = r"(?:^|(?<=\s))\*\*\*(?=\s|$)"
_PARAGRAPHS = re.compile(rf"\n[^\S\n]*\n|{_DIVIDER}")
_SENTENCES = re.compile(rf"\n|{_DIVIDER}|(?<=[!?…])[\"'”’»)\]*]*(?=\s|$)|(?<=။)")
_STOPS = re.compile(r"(?<=\.)[\"'”’»)\]*]*(?=\s|$)")
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*(?=\S)[^\n*]+(?<=\S)\*\*|\*(?=\S)[^\n*]+(?<=\S)\*")
_PLACEHOLDER = re.compile(r"\[([^\[\]\n]*)\]")
_TITLE = re.compile(r"<<([^<>\n]*)>>")
_FENCE = re.compile(r"\A```(?:json\b)?|```\Z", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W\d_]+")


def holds(response: str, constraints: Constraints, language: str) -> bool:
    """Whether a whole answer satisfies every constraint on its form; an empty one satisfies none."""
    text = unicodedata.normalize("NFC", response).strip()
    wanted = list(_asked(constraints))
    return not wanted or (bool(text) and all(CHECKS[name](text, value, language) for name, value in wanted))


def cannot_check(constraints: Constraints, language: str) -> str | None:
    """Why answers in a language cannot be held to the constraints, as `constraints.field: fault`; None: they can."""
    for name, value in _asked(constraints):
        at = f"constraints.{name}"
        if name in _OF_CASE and (script := script_of(language)) not in CASED:
            return f"{at}: answers in {language!r} are written in {script or 'several scripts'}, which has no case"
        if name == "script" and not has_letters(value):
            return f"{at}: no letters are named {value!r}; expected a script such as Latin, Thai, Tamil, Myanmar"
        if name in _OF_WORDS and (fault := cannot_cut(language)):
            return f"{at}: {fault}"
        for phrase in value if name in _PHRASES else ():
            if not words(phrase, language):
                return f"{at}: {phrase!r} is only punctuation, and no word"
    return None


def needed(constraints: Constraints, language: str) -> tuple[str, ...]:
    """The packages that the checks depend on."""
    return packages(language) if any(name in _OF_WORDS for name, _ in _asked(constraints)) else ()


def _asked(constraints: Constraints) -> Iterator[tuple[str, Any]]:
    for name in CHECKS:
        value = getattr(constraints, name)
        if value is not None and value is not False:
            yield name, value


def _within(found: int, wanted: int | Bounds) -> bool:
    """Whether a number is the one wanted, or within the bounds."""
    low, high = (wanted, wanted) if isinstance(wanted, int) else (wanted.at_least, wanted.at_most)
    return (low is None or found >= low) and (high is None or found <= high)


def sentences(text: str, language: str) -> list[str]:
    """The sentences of a text, as `.`, `!`, `?`, `…`, `။`, the end of a line or `***` ends them.

    In Thai no full stop does: it marks abbreviations only, and sentences are parted by spaces, as much else is.
    """
    pieces = [piece for piece in _SENTENCES.split(text) if piece]
    if language != "th":
        pieces = [part for piece in pieces for part in _STOPS.split(piece)]
    return [piece.strip() for piece in pieces if any(map(str.isalpha, piece))]


def paragraphs(text: str) -> list[str]:
    """The blocks between empty lines, or between `***`."""
    return [piece.strip() for piece in _PARAGRAPHS.split(text) if piece.strip()]


def _filled(brackets: re.Pattern[str], text: str) -> int:
    """How many of some brackets have something in them."""
    return sum(bool(inner.strip()) for inner in brackets.findall(text))


def _starts(text: str, beginning: str) -> bool:
    return _folded(text).startswith(_folded(beginning))


def _ends(text: str, end: str, language: str) -> bool:
    marks = "".join(QUOTES.values())
    return _folded(text.rstrip(marks)).endswith(_folded(end.rstrip(marks)))


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _paragraph(text: str, wanted: Any, language: str) -> bool:
    (number, beginning), found = wanted, paragraphs(text)
    return len(found) >= number and _starts(found[number - 1], beginning)


def _sections(text: str, wanted: Any, language: str) -> bool:
    for name, number in wanted.items():
        heading = rf"^[^\S\n]*[#*]*\s*{re.escape(unicodedata.normalize('NFC', name))}\s*(?:\d+|\s[A-Z]\b)"
        if not _within(len(re.findall(heading, text, re.MULTILINE)), number):
            return False
    return True


def _postscript(text: str, marker: str, language: str) -> bool:
    start = "".join(_folded(marker).split())
    return any("".join(_folded(line).split()).startswith(start) for line in text.splitlines())


def _repeats(text: str, request: str, language: str) -> bool:
    rest = _folded(text)[len(_folded(request)) :]
    return _starts(text, request) and any(map(str.isalnum, rest))


def _json(text: str, wanted: bool, language: str) -> bool:
    fenced = text.startswith("```") and text.endswith("```")
    try:
        json.loads(_FENCE.sub("", text) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _quoted(text: str, wanted: bool, language: str) -> bool:
    return len(text) > 2 and QUOTES.get(text[0]) == text[-1] and bool(text[1:-1].strip())


def _two(text: str, wanted: bool, language: str) -> bool:
    found = [normalise(piece) for piece in re.split(r"\*{6}", text)]
    return len(found) == 2 and found[0] != found[1] and all(any(map(str.isalnum, piece)) for piece in found)


def _occurs(text: str, wanted: Any, language: str) -> bool:
    return all(_within(occurrences(phrase, text, language), number) for phrase, number in wanted.items())


def _letters(text: str, wanted: Any, language: str) -> bool:
    return all(_within(_folded(text).count(_folded(letter)), number) for letter, number in wanted.items())


CHECKS: dict[str, Callable[[str, Any, str], bool]] = {
    "words": lambda text, wanted, language: _within(len(words(text, language)), wanted),
    "sentences": lambda text, wanted, language: _within(len(sentences(text, language)), wanted),
    "paragraphs": lambda text, wanted, language: _within(len(paragraphs(text)), wanted),
    "bullets": lambda text, wanted, language: _within(len(_BULLET.findall(text)), wanted),
    "highlights": lambda text, wanted, language: _within(len(_HIGHLIGHT.findall(text)), wanted),
    "placeholders": lambda text, wanted, language: _within(_filled(_PLACEHOLDER, text), wanted),
    "capital_words": lambda text, wanted, language: _within(sum(map(str.isupper, _LETTERS.findall(text))), wanted),
    "occurs": _occurs,
    "letters": _letters,
    "includes": lambda text, wanted, language: all(occurrences(phrase, text, language) for phrase in wanted),
    "excludes": lambda text, wanted, language: not any(occurrences(phrase, text, language) for phrase in wanted),
    "starts": lambda text, wanted, language: _starts(text, wanted),
    "ends": _ends,
    "paragraph": _paragraph,
    "sections": _sections,
    "postscript": _postscript,
    "repeats": _repeats,
    "case": lambda text, wanted, language: text.isupper() if wanted == "upper" else text.islower(),
    "script": lambda text, wanted, language: set(letters_by_script(text)) <= {wanted.upper()},
    "title": lambda text, wanted, language: _filled(_TITLE, text) > 0,
    "json_only": _json,
    "quoted": _quoted,
    "no_comma": lambda text, wanted, language: not any(comma in text for comma in COMMAS),
    "two_answers": _two,
}
"""By field of `Constraints`."""
