"""Format: how a row becomes a conversation; and what formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dudi.data.conversation import RowError, is_blank

_CALLED = {
    "user": ("human", "prompter"),
    "assistant": ("gpt", "chatgpt", "model", "bot", "chatbot", "ai"),
    "system": ("developer",),
}
ROLES = {name: role for role, names in _CALLED.items() for name in (role, *names)}
"""Our roles, by what tools and data sets call them, in small letters."""
SYSTEM = ("system", "system_prompt")
"""Columns of a row that hold its system turn."""
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text")


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
        """The columns that make a row one, in words, by their first names."""
        return " and ".join(f"`{column}`" for column in self.needs[0])

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one, by look."""
        whole = any(all(row.get(column) is not None for column in columns) for columns in self.needs)
        return whole and (self.looks is None or self.looks(row))

    def begins(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has a part of what makes it one."""
        return any(row.get(column) is not None for columns in self.needs for column in columns)


def keys_of(turns: list[Any]) -> tuple[str, str]:
    """What the first turn calls its role and its content."""
    first = turns[0] if turns and isinstance(turns[0], dict) else {}
    role, content = (next((key for key in keys if key in first), keys[0]) for keys in (_ROLE_KEYS, _CONTENT_KEYS))
    return role, content


def plain(turns: list[Any], keys: tuple[str, str] = ("role", "content")) -> list[Any]:
    """Turns with our names of roles, and with contents in parts as one text where all parts are text."""
    return [_plain(turn, *keys) if isinstance(turn, dict) else turn for turn in turns]


def _plain(turn: dict[str, Any], role: str, content: str) -> dict[str, Any]:
    name, parts = turn.get(role), turn.get(content)
    if isinstance(name, str):
        turn = {**turn, role: role_of(name)}
    if isinstance(parts, list) and parts:
        texts = [part if isinstance(part, str) else _text(part) for part in parts]
        if all(isinstance(text, str) for text in texts):
            turn = {**turn, content: "".join(map(str, texts))}
    return turn


def role_of(name: str) -> str:
    """Our name of a role; a name that nobody uses for one stays as it is."""
    return ROLES.get(name.strip().lower(), name)


def _text(part: Any) -> Any:
    kinds = ("text", "input_text", "output_text")
    return part.get("text") if isinstance(part, dict) and part.get("type", "text") in kinds else None


def field_of(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of these columns that a row has, and fills if it can be. Raises `RowError` where it has none."""
    there = [name for name in names if name in row]
    if not there:
        columns = ", ".join(sorted(map(str, row)))
        wanted = f"text under that name, or data.columns to say what it is called (the row has {columns:.200})"
        raise RowError("no conversation", names[0], None, wanted)
    return next((name for name in there if row[name] is not None), there[0])


def text(row: Mapping[str, Any], *names: str) -> str:
    """A field of a row, by the first of its names that is there: text with something in it. Raises `RowError`."""
    field = field_of(row, names)
    value = row[field]
    if not isinstance(value, str):
        raise RowError("no conversation" if value is None else "content is not text", field, value, "text")
    if is_blank(value):
        raise RowError("empty content", field, value, "text that is not blank")
    return value


def system_turn(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The system turn that a row has in a column of its own, or none."""
    field = next((name for name in SYSTEM if row.get(name)), SYSTEM[0])
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise RowError("content is not text", field, value, "text")
    return [{"role": "system", "content": value}] if value and not is_blank(value) else []


def conversation_of(row: Mapping[str, Any], turns: list[Any], field: str) -> Conversation:
    """A list of turns, whatever they call role and content, after the system turn in a column of its own.

    The same system turn in both places is one.
    """
    keys = keys_of(turns)
    turns = plain(turns, keys)
    system = [{keys[0]: turn["role"], keys[1]: turn["content"]} for turn in system_turn(row)]
    if not system or system[0].items() <= (turns[0].items() if isinstance(turns[0], dict) else set()):
        return Conversation(turns, field, keys)
    return Conversation([*system, *turns], f"(system + {field})", keys)
