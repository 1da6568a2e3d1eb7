"""log p of given answers: how likely a model finds each choice, where it is not asked to write one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from dudi.example import Message
from dudi.loss.chunked import Positions, response_log_probs
from dudi.loss.scores import Reading, hidden_states
from dudi.models.parts import backbone, head_of
from dudi.rollouts import NotFinite
from dudi.text.chat import Chat


@dataclass(frozen=True)
class Continuation:
    """A given answer: the ids of its prompt, and its own without the token that ends the turn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """What a model has to read: all but the last id, which nothing is predicted from."""
        return (*self.prompt, *self.answer[:-1])


def continuations(chat: Chat, prompt: Sequence[Message], choices: Sequence[str]) -> tuple[Continuation, ...]:
    """Each choice as the assistant's answer, as in training. Raises `DudiError` where the template refuses it."""
    found = (chat.row(prompt, choice) for choice in choices)
    return tuple(Continuation(tuple(before), tuple(ids[:-1])) for before, ids in found)


def together(places: Sequence[int], sizes: Mapping[int, int], batch: int) -> Iterator[list[int]]:
    """Places in order, in groups whose sizes add up to at most `batch`, or of one place that is larger."""
    group: list[int] = []
    for place in places:
        if group and sum(sizes[one] for one in group) + sizes[place] > batch:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


@torch.no_grad()
def log_likelihoods(model: PreTrainedModel, vocab: int, given: Sequence[Continuation]) -> list[float]:
    """log p(answer | prompt) of each, in nats, over the first `vocab` entries of the vocabulary; one batch.

    What is the same is read once: choices of one token share their prompt. Padding is on the right, where causal
    attention cannot see. Raises `NotFinite`.
    """
    rows = {ids: row for row, ids in enumerate(dict.fromkeys(one.read for one in given))}
    length = max(map(len, rows))
    device = model.get_output_embeddings().weight.device
    ids = torch.tensor([[*row, *[row[-1]] * (length - len(row))] for row in rows], device=device)
    predicts = [
        rows[one.read] * length + len(one.prompt) - 1 + place for one in given for place in range(len(one.answer))
    ]
    labels = torch.tensor([id for one in given for id in one.answer], device=device)
    owner = torch.tensor([k for k, one in enumerate(given) for _ in one.answer], device=device)
    hidden = hidden_states(backbone(model), Reading(ids, torch.tensor(predicts, device=device)))
    (found,) = response_log_probs([hidden], head_of(model, vocab), [Positions(labels, row=owner)], len(given))
    values = [float(value) for value in found.tolist()]
    if not all(map(math.isfinite, values)):
        raise NotFinite("a model's logits are not finite: its weights are broken (NaN or infinite)")
    return values
