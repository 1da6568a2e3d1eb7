"""`prompt` and `completion`, each a text (one turn) or a list of messages, as TRL's files have them; `question` and
`answer`, `prompt` or `question` and `response` are the same by other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.data.conversation import RowError, is_blank, messages_in
from dudi.data.formats.format import SYSTEM, Conversation, Format, field_of, plain, system_turn

_PROMPT, _COMPLETION = ("prompt", "question"), ("completion", "response", "answer")


def _read(row: Mapping[str, Any]) -> Conversation:
    prompt, completion = (
        _turns(row, field_of(row, names), role) for names, role in ((_PROMPT, "user"), (_COMPLETION, "assistant"))
    )
    return Conversation([*system_turn(row), *prompt, *completion], "(prompt + completion)")


def _turns(row: Mapping[str, Any], field: str, role: str) -> list[Any]:
    value = row[field]
    if isinstance(value, str):
        if is_blank(value):
            raise RowError("empty content", field, value, "text that is not blank")
        value = messages_in(value) or [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise RowError("no conversation", field, value, "text, or a list of messages")
    turns = plain(value)
    last = turns[-1]
    if isinstance(last, dict) and isinstance(last.get("role"), str) and last["role"] != role:
        raise RowError("turns out of order", f"{field}[{len(value) - 1}].role", last["role"], role)
    return turns


FORMAT = Format(
    "prompt_completion",
    "prompt and completion",
    (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response")),
    _read,
    extra=SYSTEM,
)
