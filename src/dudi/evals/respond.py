"""A checkpoint folder that answers: its own tokenizer, chat template and stop tokens, the trainer's own sampler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from dudi.errors import DudiError
from dudi.evals.answers import Answer
from dudi.evals.bench import Benchmark
from dudi.evals.likelihood import Continuation, continuations, log_likelihoods, together
from dudi.files import sha256_of
from dudi.models.load import arithmetic, check_model, embeddings, load_config, load_model, load_tokenizer
from dudi.models.positions import positions
from dudi.models.reader import check_head
from dudi.recipe.schema import Models, TemplateValue
from dudi.records import CHAT_KWARGS, Item
from dudi.rollouts import Engine, Request, Sampling, engine
from dudi.strict import explain, read_one, read_text
from dudi.text.chat import Chat

WHAT = "model"
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
)
"""What else decides how a model answers."""


@dataclass(frozen=True)
class Responder:
    """A loaded model with what it takes to ask it. temperature 0 is greedy."""

    model: PreTrainedModel
    chat: Chat
    stop_ids: tuple[int, ...]
    temperature: float = 0.0
    batch: int = 64
    engine: str = "local"

    def answer(
        self, items: Sequence[Item], benchmark: Benchmark, seed: int, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """One answer for each item, in order. done: called with the number of items answered since it was last called.

        Random numbers are keyed by (seed, item id). Items of like limits and lengths share a batch, the longest first,
        so that memory that does not suffice shows at once. Where a metric goes by likelihood, nothing is sampled: the
        answer is log p of each choice.
        """
        found: dict[int, Answer] = {}
        requests: dict[int, Request] = {}
        judged: dict[int, tuple[Continuation, ...]] = {}
        for k, item in enumerate(items):
            try:
                if benchmark.by_likelihood(item):
                    judged[k] = self._choices(item)
                else:
                    requests[k] = self._request(item, benchmark, seed)
            except DudiError as error:
                found[k] = Answer("", 0, False, str(error))
        order = sorted(requests, key=lambda k: (-requests[k].limit, -len(requests[k].prompt)))
        sampler = engine(self.engine, Sampling(self.stop_ids, self.chat.pad, self.chat.vocab, self.temperature))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            for k, rollout in zip(chosen, self._sample(sampler, [requests[k] for k in chosen]), strict=True):
                ids = rollout.ids[:-1] if rollout.finished else rollout.ids
                found[k] = Answer(self._text(ids), len(rollout.ids), rollout.finished)
            if done:
                done(len(chosen))
        order = sorted(judged, key=lambda k: -max(len(one.read) for one in judged[k]))
        for chosen in together(order, {k: len(choices) for k, choices in judged.items()}, self.batch):
            values = iter(self._log_p([one for k in chosen for one in judged[k]]))
            for k in chosen:
                found[k] = Answer("", 0, True, log_p=tuple(next(values) for _ in judged[k]))
            if done:
                done(len(chosen))
        return [found[k] for k in range(len(items))]

    def refusals(self, items: Sequence[Item], benchmark: Benchmark) -> list[str]:
        """Why items cannot be asked, a line for each that cannot."""
        return refusals(self.chat, items, benchmark, positions(self.model.config))

    def _request(self, item: Item, benchmark: Benchmark, seed: int) -> Request:
        limit = benchmark.max_new_tokens(item)
        prompt = fitting(self.chat, item, limit, positions(self.model.config))
        return Request(prompt, ("evaluation", seed, item.id), limit)

    def _choices(self, item: Item) -> tuple[Continuation, ...]:
        assert item.choices is not None
        found = continuations(self.chat, item.prompt, item.choices)
        fitting(self.chat, item, max(len(one.answer) for one in found), positions(self.model.config))
        return found

    def _sample(self, sampler: Engine, requests: Sequence[Request]) -> list[Any]:
        with self._memory():
            return list(sampler(self.model, requests))

    def _log_p(self, given: Sequence[Continuation]) -> list[float]:
        with self._memory():
            return log_likelihoods(self.model, self.chat.vocab, given)

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Too little of it, as one line."""
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise DudiError(f"out of GPU memory with batches of {self.batch}; give a smaller --batch") from None

    def _text(self, ids: Sequence[int]) -> str:
        decoded = self.chat.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)


