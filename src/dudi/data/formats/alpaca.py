"""Alpaca: `instruction`, `input` (may be empty) and `output`; `system` and `history` as LLaMA-Factory writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.data.conversation import RowError, is_blank
from dudi.data.formats.format import Conversation, Format, system_turn, text


def _read(row: Mapping[str, Any]) -> Conversation:
    question, more = text(row, "instruction"), row.get("input")
    if more is not None and not (isinstance(more, str) and is_blank(more)):
        question += "\n" + text(row, "input")
    answer = {"role": "assistant", "content": text(row, "output")}
    turns = [*system_turn(row), *_history(row.get("history")), {"role": "user", "content": question}, answer]
    return Conversation(turns, "(instruction + output)")


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
    (("instruction", "output"),),
    _read,
    extra=("input", "system", "history"),
)
