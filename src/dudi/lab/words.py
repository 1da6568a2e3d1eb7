"""The words and sentences of the lab's world, one file a language (world/XX.toml), and how a sentence is filled.

A file has words (`[animal] cat = "..."`, or a table of forms) and sentences with slots: `{animal}` is a word's `name`,
`{animal.many}` another of its forms. A form may itself hold `{n}`. The keys are the same in all files, and what
stands under one key means the same in all of them; only `[pairs]` are a language's own.

    python -m dudi.lab.words FILE ...       # check files: what is missing, misspelt or not NFC
"""

from __future__ import annotations

import re
import sys
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dudi.lab.sense import fitting

FOLDER = Path(__file__).parent / "world"
WORDS = [
    "language",
    "number",
    "country",
    "city",
    "continent",
    "currency",
    "animal",
    "class",
    "food",
    "drink",
    "thing",
    "place",
    "person",
    "color",
    "verb",
    "adjective",
    "label",
]
RELATIONS = {
    "capital": ("country", "city"),
    "located": ("country", "continent"),
    "money": ("country", "currency"),
    "kind": ("animal", "class"),
    "opposite": ("adjective", "other"),
    "plus": ("a", "b", "c"),
    "minus": ("a", "b", "c"),
}
ANSWERS = (*RELATIONS, "compare", "where", "bought", "eats", "keeps", "color")
READ = {"where": "place", "bought": "thing", "eats": "food", "keeps": "animal", "color": "color"}
PROMPTS = {
    "sentiment": ("text",),
    "safety": ("text",),
    "pairs": ("a", "b"),
    "read": ("text", "question"),
    "compare": ("text", "question"),
    "translate": ("text", "language"),
    "repeat": ("word", "n"),
    "answer_in": ("question", "language"),
}
SENTENCES = ("sentence", "review", "request")
SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")

Word = Mapping[str, str]  # form -> text; the citation form is `name`


@dataclass(frozen=True, eq=False)
class Words:
    """One language's file."""

    code: str
    separator: str
    words: dict[str, dict[str, Word]]
    table: dict[str, Any]

    def name(self, kind: str, key: str) -> str:
        """The citation form of a word."""
        return self.words[kind][key]["name"]

    def fill(self, sentence: str, slots: Mapping[str, Word | str], capital: bool = True) -> str:
        """`sentence` with its slots filled. A plain text stands for a word with that one form."""

        def value(match: re.Match[str]) -> str:
            word = slots[match[1]]
            if isinstance(word, str):
                return word
            return SLOT.sub(value, word[match[2] or "name"])

        text = SLOT.sub(value, sentence)
        return text[:1].upper() + text[1:] if capital else text


@cache
def load(code: str) -> Words:
    """A language of the world."""
    return read_words(FOLDER / f"{code}.toml")


def languages() -> tuple[str, ...]:
    """The languages of the world."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def read_words(file: Path) -> Words:
    """Read one file; see `problems` for what is checked by the tests."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    words = {
        kind: {key: {"name": word} if isinstance(word, str) else word for key, word in table[kind].items()}
        for kind in WORDS
    }
    return Words(table["code"], table["separator"], words, table)


