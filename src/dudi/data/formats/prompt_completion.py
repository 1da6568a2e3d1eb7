"""`prompt` and `completion`, each a text (one turn) or a list of messages, as TRL's files have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.data.conversation import RowError, is_blank
from dudi.data.formats.format import ROLES, Conversation, Format, plain, system_turn


def _read(row: Mapping[str, Any]) -> Conversation:
    prompt, completion = (
        _turns(row.get(field), field, role) for field, role in (("prompt", "user"), ("completion", "assistant"))
    )
    return Conversation([*system_turn(row), *prompt, *completion], "(prompt + completion)")


def _turns(value: Any, field: str, role: str) -> list[Any]:
    if isinstance(value, str):
        if is_blank(value):
            raise RowError("empty content", field, value, "text that is not blank")
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise RowError("no conversation", field, value, "text, or a list of messages")
    turns = plain(value)
    last = turns[-1]
    if isinstance(last, dict) and isinstance(last.get("role"), str) and ROLES.get(last["role"], last["role"]) != role:
        raise RowError("turns out of order", f"{field}[{len(value) - 1}].role", last["role"], role)
    return turns


FORMAT = Format(
    "prompt_completion",
    "prompt and completion",
    (("prompt", "completion"),),
    _read,
    extra=("system",),
)
