"""Rollouts: (weights, prompts, keys) -> token ids and finish reasons. One file per engine.

A rollout is a pure function of the weights, its prompt and its key (seed, epoch, row, view): no hidden random state.
The same random numbers and the same batch shape give the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from dudi.draws import draw


@dataclass(frozen=True)
class Request:
    """One response to sample: the prompt's ids, the key of its random numbers, and its limit of new tokens."""

    prompt: tuple[int, ...]
    key: tuple[int | str, ...]
    limit: int


@dataclass(frozen=True)
class Rollout:
    """A sampled response: ids (with the stop token, if it stopped) and whether it stopped by itself.

    A rollout that was cut at the limit has no stop token, and none is ever appended: that would teach to stop there.
    """

    ids: tuple[int, ...]
    finished: bool


class Sampler(Protocol):
    """An engine. One call samples everything that an optimizer step needs."""

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        """One rollout for each request, in order."""
        ...


def uniforms(requests: Sequence[Request], steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [requests, steps], each row a pure function of its request's key.

    Philox is counter-based: number t of a row does not depend on how many are drawn.
    """
    keys = [draw(*request.key, "rollout") for request in requests]
    return np.stack([np.random.Generator(np.random.Philox(key=key)).random(steps) for key in keys])
