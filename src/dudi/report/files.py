"""JSON and JSON lines, checked: the first fault is one line with file, line, field, and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dudi.errors import DudiError


class Record(BaseModel):
    """What the report reads of a JSON object; other keys of it are left alone."""

    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())


def read_text(file: Path) -> str:
    """A file of UTF-8 text."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DudiError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise DudiError(f"{file}: not UTF-8 text") from None


def read_one(kind: TypeAdapter[Any], file: Path) -> Any:
    """A file that holds one JSON value."""
    return checked(kind, read_text(file), str(file))


def read_lines(kind: TypeAdapter[Any], file: Path, growing: bool = False) -> list[Any]:
    """A file of one JSON object a line. growing: a last line without its end is being written, and left out."""
    lines = read_text(file).split("\n")
    if growing:
        lines = lines[:-1]
    return [checked(kind, line, f"{file}: line {n}") for n, line in enumerate(lines, 1) if line.strip()]


def checked(kind: TypeAdapter[Any], text: str, where: str) -> Any:
    """JSON text -> record."""
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise DudiError(f"{where}: {place}{first['msg'][:1].lower()}{first['msg'][1:]}") from None
