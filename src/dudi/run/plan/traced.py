"""What a model keeps in memory while it reads: counted on tensors that have shapes and no numbers.

The model's own forward and backward run on fake tensors, every storage is counted from its first tensor to its last.
So the count holds for any architecture, precision and attention that can run so, with gradient checkpointing or not.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM

from dudi.models.parts import backbone

SHORT = 16
"""Tokens of the sequence that tells what does not grow with the tokens."""


@dataclass(frozen=True)
class Trace:
    """Bytes at the peak: of what is there at any length, and of one token. fault: why neither is known."""

    once: float = 0.0
    token: float = 0.0
    fault: str = ""

    def bytes(self, tokens: int) -> float:
        """At the peak, of so many padded tokens."""
        return self.once + self.token * tokens


def traced(
    config: Any, length: int, dtype: torch.dtype, autocast: bool, grad: bool, checkpointing: bool = False
) -> Trace:
    """The peak of a forward pass, and with `grad` of the backward pass too, beside weights and their gradients.

    length: of the sequences that are meant; where attention keeps its weights, a token takes more in longer ones.
    """
    try:
        with FakeTensorMode():
            attention = getattr(config, "_attn_implementation", None)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attention)
            model.train(grad).requires_grad_(grad)
            if checkpointing:
                new = getattr(model, "activation_checkpointing_enable", None)
                (new or model.gradient_checkpointing_enable)({"use_reentrant": False, "preserve_rng_state": False})
            for p in model.parameters():
                p.grad = torch.zeros_like(p) if grad else None
            length = max(length, 2 * SHORT)
            short, long = (_peak(model, tokens, autocast, grad) for tokens in (SHORT, length))
    except Exception as error:  # a model's own code may ask a tensor for its numbers, which it has not
        return Trace(fault=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}")
    token = (long - short) / (length - SHORT)
    return Trace(max(short - token * SHORT, 0.0), token)


def _peak(model: Any, length: int, autocast: bool, grad: bool) -> int:
    ids = torch.zeros(1, length, dtype=torch.long)
    with _Live() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(grad):
            hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
        if grad:
            hidden.sum().backward()
    return live.peak


class _Live(TorchDispatchMode):
    """The bytes of all storages that are made under it, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._alive:
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            self._alive[id(storage)] = weakref.finalize(storage, self._end, id(storage), size)

    def _end(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size
