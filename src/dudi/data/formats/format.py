"""Format: how a row becomes a conversation; and what formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dudi.data.conversation import RowError, is_blank

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
"""What other tools call our roles."""


@dataclass(frozen=True)
class Conversation:
    """The turns of a row; where they stood, for messages; and what role and content are called there."""

    turns: list[Any]
    field: str
    keys: tuple[str, str] = ("role", "content")


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    name: what `data.format` calls it; title: what it is called in a sentence; needs: the columns that make a row one,
    or other columns that do; read: a row's conversation, or `RowError`; extra: columns it reads beside; looks: tells
    a row of it from others that have the same columns.
    """

    name: str
    title: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Mapping[str, Any]], Conversation]
    extra: tuple[str, ...] = ()
    looks: Callable[[Mapping[str, Any]], bool] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that it reads."""
        return (*(column for columns in self.needs for column in columns), *self.extra)

    @property
    def wanted(self) -> str:
        """The columns that make a row one, in words."""
        return " or ".join(" and ".join(f"`{column}`" for column in columns) for columns in self.needs)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one, by look."""
        whole = any(all(row.get(column) is not None for column in columns) for columns in self.needs)
        return whole and (self.looks is None or self.looks(row))

    def begins(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has a part of what makes it one."""
        return any(row.get(column) is not None for columns in self.needs for column in columns)


def plain(turns: list[Any], keys: tuple[str, str] = ("role", "content")) -> list[Any]:
    """Turns with our names of roles, and with contents in parts as one text where all parts are text."""
    return [_plain(turn, *keys) if isinstance(turn, dict) else turn for turn in turns]


def _plain(turn: dict[str, Any], role: str, content: str) -> dict[str, Any]:
    name, parts = turn.get(role), turn.get(content)
    if isinstance(name, str) and name in ROLES:
        turn = {**turn, role: ROLES[name]}
    if isinstance(parts, list) and parts:
        texts = [part if isinstance(part, str) else _text(part) for part in parts]
        if all(isinstance(text, str) for text in texts):
            turn = {**turn, content: "".join(map(str, texts))}
    return turn


def _text(part: Any) -> Any:
    return part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None


def text(row: Mapping[str, Any], field: str) -> str:
    """A field of a row that has to be text with something in it. Raises `RowError`."""
    value = row.get(field)
    if not isinstance(value, str):
        raise RowError("no conversation" if value is None else "content is not text", field, value, "text")
    if is_blank(value):
        raise RowError("empty content", field, value, "text that is not blank")
    return value


def system_turn(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The system turn that a row has in a column of its own, or none."""
    value = row.get("system")
    if value is not None and not isinstance(value, str):
        raise RowError("content is not text", "system", value, "text")
    return [{"role": "system", "content": value}] if value and not is_blank(value) else []
