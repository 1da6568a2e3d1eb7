"""A server that answers: OpenAI's completions, with token ids sent and returned, as vLLM has them.

No text is exchanged: a prompt is sent as the ids that the recipe's tokenizer and template make of it, and an answer is
the ids that were sampled. What cannot be a sample of the recipe's model under the recipe's settings is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.rollouts import Request, Rollout, Sampling
from dudi.rollouts.connection import Connection, Refused

FORMS: tuple[dict[str, Any], ...] = (
    {"return_token_ids": True},
    {"logprobs": 1, "return_tokens_as_token_ids": True},
)
"""How an answer's ids are asked for: as they are, or in the place of texts, as older releases of vLLM return them."""
AS_ID = "token_id:"
PLAIN = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1, "stream": False}
"""Said in each request: left out, it would be what the model's generation_config.json says."""
ABSENT = (404, 405, 501)
"""The statuses of an address that a server does not have."""


class _Reply(BaseModel):
    """What a server says, as far as it is read."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Card(_Reply):
    """A model that is served. root: what it was loaded from; max_model_len: tokens of prompt and answer together."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(_Reply):
    data: tuple[Card, ...]


class _Tokens(_Reply):
    tokens: tuple[int, ...]


class _Logprobs(_Reply):
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()


class _Choice(_Reply):
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: _Logprobs | None = None

    @property
    def ids(self) -> tuple[int, ...] | None:
        """The answer's token ids, in either form; None where the server gives none."""
        if self.token_ids is not None or self.logprobs is None:
            return self.token_ids
        numbers = [text.removeprefix(AS_ID) for text in self.logprobs.tokens if text.startswith(AS_ID)]
        whole = len(numbers) == len(self.logprobs.tokens) and all(number.isdecimal() for number in numbers)
        return tuple(map(int, numbers)) if whole else None


class _Usage(_Reply):
    prompt_tokens: int | None = None


class _Completion(_Reply):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass(frozen=True)
class Server:
    """A model behind a server. form: how answers' ids are asked for."""

    connection: Connection
    card: Card
    sampling: Sampling
    form: Mapping[str, Any]

    def ask(self, request: Request) -> Rollout:
        """One answer. Raises `DudiError` for one that cannot be used."""
        body = self._body(request.prompt, request.limit, request.key)
        reply = self.connection.call(_Completion, "completions", {**body, **self.form})
        return _rollout(reply, request, self.sampling, self.connection.where)

    def check_tokenizer(self, texts: Mapping[str, Sequence[int]]) -> str | None:
        """That the server reads texts as these ids; the line of what could not be checked, if so.

        Raises `DudiError` with a text that it reads as other ids.
        """
        for text, wanted in texts.items():
            found = self._tokenized(text)
            if found is None:
                return f"{self.connection.where}: not checked: its tokenizer, which it does not show (no /tokenize)"
            if tuple(found) != tuple(wanted):
                raise DudiError(
                    f"{self.connection.where}: {self.card.id!r} has another tokenizer than the recipe's: it reads"
                    f" {text[:30]!r} as {_some(found)}, not as {_some(wanted)}: serve the recipe's model"
                )
        return None

    def log_probabilities(self, prompt: Sequence[int]) -> list[float] | None:
        """Of each token of a prompt but the first, after those before it; None where the server does not say."""
        body = {**self._body(prompt, 1, ("echo",), 0.0), "echo": True, "logprobs": 1}
        try:
            said = self.connection.call(_Completion, "completions", body).choices[0].logprobs
        except Refused:
            return None
        found = [] if said is None else [value for value in said.token_logprobs[1 : len(prompt)] if value is not None]
        return found if len(found) == len(prompt) - 1 else None

    def _tokenized(self, text: str) -> Sequence[int] | None:
        body: dict[str, Any] = {"model": self.card.id, "prompt": text, "add_special_tokens": False}
        try:
            return self.connection.call(_Tokens, "/tokenize", body).tokens
        except Refused as refused:
            if refused.code not in ABSENT:
                raise
        body = {**self._body((), 1, ("tokenizer",), 0.0), **body, **self.form}
        return self.connection.call(_Completion, "completions", body).choices[0].prompt_token_ids

    def _body(
        self, prompt: Sequence[int], limit: int, key: Sequence[int | str], temperature: float | None = None
    ) -> dict[str, Any]:
        return {
            "model": self.card.id,
            "prompt": [*prompt],
            "max_tokens": limit,
            "temperature": self.sampling.temperature if temperature is None else temperature,
            "seed": seed(key),
            "stop_token_ids": [*self.sampling.stop_ids],
            **PLAIN,
        }


