"""Alpaca: `instruction`, `input` (may be empty) and `output`, which Dolly calls `context` and `response`; `system` and
`history` as LLaMA-Factory writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.data.conversation import RowError, is_blank
from dudi.data.formats.format import SYSTEM, Conversation, Format, system_turn, text

_NO_INPUT = "<noinput>"
"""What Self-Instruct, and so the first Alpaca, writes where there is no input."""


def _read(row: Mapping[str, Any]) -> Conversation:
    asked = [text(row, name) for name in ("instruction", "input", "context") if _is_filled(row.get(name))]
    question = "\n".join(dict.fromkeys(asked)) if asked else text(row, "instruction")
    answer = {"role": "assistant", "content": text(row, "output", "response")}
    turns = [*system_turn(row), *_history(row.get("history")), {"role": "user", "content": question}, answer]
    return Conversation(turns, "(instruction + output)")


def _is_filled(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and (is_blank(value) or value.strip() == _NO_INPUT))


def _history(value: Any) -> list[dict[str, Any]]:
    """Earlier turns: pairs of a question and its answer."""
    pairs = value or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise RowError("unreadable history", "history", value, "pairs of a question and its answer")
    return [
        {"role": role, "content": said}
        for pair in pairs
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


FORMAT = Format(
    "alpaca",
    "Alpaca",
    (("instruction", "output"), ("instruction", "response")),
    _read,
    extra=("input", "context", "history", *SYSTEM),
)
