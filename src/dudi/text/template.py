"""What a recipe adds to a chat template, written into the template itself, so that whoever reads the saved file asks
the model as it was trained: values of `chat.kwargs`, a system turn merged into the user's, and no date of today.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.example import Message

OF_MODELS = ("teacher", "student")
"""What `chat.template` may be beside a file: a model whose template is taken."""
MERGE_SYSTEM = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' and messages[0]['content'] is string"
    " and messages[1]['content'] is string %}{%- set messages = [{'role': messages[1]['role'],"
    " 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{%- endif %}\n"
)
"""A system turn stands at the head of the first user turn. Its line end is Jinja's to take away (`trim_blocks`), and
lets the template begin on a line of its own, as it did before."""
NO_DATE = "{%- set strftime_now = raise_exception %}\n"
"""Before a template: asking for today's date is an error."""


def check_template(choice: str) -> None:
    """Raises `DudiError` where `chat.template` is neither a model's nor a file."""
    if choice not in OF_MODELS and not Path(choice).is_file():
        raise no_template(choice)


def no_template(choice: str) -> DudiError:
    """The error for a `chat.template` that cannot be read."""
    return DudiError(f'chat.template: expected "teacher", "student" or a readable file, found {choice!r}')


def merged(messages: Sequence[Message]) -> list[Message]:
    """What `MERGE_SYSTEM` makes of a conversation that begins with a system turn."""
    system, first, *rest = messages
    return [Message(first.role, f"{system.content}\n\n{first.content}"), *rest]


def with_values(template: str, values: Mapping[str, Any], given: Collection[str]) -> str:
    """The template with values for what it is not told: asked without them, it writes what it writes with them.

    given: names that a template is always told (`bos_token`); a value takes their place.
    """
    head = ""
    for name, value in values.items():
        if not name.isidentifier():
            raise DudiError(f"chat.kwargs: {name!r} is no name in a chat template")
        text = json.dumps(value, ensure_ascii=False)
        setting = f"{{%- set {name} = {text} %}}"
        head += setting if name in given else f"{{%- if {name} is not defined %}}{setting}{{%- endif %}}"
    return template if not head or template.startswith(f"{head}\n") else f"{head}\n{template}"


def keywords(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE for the chat template: true, false and whole numbers as such, anything else a text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise DudiError(f"--chat {pair!r}: expected key=value, such as --chat enable_thinking=false")
        words: dict[str, Any] = {"true": True, "false": False}
        found[key] = int(text) if text.isascii() and text.isdigit() else words.get(text, text)
    return found
