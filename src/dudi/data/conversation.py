"""One row: a conversation, as text or as messages, to an Example; and what makes it broken."""

from __future__ import annotations

import ast
import hashlib
import json
import reprlib
import warnings
from collections.abc import Sequence
from typing import Any

from dudi.data.zawgyi import looks_zawgyi
from dudi.errors import DudiError
from dudi.example import ROLES, Example, Message

MAX_CHARS = 1_000_000
"""Characters of one conversation. Parsing a hostile one of this length may take 0.4 GB and 2 s, no more."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict = 2, 60, 60, 3, 3


class RowError(DudiError):
    """A broken row: why (a few words, for counting), which field, what was found there and what was wanted."""

    def __init__(self, reason: str, field: str, found: Any, wanted: str) -> None:
        self.reason, self.field, self.found, self.wanted = reason, field, short(found), wanted
        super().__init__(f"{field}: {reason}: found {self.found}, wanted {wanted}")


def short(value: Any) -> str:
    """A value in at most about 60 characters, for messages; never fails."""
    try:
        return _SHORT.repr(value)
    except Exception:  # integers beyond the digit limit, nesting beyond the stack
        return f"a {type(value).__name__}"


def parse_conversations(value: Any, field: str = "conversations") -> list[Any]:
    """The list that a `conversations` value holds: a list, or a string in JSON or in Python's own notation.

    Nothing in the string is ever executed: Python notation goes through `ast.literal_eval`, which knows constants and
    containers only. Raises `RowError`, and nothing else, for any other value.
    """
    wanted = "a list of messages, in JSON or Python notation"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError("empty conversation", field, value, wanted)
    if isinstance(value, str):
        if len(value) > MAX_CHARS:
            raise RowError("too long", field, f"{len(value):,} characters", f"at most {MAX_CHARS:,}")
        value = _literal(value, field, wanted)
    if not isinstance(value, list):
        raise RowError("not a list", field, value, wanted)
    if not value:
        raise RowError("empty conversation", field, value, wanted)
    return value


def _literal(text: str, field: str, wanted: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        pass
    try:
        # Other expressions than a list cannot be a conversation, and need not reach the parser.
        if text.lstrip().startswith("["):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an unknown backslash escape is the data's business
                return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass
    raise RowError("unreadable conversation", field, text, wanted)


def to_example(messages: Sequence[Any], language: str, id: str, field: str = "messages") -> Example:
    """The row (x, y, l) of a conversation: y is the last assistant turn, x all turns before it.

    An optional system turn comes first, then user and assistant turns alternate, and the last is an assistant turn.
    Other keys of a message than `role` and `content` are ignored. Raises `RowError` otherwise.
    """
    if not messages:
        raise RowError("empty conversation", field, messages, "at least a user and an assistant turn")
    turns = [_message(message, f"{field}[{i}]") for i, message in enumerate(messages)]
    if sum(len(turn.content) for turn in turns) > MAX_CHARS:
        raise RowError("too long", field, "a longer text", f"at most {MAX_CHARS:,} characters in all")
    start = 1 if turns[0].role == "system" else 0
    for i, turn in enumerate(turns[start:]):
        expected = "assistant" if i % 2 else "user"
        if turn.role != expected:
            where = f"{field}[{i + start}].role"
            raise RowError("turns out of order", where, turn.role, f"{expected} (user and assistant turns alternate)")
    if turns[-1].role != "assistant":
        raise RowError("no answer", field, f"a last turn of role {turns[-1].role}", "an assistant turn at the end")
    return Example(x=tuple(turns[:-1]), y=turns[-1].content, l=language, id=id)


def _message(message: Any, field: str) -> Message:
    if not isinstance(message, dict):
        raise RowError("not a message", field, message, "an object with role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError("unknown role", f"{field}.role", role, "system, user or assistant")
    if not isinstance(content, str):
        raise RowError("content is not text", f"{field}.content", content, "text")
    if not content.strip():
        raise RowError("empty content", f"{field}.content", content, "text that is not blank")
    try:
        content.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair; no tokenizer takes it
        raise RowError("invalid text", f"{field}.content", content, "text without lone surrogates") from None
    return Message(role, content)


def messages_of(example: Example) -> list[dict[str, str]]:
    """The conversation of a row, answer included, in the form that chat files have."""
    return [*(message.as_dict() for message in example.x), {"role": "assistant", "content": example.y}]


def fingerprint(example: Example) -> int:
    """64 bits of the content (roles and texts; not language or id): equal content, equal fingerprint.

    Two of a million different rows share one with probability 3e-8.
    """
    parts = [[message.role, message.content] for message in example.x]
    text = json.dumps([*parts, example.y], ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def is_zawgyi(example: Example) -> bool:
    """Whether a Burmese row has a turn in Zawgyi encoding; False for rows of other languages."""
    if example.l != "my":
        return False
    return looks_zawgyi(example.y) or any(looks_zawgyi(message.content) for message in example.x)