def load_responder(
    path: str,
    temperature: float = 0.0,
    batch: int = 64,
    template: str | None = None,
    chat_kwargs: Mapping[str, Any] | None = None,
    attention: str | None = None,
    engine: str = "local",
) -> Responder:
    """A model folder on this process's device: float32 on a CPU, bfloat16 on a GPU.

    template: a chat template's text, in place of the tokenizer's own. chat_kwargs: see `used_chat_kwargs`. attention:
    an implementation by name; None: what transformers chooses for the model. engine: what decodes. Raises `DudiError`.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    models = models_of(path, attention)
    chat, config = load_chat(path, models, template, chat_kwargs), load_config(path, WHAT, models)
    chat.limit(embeddings(config, path, WHAT))
    check_model(config, path, WHAT, models, None, chat.vocab)
    try:
        model = load_model(path, WHAT, models, arithmetic(models.precision)[1])
    except DudiError as error:
        if attention is None:
            raise
        raise DudiError(f"{error} (with --attention {attention}; left out, transformers chooses)") from None
    check_head(model, chat.vocab, WHAT)
    return Responder(model, chat, _stops(model, chat), temperature, batch, engine)


def load_chat(
    path: str, models: Models, template: str | None = None, chat_kwargs: Mapping[str, Any] | None = None
) -> Chat:
    """What turns messages into a model's prompt. Raises `DudiError` where there is no template."""
    tokenizer = load_tokenizer(path, WHAT, models)
    if template is None and not tokenizer.chat_template:
        raise DudiError(
            f"{WHAT}: {path!r} has no chat template (base models have none): give the template that it should be asked"
            " with as --template FILE"
        )
    return Chat(tokenizer, template, used_chat_kwargs(Path(path).expanduser(), chat_kwargs or {}))


def fitting(chat: Chat, item: Item, limit: int, longest: int | None) -> tuple[int, ...]:
    """An item's prompt in token ids. Raises `DudiError` where prompt and answer would exceed the model's positions."""
    prompt = tuple(chat.prompt(item.prompt))
    if longest is not None and len(prompt) + limit > longest:
        raise DudiError(
            f"item {item.id!r}: {len(prompt)} tokens and {limit} new ones are more than the model's {longest}"
        )
    return prompt


def refusals(chat: Chat, items: Sequence[Item], benchmark: Benchmark, longest: int | None) -> list[str]:
    """Why items cannot be asked: the template refuses them, or they are too long. A line for each that cannot."""
    found = []
    for item in items:
        try:
            fitting(chat, item, benchmark.max_new_tokens(item), longest)
        except DudiError as error:
            found.append(str(error))
    return found


def models_of(path: str, attention: str | None) -> Models:
    """One model as a recipe's [models] would name it. Raises `DudiError` for an attention that there is not."""
    if attention is None:
        return Models(student=path).model_copy(update={"attention": None})  # transformers chooses
    try:
        return Models.model_validate({"student": path, "attention": attention})
    except ValidationError as error:
        raise DudiError(explain(error, Models)) from None


def used_chat_kwargs(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is passed: what the model was trained with (chat_kwargs.json), each key as given instead.

    Raises `DudiError` where the file is no table of texts, whole numbers and truth values.
    """
    file = folder / CHAT_KWARGS
    own = read_one(dict[str, TemplateValue], file) if file.exists() else {}
    return {**own, **given}


def _stops(model: PreTrainedModel, chat: Chat) -> tuple[int, ...]:
    """The template's end of a turn, the tokenizer's EOS, and what the model's own generation config stops at."""
    config = model.generation_config
    own = (config.eos_token_id if config is not None else None) or []
    ids = {*chat.stop_ids, *([own] if isinstance(own, int) else own)}
    return tuple(sorted(id_ for id_ in ids if id_ < chat.vocab))


def weight_files(folder: Path) -> list[Path]:
    """The model's own weights: no optimizer, no moving average."""
    return _matching(folder, WEIGHTS)


def fingerprint(folder: Path) -> dict[str, Any]:
    """{weights_sha256, files_sha256, generation_config} of a model folder: what its answers depend on."""
    recorded = folder / "generation_config.json"
    try:
        generation = json.loads(read_text(recorded)) if recorded.is_file() else None
    except (ValueError, RecursionError) as error:
        raise DudiError(f"{recorded}: not valid JSON: {error}") from None
    return {
        "weights_sha256": sha256_of(folder, weight_files(folder)),
        "files_sha256": sha256_of(folder, _matching(folder, TEXT_FILES)),
        "generation_config": generation,
    }


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
