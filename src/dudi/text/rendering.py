"""A chat template run on messages: it is a program that comes with a model, so it is confined and bounded.

transformers runs templates in Jinja's sandbox (no attribute of Python's inner life, nothing changed, `range` of 100,000
at most). What the sandbox leaves open is bounded here: processor time, and, while a template is tried out, memory.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dudi.errors import DudiError

MAX_TEMPLATE = 1 << 20
"""Characters of a template."""
MAX_TEXT = 1 << 24
"""Characters of what a template writes: 16 times the longest conversation."""
SECONDS = 2.0
"""Of processor time, for one conversation; a usual one takes a thousandth."""
MEMORY = 1 << 30
"""Bytes that trying a template out may take."""


class _TooLong(Exception):
    """The time is up."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, str]],
    prompt: bool,
    kwargs: Mapping[str, Any],
    trial: bool = False,
) -> str:
    """What the template writes for the messages; `prompt`: with the opening of an answer. Raises `DudiError`.

    trial: bounds the memory too, which is possible only while no model is at work.
    """
    roles = ", ".join(message["role"] for message in messages)
    if len(template) > MAX_TEMPLATE:
        raise DudiError(f"the chat template is longer than {MAX_TEMPLATE:,} characters")
    try:
        with _bounded_time(), _bounded_memory(trial):
            text = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=prompt,
                chat_template=template,
                **kwargs,
            )
    except _TooLong:
        raise DudiError(f"the chat template does not end: {SECONDS:g} s on a conversation of turns ({roles})") from None
    except MemoryError:
        raise DudiError(f"the chat template takes too much memory on a conversation of turns ({roles})") from None
    except Exception as error:  # a program: it may refuse turns on purpose, or fail in any way; so may chat.kwargs
        raise DudiError(f"the chat template refuses a conversation of turns ({roles}): {error!s:.500}") from None
    if not isinstance(text, str):
        raise DudiError(f"the chat template refuses a conversation of turns ({roles}): it gives no text")
    if len(text) > MAX_TEXT:
        raise DudiError(f"the chat template writes more than {MAX_TEXT:,} characters for turns ({roles})")
    return text


def left_out(messages: Sequence[Mapping[str, str]], text: str) -> str | None:
    """The role of the first message whose text the template did not write, white space aside; None if it wrote all.

    Earlier answers are the template's to show as it likes: many take old reasoning out on purpose.
    """
    squeezed: str | None = None
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant" or content.strip() in text:
            continue
        squeezed = squeezed or "".join(text.split())
        if "".join(content.split()) not in squeezed:
            return message["role"]
    return None


def read_template_file(file: Path) -> str:
    """A template's text. Raises `OSError` or `ValueError`."""
    if not file.is_file():  # a device or a pipe may have no end
        raise FileNotFoundError(str(file))
    with file.open("rb") as opened:
        return opened.read(4 * MAX_TEMPLATE).decode("utf-8")


@contextmanager
def _bounded_time() -> Iterator[None]:
    """Processor time, not the clock's: a busy or sleeping machine is nobody's fault. Only the main thread can be
    interrupted, and only on Unix."""
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _bounded_memory(wanted: bool) -> Iterator[None]:
    """At most `MEMORY` bytes more than this process has now; where the system tells and keeps that (Linux)."""
    status = Path("/proc/self/statm")
    if not wanted or not status.exists():
        yield
        return
    import resource

    now = int(status.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + MEMORY
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
