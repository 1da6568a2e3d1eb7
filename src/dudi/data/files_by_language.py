"""Which files belong to which configuration (language) and split, told from their names as the hub does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from dudi.data.containers import stem as stem_of
from dudi.errors import DudiError
from dudi.languages import ENGLISH, LANGUAGES, language_code

_SPLITS = {"train": "train", "test": "test", "eval": "eval", "dev": "validation", "val": "validation"}
_SPLITS |= {"valid": "validation", "validation": "validation", "training": "train"}
_SHARD = re.compile(r"-\d+(-of-\d+)?$")
# Languages of the data set that are not among our eight, and names beside those that `languages` knows.
_OTHER_NAMES = {"zh": ("chinese", "mandarin", "zho"), "km": ("khmer", "khm"), "lo": ("lao", "laotian")}
_OTHER_NAMES |= {"jv": ("javanese", "jav"), "su": ("sundanese", "sun")}


def names(language: str) -> tuple[str, ...]:
    """What a language may be called in a data set, in lower case."""
    known = LANGUAGES.get(language)
    of_known = (known.name.lower(), *known.aliases) if known else ()
    return (language, *of_known, *_OTHER_NAMES.get(language, ()))


def is_named(label: str, language: str) -> bool:
    """Whether a label names the language: `Filipino_NativeScript`, `filipino` and `tl` name `tl`."""
    text = re.sub(r"[_\W]+", " ", label.lower()).strip()
    # A code must be the whole label: a folder `my_data` is not Burmese.
    return any(text == name or (len(name) > 3 and text.startswith(name + " ")) for name in names(language))


def by_config(paths: Sequence[str]) -> dict[str, list[str]]:
    """Paths by configuration: the folder they lie in, else the name of the file without split and shard number."""
    configs: dict[str, list[str]] = {}
    for path in sorted(paths):
        *folders, _ = PurePosixPath(path).parts
        folders = [folder for folder in folders if folder != "data" and folder.lower() not in _SPLITS]
        stem = _SHARD.sub("", stem_of(path))
        if not folders and stem.lower() in _SPLITS:
            stem = "default"
        configs.setdefault(folders[0] if folders else stem, []).append(path)
    return configs


def languages_of(paths: Sequence[str]) -> dict[str, str]:
    """The language of each file, where all are named for one or lie in folders that are: `th.jsonl` beside `vi.jsonl`.

    Splits, shard numbers and words that all names share are no part of the label. Codes of two or three letters count
    only where they are of several languages, one of the eight among them: many short words are codes of something,
    and `my.jsonl` alone is hardly Burmese.
    """
    configs = by_config(paths)
    words = {config: [w for w in re.split(r"[-_. ]+", config) if w and w.lower() not in _SPLITS] for config in configs}
    shared = set.intersection(*map(set, words.values())) if len(words) > 1 else set()
    found: dict[str, str] = {}
    short = False
    for config, files in configs.items():
        label = [word for word in words[config] if word not in shared and not word.isdigit()]
        named = bool(label) and len(label[0]) > 3
        # `Tiếng Việt`, `Filipino_NativeScript`; or `th-TH`, `vie_Latn`
        code = _code(" ".join(label)) or _code(label[0]) if named else _code("-".join(label))
        if code is None:
            return {}
        short |= not named
        found |= dict.fromkeys(files, code)
    several = len(set(found.values())) > 1 and not LANGUAGES.keys().isdisjoint(found.values())
    return found if several or not short else {}


def language_hint(path: str) -> str | None:
    """The one of our languages that a path names in some word: enough to ask, not to rely on."""
    words = [word for part in (*PurePosixPath(path).parts[:-1], stem_of(path)) for word in re.split(r"[-_. ]+", part)]
    found = {code for code in LANGUAGES for word in words if is_named(word, code)}
    return found.pop() if len(found) == 1 else None


def _code(label: str) -> str | None:
    try:
        return language_code(label)
    except DudiError:
        return None


def of_language(configs: dict[str, list[str]], language: str, source: str) -> list[str]:
    """The files of a language. Raises `DudiError` that lists the configurations there are."""
    found = [path for config, paths in configs.items() if is_named(config, language) for path in paths]
    if not found:
        wanted = " or ".join(name.capitalize() for name in names(language) if len(name) > 3) or repr(language)
        raise DudiError(
            f"data.languages: {source!r} has no configuration for {language!r} ({wanted}); it has {', '.join(configs)}"
        )
    return sorted(found)


def default_languages(configs: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """The languages trained on when none is named: those of ours that the data has, without English; and the
    configurations left out. English is a language to answer in (l_z), trained on only where the recipe names it."""
    chosen = [code for code in LANGUAGES if code != ENGLISH and any(is_named(config, code) for config in configs)]
    rest = [config for config in configs if not any(is_named(config, code) for code in chosen)]
    return chosen, rest


def of_split(paths: Sequence[str], split: str, source: str) -> tuple[list[str], list[str]]:
    """The files of a split, and those left out. Files without a split in their names are the `train` split.

    Raises `DudiError` that lists the splits there are.
    """
    wanted = _SPLITS.get(split, split)
    marks = {path: _split_of(path, wanted) for path in paths}
    found = {mark for mark in marks.values() if mark}
    if not found and wanted == "train":
        return list(paths), []
    if wanted not in found:
        there = ", ".join(sorted(found)) or "train (no file names a split)"
        raise DudiError(f"data.split: {source!r} has no split {split!r}; it has {there}")
    return [p for p, mark in marks.items() if mark == wanted], [p for p, mark in marks.items() if mark != wanted]


def splits_of(paths: Sequence[str]) -> list[str]:
    """The splits that files name."""
    return sorted({split for path in paths if (split := _split_of(path, ""))})


def _split_of(path: str, wanted: str) -> str | None:
    *folders, _ = PurePosixPath(path).parts
    words = re.split(r"[-_. ]+", stem_of(path).lower())
    for part in (*words, *(folder.lower() for folder in reversed(folders))):
        if part in _SPLITS or part == wanted:
            return _SPLITS.get(part, part)
    return None