def seed(key: Iterable[int | str]) -> int:
    """A request's seed, a function of the row's key; of 31 bits, which every server takes."""
    return draw(*key, "server") >> 33


def connect(connection: Connection, path: str, name: str | None, sampling: Sampling, longest: int) -> Server:
    """The served model that is loaded from `path`, or the one of that name; tried with the tokenizer's last id.

    longest: tokens of a prompt and its answer. Raises `DudiError` where it is not served, takes or returns no ids, has
    fewer of them, or holds less.
    """
    card = _chosen(connection.call(_Models, "models", short=True).data, path, name, connection.where)
    if card.max_model_len is not None and card.max_model_len < longest:
        raise DudiError(
            f"{connection.where}: {card.id!r} holds {card.max_model_len} tokens, and a prompt of this run has {longest}"
            " with its answer: start it with a longer context (vLLM: --max-model-len), or lower limits.rollout or"
            " limits.prompt"
        )
    for form in FORMS:
        server = Server(connection, card, sampling, form)
        body = {**server._body((sampling.vocab - 1,), 1, ("first",), 0.0), **form}
        try:
            reply = connection.call(_Completion, "completions", body, short=True)
        except Refused as refused:
            raise DudiError(
                f"{refused} (asked to continue token id {sampling.vocab - 1}, the tokenizer's last): its model has"
                " fewer ids, or it takes none as a prompt"
            ) from None
        if reply.choices[0].ids is not None:
            return server
    raise DudiError(
        f"{connection.where}: it returns no token ids, and text cannot be trained on: use a server that knows"
        " return_token_ids, as vLLM's does"
    )


def _chosen(cards: Sequence[Card], path: str, name: str | None, where: str) -> Card:
    if name is not None:
        found = [card for card in cards if card.id == name]
    else:
        found = [card for card in cards if any(is_same(path, served) for served in (card.id, card.root) if served)]
        last = Path(path).name
        if not found and last != "model":  # which every stage's result is called
            found = [card for card in cards if last in {Path(served).name for served in (card.id, card.root) if served}]
    if not found or len({card.root or card.id for card in found}) > 1:
        wanted = f"none of them is called {name!r}" if name is not None else f"which is to be {path!r}"
        raise DudiError(
            f"{where}: it serves {', '.join(repr(card.id) for card in cards[:8]) or 'no model'}, {wanted}: serve that"
            " model there, or give the name that it has there as rollouts.server_model"
        )
    return found[0]


def is_same(path: str, served: str) -> bool:
    """Whether two names are of one model: the same text, or the same folder."""
    return path == served or (Path(path).is_dir() and Path(path).resolve() == Path(served).resolve())


def _rollout(reply: _Completion, request: Request, sampling: Sampling, where: str) -> Rollout:
    """An answer, if it can be a sample of the model under the recipe's settings."""
    choice, stops = reply.choices[0], sampling.stop_ids
    ids, read = choice.ids, choice.prompt_token_ids
    key = " ".join(str(part) for part in request.key)

    def fault(text: str) -> DudiError:
        return DudiError(f"{where}: the answer to key {key!r} {text}")

    if ids is None:
        raise fault("has no token ids, though others had")
    count = len(read) if read is not None else reply.usage.prompt_tokens if reply.usage else None
    if (read is not None and read != request.prompt) or (count is not None and count != len(request.prompt)):
        raise fault(
            f"is to another prompt: {len(request.prompt)} ids were sent and {count} read: the server cuts prompts or"
            " adds to them"
        )
    beyond = [id for id in ids if not 0 <= id < sampling.vocab]
    if beyond:
        raise fault(f"holds token id {beyond[0]}, and the tokenizer's last is {sampling.vocab - 1}: another model")
    reason, stopped = choice.finish_reason, choice.stop_reason
    ended = bool(ids) and ids[-1] in stops
    if reason == "stop" and not ended and isinstance(stopped, int) and stopped in stops:
        ids, ended = (*ids, stopped), True  # some servers keep it to themselves
    if any(id in stops for id in ids[:-1]):
        raise fault("goes on after a stop token: the server does not know stop_token_ids")
    if reason == "stop" and not ended:
        raise fault(f"stops after {_some(ids[-1:])} ({stopped!r}), which is no stop token of the recipe")
    if reason not in ("stop", "length"):
        raise fault(f"was given up (finish_reason {reason!r})")
    if len(ids) > request.limit or not (ended or len(ids) == request.limit):
        raise fault(
            f"has {len(ids)} tokens of {request.limit}, and no end: the server cut it (vLLM: --max-model-len is too"
            " short)"
        )
    return Rollout(ids, ended)


def _some(ids: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}]"
