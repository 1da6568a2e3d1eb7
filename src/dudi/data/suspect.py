"""Text that looks wrong: characters lost or misread, an answer in another script than its language's.

Only signs, for people to look at: nothing is left out or changed for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

from dudi.example import Example
from dudi.languages import script_of

LOST = "characters lost in an earlier conversion (U+FFFD)"
MISREAD = "mojibake: text in another encoding than it was read in"
SCRIPT = "an answer in another script than the label's"
FEWEST = 3
"""Letters that a script is told from: shorter answers are the labels of choices."""
_LOOKED_AT = 1_000
"""Characters of an answer that are looked at for its script."""

# UTF-8 read as Latin-1 or Windows-1252: what stands there for the bytes 80 to BF, which go on a character.
_BYTES = {chr(b): b for b in range(0x80, 0x100)}
_BYTES |= {bytes([b]).decode("cp1252", "ignore") or chr(b): b for b in range(0x80, 0xC0)}
_NEXT = "[" + "".join(map(re.escape, (c for c, b in _BYTES.items() if b < 0xC0))) + "]"
_THREE = re.compile(f"[\xe0-\xef]{_NEXT}{{2}}")
# Two bytes, without the quotation marks and dots that really follow an accented capital.
_TWO = re.compile("[\xc2-\xc6][\x80-\xbf]")
# Vietnamese in the font encoding TCVN3 (`TiÕng ViÖt`, `Hµ`): capitals within words, and signs for letters.
_TCVN3 = re.compile("[a-z][\xc0-\xd6\xd8-\xde][a-z]|[A-Za-z][\xb5\xb8](?![0-9])")
# And in VNI (`Tieáng Vieät`, `ñeïp`): a vowel, and its marks as a letter that no Vietnamese word has there.
_VNI = re.compile("[aeouAEOU][\xe4\xe5\xef\xfb\xeb]|[\xf1\xd1](?=[aeiouyAEIOUY])")
# Thai: UTF-8 read as Windows-874 (`เธชเธง`, of which Thai has no word), and Windows-874 read as Latin-1 (`¡ÃØ§à·¾`).
_THAI = re.compile("(?:เ[ธน][ –-…€ก-ฟ]){2}|[¡-Úß-û]{5}")
_VIETNAMESE = re.compile("[\u0103\u0111\u01a1\u01b0\u1ea0-\u1ef9]", re.IGNORECASE)


def suspicions(example: Example) -> list[str]:
    """What looks wrong in a row, in words."""
    script = _script_of(example.l)
    texts = [*(message.content for message in example.x), example.y]
    found = []
    if any("\ufffd" in text for text in texts):
        found.append(LOST)
    if any(_misread(text, script, example.l) for text in texts if not text.isascii()):
        found.append(MISREAD)
    if script is not None and _in_another(example.y[:_LOOKED_AT], script):
        found.append(SCRIPT)
    return found


@cache
def _script_of(language: str) -> str | None:
    script = script_of(language)
    return None if script is None else script.upper()


def _misread(text: str, script: str | None, language: str) -> bool:
    """Whether text has pieces that are letters of its language's script, or marks of punctuation such as curly quotes,
    once the bytes are read as UTF-8."""
    if any(_letter(piece.group(), script) for piece in _THREE.finditer(text)):
        return True
    twice = [piece for piece in _TWO.finditer(text) if _letter(piece.group(), script)]
    if len(twice) > 1:
        return True
    if language == "th":
        return _THAI.search(text) is not None
    if language != "vi" or _VIETNAMESE.search(text):
        return False
    return _TCVN3.search(text) is not None or len(_VNI.findall(text)) > 1


def _letter(piece: str, script: str | None) -> bool:
    try:
        character = bytes(_BYTES[c] for c in piece).decode()
    except UnicodeDecodeError:
        return False
    return _script(character) == script or "\u2010" <= character <= "\u2044"


def _in_another(text: str, script: str) -> bool:
    """Whether most letters are of another script, of enough letters to tell."""
    fine = _met(script)
    others = set(text) - fine
    fine |= {character for character in others if _script(character) in (script, "")}
    if others <= fine:  # nearly always
        return False
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        scripts[_script(character)] += count
    del scripts[""]
    return scripts.total() >= FEWEST and scripts.most_common(1)[0][0] != script


@cache
def _met(script: str) -> set[str]:
    """Characters met so far that are letters of a script or no letters."""
    return set()


@cache
def _script(character: str) -> str:
    """The script of a letter, by the first word of its name; empty for what is no letter."""
    if unicodedata.category(character)[0] != "L":
        return ""
    return unicodedata.name(character, "").split(" ", 1)[0].split("-", 1)[0]
