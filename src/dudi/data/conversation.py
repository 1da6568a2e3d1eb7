"""One row: a conversation, as text or as messages, to an Example; and what makes it broken."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import reprlib
import unicodedata
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dudi.data.zawgyi import looks_zawgyi
from dudi.errors import DudiError
from dudi.example import ROLES, Example, Message

MAX_CHARS = 1_000_000
"""Characters of one conversation. Parsing a hostile one of this length may take 0.4 GB and 2 s, no more."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict = 2, 60, 60, 6, 3

# Unicode's default-ignorable characters, controls, and the blank of Braille: text of these alone shows nothing.
_SHOWS = re.compile(
    "[^\\s\0-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
NEVER_IGNORED = (
    "tool_calls", "function_call", "images", "image", "audio", "audios", "videos", "video", "attachments",
)  # fmt: skip
"""Keys of a row or message with a part of the conversation that cannot be read: without it, it is another one. They
break their row, also where a recipe names them."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KNOWINGLY = (
    "name", *_REASONING, "reasoning_details", "channel", "recipient", "tool_call_id", "prefix", "refusal",
    "train_detail",
)  # fmt: skip
"""Keys that a reader may do without, if `data.ignore` says so."""
_USUAL = {"channel": "final", "recipient": "all"}
"""What says no more of a turn than that it is one."""
_ROW_KNOWINGLY = ("tools", "functions", "documents", "chat_template_kwargs")
_ROW_REASONING = (*_REASONING, "rationale", "chain_of_thought", "cot")
_ROW_PARTS = ("system", "system_prompt", "context", "input", "history", *_ROW_REASONING)
"""Columns that hold a part of the conversation where their format reads them, and so perhaps where it does not."""
_ROW_WEIGHTS, _ROW_MARKS = ("weight", "loss_weight"), ("label", "train", "trainable")
"""What takes a row out at 0, and what does at false."""
ROW_KEYS = (*_ROW_WEIGHTS, *_ROW_MARKS, *_ROW_PARTS, *NEVER_IGNORED, *_ROW_KNOWINGLY)
"""Keys of a row, beside its conversation, that say how it is meant."""
_WEIGHTS = ("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask")
"""Keys of an assistant turn that, at 0 or false, take it out of the loss."""
IGNORABLE = tuple(dict.fromkeys((*_KNOWINGLY, *_ROW_KNOWINGLY, *_ROW_PARTS, *_WEIGHTS, "label")))
"""What `data.ignore` may name."""


class RowError(DudiError):
    """A broken row: why (a few words, for counting), which field, what was found there and what was wanted."""

    excluded = False
    """Whether nothing is wrong with the row, but it says of itself that it is not to be trained on."""

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
    """The list that a `conversations` value holds: a list, or a string in JSON or in Python's own notation. One object
    of lists, as `datasets` keeps a `Sequence` of objects, is the list of objects.

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
    lists = list(value.values()) if isinstance(value, dict) else []
    if lists and all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
        value = [dict(zip(value, one, strict=True)) for one in zip(*lists, strict=True)]
    if not isinstance(value, list):
        raise RowError("not a list", field, value, wanted)
    if not value:
        raise RowError("empty conversation", field, value, wanted)
    return value


def messages_in(text: str) -> list[Any] | None:
    """The messages that a text holds in JSON or Python notation, as tables have them; None for any other text."""
    if not text.lstrip().startswith("[") or len(text) > MAX_CHARS:
        return None
    try:
        value = _literal(text, "", "")
    except RowError:
        return None
    keys = {"role", "content"}
    found = isinstance(value, list) and value and all(isinstance(one, dict) and keys <= one.keys() for one in value)
    return value if found else None


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


class Excluded(RowError):
    """A row that its own weights leave out of the training."""

    excluded = True


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, controls, zero-width and other ignorable characters."""
    return _SHOWS.search(text) is None


def to_example(
    messages: Sequence[Any],
    language: str,
    id: str,
    field: str = "messages",
    ignore: Collection[str] = (),
    keys: tuple[str, str] = ("role", "content"),
) -> Example:
    """The row (x, y, l) of a conversation: y is the last assistant turn that is trained on, x all turns before it.

    An optional system turn comes first, then user and assistant turns alternate, and the last is an assistant turn.
    A system turn without text is none.
    An assistant turn with `weight` 0 is not trained on: at the end it is left off, before the end the row remembers
    it. Keys that change what a turn means (tool calls, reasoning, names) make the row broken unless `ignore` has
    them; other keys are ignored. keys: what role and content are called, for messages. Raises `RowError`.
    """
    if not messages:
        raise RowError("empty conversation", field, messages, "at least a user and an assistant turn")
    left_out = 1 if _is_empty_system(messages[0], keys) else 0
    messages = messages[left_out:]
    turns = [_message(message, f"{field}[{i}]", ignore, keys) for i, message in enumerate(messages, left_out)]
    if not turns:
        raise RowError("no answer", field, "a system turn only", "an assistant turn at the end")
    if sum(len(turn.content) for turn in turns) > MAX_CHARS:
        raise RowError("too long", field, "a longer text", f"at most {MAX_CHARS:,} characters in all")
    start = 1 if turns[0].role == "system" else 0
    for i, turn in enumerate(turns[start:]):
        expected = "assistant" if i % 2 else "user"
        if turn.role != expected:
            where = f"{field}[{i + start + left_out}].{keys[0]}"
            raise RowError("turns out of order", where, turn.role, f"{expected} (user and assistant turns alternate)")
    if turns[-1].role != "assistant":
        raise RowError("no answer", field, f"a last turn of role {turns[-1].role}", "an assistant turn at the end")
    weighed = ((i, message) for i, message in enumerate(messages) if turns[i].role == "assistant")
    untrained = {i for i, message in weighed if weight_of(message, f"{field}[{i + left_out}].", ignore) == 0}
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant" and i not in untrained), default=None)
    if last is None:
        raise Excluded("weight 0", field, "only answers of weight 0", "an answer to train on")
    before = tuple(sorted(i for i in untrained if i < last))
    return Example(x=tuple(turns[:last]), y=turns[last].content, l=language, id=id, untrained=before)


def _is_empty_system(message: Any, keys: tuple[str, str]) -> bool:
    if not isinstance(message, dict) or message.get(keys[0]) != "system":
        return False
    content = message.get(keys[1], 0)
    return content is None or (isinstance(content, str) and is_blank(content))


def _message(message: Any, field: str, ignore: Collection[str], keys: tuple[str, str]) -> Message:
    if not isinstance(message, dict):
        raise RowError("not a message", field, message, f"an object with {keys[0]} and {keys[1]}")
    role, content = message.get(keys[0]), message.get(keys[1])
    refuse(message, f"{field}.", NEVER_IGNORED, _KNOWINGLY, ignore)
    if not isinstance(role, str) or role not in ROLES:
        found = role if keys[0] in message else f"only {', '.join(map(str, message))}"
        raise RowError("unknown role", f"{field}.{keys[0]}", found, "system, user or assistant")
    if not isinstance(content, str):
        raise RowError("content is not text", f"{field}.{keys[1]}", content, "text")
    if is_blank(content):
        raise RowError("empty content", f"{field}.{keys[1]}", content, "text that is not blank")
    try:
        content.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair; no tokenizer takes it
        raise RowError("invalid text", f"{field}.{keys[1]}", content, "text without lone surrogates") from None
    return Message(role, content)


def refuse(
    value: Mapping[str, Any], field: str, never: Sequence[str], knowingly: Sequence[str], ignore: Collection[str]
) -> None:
    """Raises `RowError` where a row or message has a part that would be dropped; empty ones say nothing."""
    keys = (*never, *knowingly)
    if value.keys().isdisjoint(keys):
        return
    for key in keys:
        found = value.get(key)
        if not found or (isinstance(found, str) and found.strip() in ("", "[]", "{}", "null", _USUAL.get(key))):
            continue
        if key in never:
            raise RowError(f"{key} cannot be read", f"{field}{key}", found, "a conversation of text alone")
        if key not in ignore:
            wanted = f'none, or data.ignore = ["{key}"] to read rows without it'
            raise RowError(f"{key} cannot be read", f"{field}{key}", found, wanted)


def refuse_row(row: Mapping[str, Any], example: Example, read: Collection[str], ignore: Collection[str]) -> None:
    """Raises `RowError` where something beside a row's conversation would be dropped, or takes the row out.

    read: the columns that the row's format reads.
    """
    refuse(row, "", NEVER_IGNORED, _ROW_KNOWINGLY, ignore)
    for key in _ROW_PARTS:
        if (
            key in row
            and key not in read
            and key not in ignore
            and not _is_in(row[key], example, key in _ROW_REASONING)
        ):
            wanted = f'none beside it, or data.ignore = ["{key}"] to read rows without it'
            raise RowError(f"{key} is no part of the conversation", key, row[key], wanted)
    if weight_of(row, "", ignore, _ROW_WEIGHTS) == 0:
        raise Excluded("weight 0", "weight", 0, "a row to train on")
    for key in _ROW_MARKS:
        if row.get(key) is False and key not in ignore:
            raise Excluded(f"{key} false", key, False, "an answer to learn from")


def _is_in(value: Any, example: Example, of_answer: bool) -> bool:
    """Whether a column says nothing that the turns do not say: those before y, or y too where it is a part of that."""
    if not isinstance(value, str):
        return not isinstance(value, list | dict) or not value
    texts = [*(message.content for message in example.x), *([example.y] if of_answer else [])]
    return is_blank(value) or any(value.strip() in text for text in texts)


def weight_of(value: Mapping[str, Any], field: str, ignore: Collection[str], keys: Sequence[str] = _WEIGHTS) -> int:
    """0 or 1, by `weight` and what else it is called; 1 without one. Raises `RowError` for other weights, which nothing
    honours."""
    found = 1
    for key in keys:
        weight = None if key in ignore else value.get(key)
        if isinstance(weight, str) or weight not in (None, 0, 1):
            wanted = f'0 or 1, or data.ignore = ["{key}"]'
            raise RowError("a weight that is not 0 or 1", f"{field}{key}", weight, wanted)
        found = 0 if weight == 0 else found
    return found


def messages_of(example: Example) -> list[dict[str, Any]]:
    """The conversation of a row, answer included, in the form that chat files have."""
    messages: list[dict[str, Any]] = [message.as_dict() for message in example.x]
    for turn in example.untrained:
        messages[turn]["weight"] = 0
    return [*messages, {"role": "assistant", "content": example.y}]


def fingerprint(example: Example) -> int:
    """64 bits of the content (roles and texts; not language or id): equal content, equal fingerprint.

    Content that Unicode calls canonically equivalent is equal: Vietnamese written with combining marks (NFD, as some
    systems save it) is the same text as in NFC. Two of a million different rows share one with probability 3e-8.
    """
    digest = hashlib.blake2b(digest_size=8)
    for role, text in (*((message.role, message.content) for message in example.x), ("assistant", example.y)):
        if not text.isascii() and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        content = text.encode()
        digest.update(b"%b %d " % (role.encode(), len(content)))  # the length tells where a turn ends
        digest.update(content)
    return int.from_bytes(digest.digest(), "big")


def is_zawgyi(example: Example) -> bool:
    """Whether a Burmese row has a turn in Zawgyi encoding; False for rows of other languages."""
    if example.l != "my":
        return False
    return looks_zawgyi(example.y) or any(looks_zawgyi(message.content) for message in example.x)
