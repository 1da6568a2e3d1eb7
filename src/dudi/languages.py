"""The languages: codes, scripts, names, and the choice of l_z."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

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
        Language("ms", "Malay", "Latin", ("msa", "zsm", "zlm", "bahasa melayu")),
        Language("my", "Burmese", "Myanmar", ("mya", "bur", "myanmar")),
    )
}
ENGLISH = "en"


_BY_NAME = {
    name: language.code
    for language in LANGUAGES.values()
    for name in (language.code, language.name.lower(), *language.aliases)
}
_TAG = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")
_NOT_A_LANGUAGE = {"und", "mul", "mis", "zxx"}
_THE_WORD_LANGUAGE = re.compile(r"^(bahasa|basa|wikang|ภาษา|ភាសា|ພາສາ)\s*|\s*(language|ဘာသာ(စကား)?|மொழி)$")


@lru_cache(maxsize=4096)
def language_code(text: str) -> str:
    """The code of a language as people write it, in any case: ISO 639-1, 639-2 and 639-3 codes, BCP 47 tags (`id-ID`,
    `eng_Latn`), English and native names (`Bahasa Indonesia`, `ไทย`, `Tagalog (Filipino)`, `Filipino_NativeScript`).

    A language that is not one of the eight has the code that BCP 47 gives it (`khm` and `Khmer` are `km`), so that
    more languages need only a template file. Raises `DudiError` for anything else, `und` and `mul` among it.
    """
    key = unicodedata.normalize("NFC", text).strip().lower().split("_", 1)[0].strip()
    code = _BY_NAME.get(key) or (_code_of_tag(key) if _TAG.fullmatch(key) else None) or _code_of_name(key)
    if code is None:
        known = ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())
        raise DudiError(f"unknown language {text!r}: expected one of {known}, or an ISO 639 code with a template file")
    return code


def _code_of_tag(tag: str) -> str | None:
    import langcodes  # a quarter of a second: only for what is not one of the eight by its plain name

    if not langcodes.tag_is_valid(tag):
        return None
    code = langcodes.Language.get(langcodes.standardize_tag(tag, macro=True)).language
    if code is None or code in _NOT_A_LANGUAGE or "qaa" <= code <= "qtz":  # these are for anybody's own use
        return None
    return _BY_NAME.get(code, code)  # the library's Filipino is `fil`; the paper's, and so ours, is `tl`


def _code_of_name(name: str) -> str | None:
    from langcodes import Language
    from language_data.names import TRIES, name_to_code, normalize_name

    plain = name.split("(", 1)[0].strip()
    for spelling in (name, plain, _THE_WORD_LANGUAGE.sub("", plain)):
        if spelling in _BY_NAME:
            return _BY_NAME[spelling]
        tag = name_to_code("language", spelling) if len(spelling) > 1 else None
        # The library also takes a name for its own first letters (Basa Jawa, which is Javanese, for Basa).
        exact = tag is not None and normalize_name(spelling) in TRIES["und/name_to_language"]
        if tag is not None and exact:
            code = _code_of_tag(tag.lower())
            # A language that nobody speaks, as a misread name mostly turns out to be, has to be given by its code.
            return code if code in LANGUAGES or (code and Language.get(code).speaking_population()) else None
    return None


def script_of(code: str) -> str | None:
    """The script that a language is mostly written in, as Unicode names its letters (`Thai`, `CJK`); None where it is
    not just one."""
    if code in LANGUAGES:
        return LANGUAGES[code].script
    from langcodes import Language

    language = Language.get(code).maximize()
    if language.script in (None, "Jpan"):
        return None
    return {"Hans": "CJK", "Hant": "CJK", "Kore": "Hangul"}.get(language.script) or str(language.script_name())


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


@cache
def has_letters(script: str) -> bool:
    """Whether Unicode has letters of a script, named in any case."""
    return any(script_of_letter(chr(point)) == script.upper() for point in range(0x20000))