def sentences(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """All sentences of a file with the keys that lead to them, in the file's order."""
    for key, value in table.items():
        if not path and (key in WORDS or key in ("code", "separator", "answer", "also")):
            continue
        if isinstance(value, str):
            yield (*path, key), value
        elif isinstance(value, list):
            yield from (((*path, key, str(i)), text) for i, text in enumerate(value))
        else:
            yield from sentences(value, (*path, key))


@cache
def slots(text: str) -> tuple[tuple[str, str], ...]:
    """(slot, form) of a sentence; the form is `name` where none is given."""
    return tuple((slot, form or "name") for slot, form in SLOT.findall(text))


@cache
def slots_within(words: Words, kind: str, form: str) -> frozenset[str]:
    """The slots that a form of a table's words holds itself, such as `{n}` in `{n} cats`."""
    return frozenset(slot for word in words.words.get(kind, {}).values() for slot, _ in slots(word.get(form, "")))


def slots_inside(words: Words, path: tuple[str, ...], text: str) -> set[str]:
    """The slots of a sentence and of the forms that it asks for."""
    found = slots(text)
    return {slot for slot, _ in found}.union(*(slots_within(words, slot_kind(path, s), form) for s, form in found))


def held(phrasings: list[str]) -> int:
    """How many of a list of phrasings, counted from its end, are kept for the test: a third, one at least."""
    return max(len(phrasings) // 3, 1)


def problems(file: Path) -> list[str]:
    """What is wrong with a file, compared with the English one: keys, slots, forms, doubles, spaces, NFC."""
    english = load("en")
    try:
        ours = read_words(file)
        theirs, seen = dict(sentences(english.table)), dict(sentences(ours.table))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return [f"{file.name}: cannot be read: {error!r}"]
    odd = [f"[{kind}] {key}" for kind in WORDS for key, word in ours.words[kind].items() if not isinstance(word, dict)]
    if odd:
        return [f"{file.name}: {where}: expected a text or a table of forms" for where in odd]
    found = [] if ours.code == file.stem else [f"code: {ours.code!r}, the file is {file.stem!r}"]
    for kind in WORDS:
        for key in english.words[kind].keys() ^ ours.words[kind].keys():
            found.append(f"[{kind}] {key}: {'missing' if key in english.words[kind] else 'not in the English file'}")
        names: dict[str, str] = {}
        for key, word in ours.words[kind].items():
            if "name" not in word:
                found.append(f"[{kind}] {key}: has no form 'name'")
            elif word["name"] in names:
                found.append(f"[{kind}] {key}: the same name as {names[word['name']]}")
            names[word.get("name", "")] = key
    for path in theirs.keys() | seen.keys():
        where = ".".join(path)
        if path[0] == "pairs":
            if path in seen and (path[2:] not in (("0",), ("1",)) or (*path[:2], "1") not in seen):
                found.append(f"{where}: a pair is [right, wrong]")
            continue
        if path not in seen or path not in theirs:
            found.append(f"{where}: {'missing' if path in theirs else 'not in the English file'}")
        elif {s for s, _ in slots(seen[path])} != {s for s, _ in slots(theirs[path])}:
            found.append(f"{where}: slots {list(slots(seen[path]))}, English has {list(slots(theirs[path]))}")
    if len(ours.table["pairs"]) < 12:
        found.append(f"[pairs]: {len(ours.table['pairs'])} pairs, wanted 12")
    for path, text in seen.items():
        inner = slots_inside(ours, path, text)
        if path[0] != "pairs" and path in theirs and (more := inner - slots_inside(english, path, theirs[path])):
            found.append(f"{'.'.join(path)}: slots {sorted(more)} within its words' forms, which English has not")
        for slot, form in slots(text):
            kind = slot_kind(path, slot)
            table = ours.words.get(kind, {})
            for key in fitting(path, slot, kind, tuple(table)) if path[0] != "kind" else table:
                if form not in table.get(key, {form}):
                    found.append(f"{'.'.join(path)}: [{kind}] {key} has no form {form!r}")
    found += [f"{where}: {what}" for where, what in _bad_answers(ours, english)]
    texts: dict[str, str] = {}
    for path, text in seen.items():
        if text in texts and path[0] != "pairs":
            found.append(f"{'.'.join(path)}: the same text as {texts[text]}")
        texts[text] = ".".join(path)
    forms = {
        f"{kind}.{key}.{form}": t for kind, w in ours.words.items() for key, v in w.items() for form, t in v.items()
    }
    for where, text in {**forms, **{".".join(path): text for path, text in seen.items()}}.items():
        if not isinstance(text, str) or not text.strip() or text != text.strip() or "  " in text:
            found.append(f"{where}: empty, or spaces too many: {text!r}")
        elif text != unicodedata.normalize("NFC", text):
            found.append(f"{where}: not NFC: {text!r}")
    return [f"{file.name}: {line}" for line in found]


def _bad_answers(ours: Words, english: Words) -> Iterator[tuple[str, str]]:
    """What is wrong with [answer] and [also]: their slots are the English ones, in forms that all words have."""
    for name in ANSWERS:
        texts = ours.table.get("answer", {}).get(name)
        if not isinstance(texts, list) or not texts:
            yield f"answer.{name}", "missing; wanted a list of texts"
            continue
        wanted = {*RELATIONS.get(name, ()), *(slot for slot, _ in slots(english.table["answer"][name][0]))}
        for slot, form in (one for text in texts for one in slots(text)):
            if slot not in wanted:
                yield f"answer.{name}", f"slot {slot!r}, English has {sorted(wanted)}"
                continue
            kind = slot_kind((name,), slot)
            bare = [key for key, word in ours.words[kind].items() if form not in word]
            yield from ((f"answer.{name}", f"[{kind}] {key} has no form {form!r}") for key in bare)
    for name, table in ours.table.get("also", {}).items():
        kind = slot_kind((name,), RELATIONS.get(name, ("",))[0])
        for key, texts in table.items():
            if key not in ours.words.get(kind, {}) or not isinstance(texts, list) or not all(texts):
                yield f"also.{name}.{key}", "wanted a list of texts by a key of what is asked about"


def slot_kind(path: tuple[str, ...], slot: str) -> str:
    """The table that a slot of the sentence at `path` is filled from; other texts (`{text}`) have none."""
    if path[0] == "compare":
        return "person"
    if path[0] == "prompt":
        return {"n": "number", "language": "language"}.get(slot, "")
    if slot == "other":
        return {"opposite": "adjective", "big_animal": "animal"}.get(
            path[-1] if path[0] == "sentence" else path[0], "person"
        )
    return "number" if slot in ("n", "a", "b", "c") else slot


if __name__ == "__main__":
    lines = [line for name in sys.argv[1:] for line in problems(Path(name))]
    print("\n".join(lines) or "no problems")
    sys.exit(bool(lines))
