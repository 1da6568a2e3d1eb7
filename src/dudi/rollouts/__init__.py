"""Rollouts: (weights, prompts, keys) -> token ids and finish reasons. One file an engine, one line in `ENGINES`.

A rollout is a pure function of the weights, its prompt and its key (seed, epoch, row, view): no hidden random state.
The same random numbers and the same batch shape give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dudi.draws import draw
from dudi.errors import DudiError, unknown

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel


class NotFinite(DudiError):
    """A model's logits are NaN or infinite: no token may be taken from them."""

    status = 3


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


@dataclass(frozen=True)
class Sampling:
    """What an engine is told. stop_ids: tokens that end a response; pad: any token, for places that nobody reads;
    vocab: entries of the head from there on are padding, and never sampled; temperature: 0 is greedy decoding;
    cuda_graph: whether a step is captured as a CUDA graph."""

    stop_ids: tuple[int, ...]
    pad: int
    vocab: int
    temperature: float
    cuda_graph: bool = False


class Engine(Protocol):
    """What samples. One call samples everything that an optimizer step needs."""

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        """One rollout for each request, in order."""
        ...


def _local(sampling: Sampling) -> Engine:
    from dudi.rollouts.local import LocalEngine

    return LocalEngine(sampling)


ENGINES: dict[str, Callable[[Sampling], Engine]] = {"local": _local}
"""By the name that `rollouts.engine` gives. The contract's tests are run on each."""


def engine(name: str, sampling: Sampling) -> Engine:
    """The engine of that name. Raises `DudiError` with the choices."""
    check_engine(name, sampling.cuda_graph)
    return ENGINES[name](sampling)


def check_engine(name: str, cuda_graph: bool = False, key: str = "rollouts.engine") -> None:
    """Raises `DudiError` where no engine has that name, which `key` gave, or none could capture a step here."""
    if name not in ENGINES:
        raise DudiError(f"{key}: {unknown(name, ENGINES, 'engine')}")
    check_graph(cuda_graph)


def check_graph(asked: bool) -> None:
    """Raises `DudiError` where a CUDA graph is asked for and there is no CUDA device."""
    if not asked:
        return
    import torch

    if not torch.cuda.is_available():
        raise DudiError(
            "rollouts.cuda_graph is true, but PyTorch sees no CUDA device here; set it to false (the same steps, not"
            " captured)"
        )


def uniforms(requests: Sequence[Request], steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [requests, steps], each row a pure function of its request's key.

    Philox is counter-based: number t of a row does not depend on how many are drawn.
    """
    import numpy as np

    keys = [draw(*request.key, "rollout") for request in requests]
    return np.stack([np.random.Generator(np.random.Philox(key=key)).random(steps) for key in keys])
