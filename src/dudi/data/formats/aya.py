"""`inputs` and `targets`: one question and its answer, as in Aya."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.data.formats.format import Conversation, Format, text


def _read(row: Mapping[str, Any]) -> Conversation:
    turns = [{"role": "user", "content": text(row, "inputs")}, {"role": "assistant", "content": text(row, "targets")}]
    return Conversation(turns, "(inputs + targets)")


FORMAT = Format("aya", "Aya", (("inputs", "targets"),), _read)
