"""The languages: codes, scripts, names, and the choice of l_z."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dudi.draws import draw
from dudi.errors import DudiError


@dataclass(frozen=True)
class Language:
    """One language: ISO 639-1 code, English name, Unicode script, and other names that data sets use for it."""

    code: str
    name: str
    script: str
    aliases: tuple[str, ...] = ()


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("en", "English", "Latin", ("eng",)),
        Language("id", "Indonesian", "Latin", ("ind", "bahasa indonesia")),
        Language("vi", "Vietnamese", "Latin", ("vie",)),
        Language("th", "Thai", "Thai", ("tha",)),
        Language("ta", "Tamil", "Tamil", ("tam",)),
        Language("tl", "Tagalog", "Latin", ("tgl", "fil", "filipino")),
        Language("ms", "Malay", "Latin", ("msa", "zsm", "bahasa melayu")),
        Language("my", "Burmese", "Myanmar", ("mya", "bur", "myanmar")),
    )
}
ENGLISH = "en"


def language_code(text: str) -> str:
    """The code of a language given by code, English name or alias, in any case (`Filipino_NativeScript` is `tl`).

    A code that is not one of the eight stands for itself, so that more languages need only a template file; anything
    else raises `DudiError`.
    """
    key = text.strip().lower().split("_", 1)[0]
    for language in LANGUAGES.values():
        if key in (language.code, language.name.lower(), *language.aliases):
            return language.code
    if 2 <= len(key) <= 3 and key.isascii() and key.isalpha():
        return key
    known = ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())
    raise DudiError(f"unknown language {text!r}: expected one of {known}, or an ISO 639 code with a template file")


def choose_l_z(l: str, languages: Sequence[str], include_english: bool, key: tuple[int | str, ...]) -> str:
    """l_z, uniform over (training languages + English) without l (paper section 3.3). Pure function of the arguments.

    `include_english=False` takes English out (the paper's "w/o English"). Raises `DudiError` if nothing is left.
    """
    choices = sorted({*languages, ENGLISH} if include_english else set(languages) - {ENGLISH})
    choices = [code for code in choices if code != l]
    if not choices:
        raise DudiError(
            f"the cross-lingual verbalizer has no language to choose for rows in {l!r}: train on two languages or more,"
            " or leave include_english on"
        )
    return choices[draw(*key, "l_z") % len(choices)]


def letters_by_script(text: str) -> Counter[str]:
    """How many letters of a text are of each script, such as THAI."""
    found = Counter(script_of_letter(c) for c in text)
    del found[""]
    return found


@cache
def script_of_letter(character: str) -> str:
    """A letter's script: the first word of its Unicode name, such as LATIN, THAI, MYANMAR, CJK; "" for no letter.

    The vowel signs that Thai, Tamil and Burmese write as marks count; accents standing alone do not.
    """
    if unicodedata.category(character)[0] not in "LM":
        return ""
    name = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    return "" if name in ("COMBINING", "VARIATION") else name
