"""The shapes of rows. A new one is a file here and its line in `FORMATS`; `docs/data.md` shows one."""

from __future__ import annotations

from dudi.data.formats import alpaca, aya, messages, prompt_completion, sharegpt
from dudi.data.formats.format import Conversation, Format
from dudi.errors import DudiError

__all__ = ["BY_LOOK", "FORMATS", "SEA_INSTRUCT", "Conversation", "Format", "formats_of", "wanted"]

FORMATS: tuple[Format, ...] = (
    messages.FORMAT,
    sharegpt.FORMAT,
    prompt_completion.FORMAT,
    alpaca.FORMAT,
    aya.FORMAT,
)
"""In the order in which they are tried on a row."""
BY_LOOK, SEA_INSTRUCT = "chat", "sea_instruct"


def formats_of(name: str) -> tuple[Format, ...]:
    """The formats that `data.format` allows: that of the name, or all. Raises `DudiError` for no such name."""
    found = FORMATS if name == BY_LOOK else tuple(one for one in FORMATS if one.name == name)
    if not found:
        names = ", ".join([BY_LOOK, *(one.name for one in FORMATS), SEA_INSTRUCT])
        raise DudiError(
            f"data.format: expected one of {names} (sea_instruct and chat as in docs/data.md), found {name!r}"
        )
    return found


def wanted(formats: tuple[Format, ...]) -> str:
    """The columns that would make a row of one of the formats."""
    return ", or ".join(dict.fromkeys(one.wanted for one in formats))
