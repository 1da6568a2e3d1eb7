"""ShareGPT: `conversations`, a list of turns with `from` (human, gpt) and `value`; `system` may be a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.data.conversation import parse_conversations
from dudi.data.formats.format import SYSTEM, Conversation, Format, conversation_of

COLUMNS = ("messages", "conversations", "conversation")


def is_sharegpt(row: Mapping[str, Any]) -> bool:
    """Whether a row's first turn has `from` and no `role`."""
    turns = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    if isinstance(turns, dict):
        return "from" in turns and "role" not in turns
    if isinstance(turns, str):
        return any(f"{quote}from{quote}" in turns[:200] for quote in "\"'") and "role" not in turns[:200]
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and first.get("from") is not None and first.get("role") is None


def _read(row: Mapping[str, Any]) -> Conversation:
    column = next((name for name in COLUMNS if row.get(name) is not None), COLUMNS[1])
    return conversation_of(row, parse_conversations(row.get(column), column), column)


FORMAT = Format(
    "sharegpt",
    "ShareGPT",
    tuple((column,) for column in COLUMNS),
    _read,
    extra=SYSTEM,
    looks=is_sharegpt,
)
