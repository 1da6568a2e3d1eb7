"""What can be told of a [data] table before anything is read. Imports nothing heavy: `dudi check` asks this."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dudi.data.conversation import IGNORABLE, NEVER_IGNORED, ROW_KEYS
from dudi.data.formats import FORMATS, SEA_INSTRUCT, formats_of
from dudi.errors import DudiError
from dudi.recipe.schema import Data

LANGUAGE_COLUMNS = ("language", "language_code", "lang", "locale")
"""Where a row may say its language; the first that can be read counts."""
COMMON = (*LANGUAGE_COLUMNS, "id", *ROW_KEYS)
"""Columns that are read in every format."""
BUILTIN = Path(__file__).parent / "builtin" / "rows.jsonl"
"""What the source `builtin` stands for: the few rows that come with the package, to try things on."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Part:
    """One source of a [data] table: the key that names it, its name, the table as it holds for it alone, its weight."""

    key: str
    name: str
    data: Data
    weight: float = 1.0


def parts_of(data: Data) -> list[Part]:
    """The one source, or each of several."""
    if data.source is not None:
        return [Part("data.source", data.source, data)]
    found = []
    for number, one in enumerate(data.sources):
        own = {"source": one.source, "sources": (), "revision": one.revision}
        own |= {key: value for key in ("format", "columns", "language") if (value := getattr(one, key)) is not None}
        key = f"data.sources.{number}.source"
        found.append(Part(key, one.source, data.model_copy(update=own), one.weight))
    return found


def check_settings(data: Data) -> None:
    """Raises `DudiError` for names of formats, columns and keys that there are not, and for a source that is neither
    here nor the name of a data set on the hub."""
    parts = parts_of(data)
    for part in parts:
        check_names(part.data)
    for key, name in (*((part.key, part.name) for part in parts), ("data.eval_source", data.eval_source)):
        if name is None or path_of(name).exists():
            continue
        if not HUB_NAME.fullmatch(name) or Path(name).parent.is_dir():
            raise nowhere(name, key)


def check_names(data: Data) -> None:
    """Raises `DudiError` for names of formats, columns and keys that there are not."""
    if wrong := [name for name in data.ignore if name not in (*IGNORABLE, *NEVER_IGNORED)]:
        raise DudiError(f"data.ignore: {wrong[0]!r} is no part of a row; choose from {', '.join(IGNORABLE)}")
    if data.format == SEA_INSTRUCT:
        if data.columns:
            raise DudiError("data.columns: is not for data.format = 'sea_instruct', whose columns are known")
        return
    formats_of(data.format)
    of_formats = {*LANGUAGE_COLUMNS, "id", *(column for one in FORMATS for column in one.columns)}
    if unknown := [name for name in data.columns if name not in of_formats | set(ROW_KEYS)]:
        choices = ", ".join(sorted(of_formats))
        raise DudiError(f"data.columns: unknown field {unknown[0]!r}; choose from {choices}")


def path_of(name: str) -> Path:
    """Where a source lies, if it is here."""
    return BUILTIN if name == "builtin" else Path(name).expanduser()


def nowhere(name: str, key: str) -> DudiError:
    """The error for a source that is not here, and cannot be on the hub."""
    return DudiError(f"{key}: no file or folder {name!r}, and it is not a hub name (owner/name)")
