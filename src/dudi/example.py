"""Example: one row (x, y, l) of the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates read."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Example:
    """A row: x (all turns before the last answer; it ends with a user turn), y (the last answer), l (its language).

    `id` says where the row came from (file and row number), for messages; nothing is keyed by it, since real data
    has duplicate ids.
    """

    x: tuple[Message, ...]
    y: str
    l: str
    id: str
    untrained: tuple[int, ...] = ()
    """The turns of x that are answers the data gives weight 0: to be read, and never trained on."""

    def __post_init__(self) -> None:
        assert self.x and self.x[-1].role == "user", "x ends with a user turn"
