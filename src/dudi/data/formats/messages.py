"""`messages` (or `conversations`, `conversation`): a list of turns with `role` and `content`, as OpenAI's and most
trainers' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.data.conversation import parse_conversations
from dudi.data.formats.format import SYSTEM, Conversation, Format, conversation_of
from dudi.data.formats.sharegpt import COLUMNS, is_sharegpt


def _read(row: Mapping[str, Any]) -> Conversation:
    column = next((name for name in COLUMNS if row.get(name) is not None), COLUMNS[0])
    return conversation_of(row, parse_conversations(row.get(column), column), column)


FORMAT = Format(
    "messages",
    "messages",
    tuple((column,) for column in COLUMNS),
    _read,
    extra=SYSTEM,
    looks=lambda row: not is_sharegpt(row),
)
