"""Rows to train on: those that ship with the package, and conversations made of turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dudi.data.load import load_rows
from dudi.data.rows import as_line
from dudi.example import Example, Message
from dudi.recipe.schema import Data

LANGUAGES = ("id", "vi", "th", "ta", "tl", "ms", "my")


def builtin() -> list[Example]:
    """The rows that ship with the package (system turns and several turns among them)."""
    return load_rows(Data(source="builtin"), 0).train


def short_rows(number: int = 11) -> list[Example]:
    """Short rows of all languages, some with a system turn or with several turns."""
    shipped = builtin()
    return (shipped[1::9] + shipped[2::9])[:number]


def write_rows(file: Path, examples: Sequence[Example]) -> str:
    """Rows as chat JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(map(as_line, examples)), encoding="utf-8")
    return str(file)


def message(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    """Turns of user and assistant in alternation."""
    head = (Message("system", system),) if system else ()
    roles = ("user", "assistant")
    return (*head, *(Message(roles[k % 2], text) for k, text in enumerate(turns)))  # type: ignore[arg-type]
