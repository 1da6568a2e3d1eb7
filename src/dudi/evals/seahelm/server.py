"""A student behind an OpenAI-compatible server: asked over HTTP, with its lengths checked here first."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.evals.answers import Answer
from dudi.evals.bench import Benchmark
from dudi.evals.respond import WHAT, load_chat, models_of, refusals, used_chat_kwargs
from dudi.models.load import load_config
from dudi.models.positions import positions
from dudi.records import Item
from dudi.text.chat import Chat

AT_ONCE = 32
"""Requests that wait for the server together."""
SECONDS = 600
"""How long one answer may take."""


@dataclass(frozen=True)
class Server:
    """A served model. chat and longest are those of the folder that is served: some servers cut in silence."""

    url: str
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
            except DudiError:
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, item: Item, limit: int, seed: int) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in item.messages],
            "max_tokens": limit,
            "temperature": self.temperature,
            "seed": seed,
        }
        if self.chat_kwargs:
            body["chat_template_kwargs"] = dict(self.chat_kwargs)
        found = _call(f"{self.url}/chat/completions", body)
        try:
            choice = found["choices"][0]
            tokens = found.get("usage", {}).get("completion_tokens", 0)
            return Answer(choice["message"]["content"] or "", int(tokens), choice["finish_reason"] == "stop")
        except (KeyError, IndexError, TypeError):
            raise DudiError(f"--server {self.url}: not the answer of a chat server: {str(found)[:200]}") from None


def connect(url: str, path: str, temperature: float, chat_kwargs: Mapping[str, Any]) -> Server:
    """The server at a URL such as http://localhost:8000/v1, and the one model that it serves."""
    url = url.rstrip("/")
    listed = _call(f"{url}/models")
    try:
        names = [one["id"] for one in listed["data"]]
    except (KeyError, TypeError):
        raise DudiError(f"--server {url}: /models does not list models: {str(listed)[:200]}") from None
    mine = [name for name in names if name in (path, Path(path).name)] or names
    if len(mine) != 1:
        raise DudiError(f"--server {url} serves {names}: which of them is {path!r}? serve it alone, or by that name")
    models = models_of(path, None)
    longest = positions(load_config(path, WHAT, models))
    used = used_chat_kwargs(Path(path).expanduser(), chat_kwargs)
    return Server(url, mine[0], load_chat(path, models, None, used), longest, temperature, used)


def _call(url: str, body: Mapping[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(300).decode(errors="replace").split())
        raise DudiError(f"--server {url}: status {error.code}: {said}") from None
    except (OSError, ValueError) as error:
        raise DudiError(
            f"--server {url}: {getattr(error, 'reason', error)}; start it and call the same again"
        ) from None
