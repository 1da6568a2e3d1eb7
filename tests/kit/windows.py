"""Windows of built-in rows under wide limits, and the sampler that served them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from dudi.example import Example
from dudi.methods import Method, Response, build_method
from dudi.recipe.schema import Limits
from dudi.rollouts import Request, Rollout
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer
from dudi.training.window import Item, Window, WindowBuilder, encode_rows
from kit.rows import LANGUAGES, builtin
from kit.trainers import Forced

VERBALIZER = Verbalizer(LANGUAGES, 3)
WIDE = Limits(prompt=4000, verbalizer=4000, total=8000, rollout=8, teacher_prompt=8000)
MODEL: Any = None
"""The forced sampler asks no model."""


def limits_with(**values: Any) -> Limits:
    """Wide limits, but for those given."""
    return WIDE.model_copy(update=values)


class Recording(Forced):
    """The forced sampler, which also keeps what it was asked."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat)
        self.calls: list[list[Request]] = []

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        self.calls.append(list(requests))
        return super().__call__(model, requests)


def build(
    chat: Chat,
    method: Method | dict[str, Any],
    limits: Limits = WIDE,
    examples: Sequence[Example] | None = None,
    epoch: int = 0,
    weight: list[float] | None = None,
) -> tuple[Window, Recording, Method]:
    """A window of some built-in rows, the sampler that served it, and the method."""
    built = method if isinstance(method, Method) else build_method(method)
    rows = list(encode_rows(examples or builtin()[::9], chat, limits).rows)
    sampler = Recording(chat)
    stored = {r.index: sampler.response(r.index, "stored") for r in rows}
    builder = WindowBuilder(chat, VERBALIZER, limits, sampler, 3, stored)
    weights = weight or [1.0] * len(rows)
    return builder.build(MODEL, built.signals, rows, weights, epoch), sampler, built


def by_response(window: Window, response: Response) -> list[Item | None]:
    """The items of the view of a response."""
    (found,) = (items for view, items in window.items.items() if view.response is response)
    return found
