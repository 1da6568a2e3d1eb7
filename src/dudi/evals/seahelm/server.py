"""A server that speaks OpenAI's chat protocol, in place of our own sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dudi.errors import DudiError
from dudi.evals.answers import Answer
from dudi.evals.bench import Benchmark
from dudi.evals.respond import WHAT, load_chat, models_of, refusals, used_chat_kwargs
from dudi.models.load import load_config
from dudi.models.positions import positions
from dudi.records import Item
from dudi.rollouts.connection import Connection
from dudi.rollouts.server import PLAIN
from dudi.text.chat import Chat

SETTING = "--server"
AT_ONCE = 32
"""Requests that wait for the server together."""


class _Reply(BaseModel):
    """What a server says, as far as it is read."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Card(_Reply):
    id: str


class _Models(_Reply):
    data: tuple[_Card, ...]


class _Message(_Reply):
    content: str | None = None


class _Choice(_Reply):
    message: _Message
    finish_reason: str | None = None


class _Usage(_Reply):
    completion_tokens: int = 0


class _Chat(_Reply):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass(frozen=True)
class Server:
    """A served model. chat and longest are those of the folder that is served: some servers cut in silence."""

    connection: Connection
    model: str
    chat: Chat
    longest: int | None
    temperature: float
    chat_kwargs: Mapping[str, Any]

    def too_long(self, items: Sequence[Item], benchmark: Benchmark) -> list[str]:
        """What the template refuses or the model's positions do not hold."""
        return refusals(self.chat, items, benchmark, self.longest)

    def answer(
        self, items: Sequence[Item], benchmark: Benchmark, seed: int, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """One answer for each item, in order. Raises `DudiError` where the server does not answer."""

        def one(item: Item) -> Answer:
            answer = self._one(item, benchmark.max_new_tokens(item), seed)
            if done:
                done(1)
            return answer

        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                return list(pool.map(one, items))
            except BaseException:
                self.connection.give_up()
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, item: Item, limit: int, seed: int) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in item.messages],
            "max_tokens": limit,
            "temperature": self.temperature,
            "seed": seed,
            **PLAIN,
        }
        if self.chat_kwargs:
            body["chat_template_kwargs"] = dict(self.chat_kwargs)
        reply = self.connection.call(_Chat, "chat/completions", body)
        (choice, *_), usage = reply.choices, reply.usage or _Usage()
        return Answer(choice.message.content or "", usage.completion_tokens, choice.finish_reason == "stop")


def connect(url: str, path: str, temperature: float, chat_kwargs: Mapping[str, Any]) -> Server:
    """The server at a URL such as http://localhost:8000/v1, and the one model that it serves."""
    connection = Connection(url.rstrip("/"), SETTING)
    names = [card.id for card in connection.call(_Models, "models", short=True).data]
    mine = [name for name in names if name in (path, Path(path).name)] or names
    if len(mine) != 1:
        raise DudiError(
            f"{connection.where} serves {names}: which of them is {path!r}? serve it alone, or by that name"
        )
    models = models_of(path, None)
    longest = positions(load_config(path, WHAT, models))
    used = used_chat_kwargs(Path(path).expanduser(), chat_kwargs)
    return Server(connection, mine[0], load_chat(path, models, None, used), longest, temperature, used)
