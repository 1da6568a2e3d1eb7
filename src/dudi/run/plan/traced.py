"""What a model keeps in memory while it reads: counted on tensors that have shapes and no numbers.

The model's own forward and backward run on fake tensors, every storage is counted from its first tensor to its last.
So the count holds for any architecture, precision and attention that can run so, with gradient checkpointing or not.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, masking_utils

from dudi.models.adapter import with_adapter
from dudi.models.parts import backbone
from dudi.models.reference import round_linears
from dudi.recipe.schema import Adapter

FEW = (4, 6)
"""Layers of the models that tell what a layer takes. (In smaller ones other things come to a peak.)"""
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
    config: Any,
    length: int,
    dtype: torch.dtype,
    autocast: bool,
    grad: bool,
    checkpointing: bool = False,
    adapter: Adapter | None = None,
) -> Trace:
    """The peak of a forward pass, and with `grad` of the backward pass too, beside weights and their gradients.

    length: of the sequences that are meant; where attention keeps its weights, a token takes more in longer ones.
    """
    try:
        with FakeTensorMode(), _unpacked(), _quiet():
            attention = getattr(config, "_attn_implementation", None)
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attention)
            model.train(grad).requires_grad_(grad)
            model.get_input_embeddings().requires_grad_(False)  # its gradient, of the size of a head, comes last
            if adapter is not None:
                if autocast:
                    round_linears(model)
                with _unmoved():
                    with_adapter(model.requires_grad_(False), adapter, 0)
            if checkpointing:
                new = getattr(model, "activation_checkpointing_enable", None)
                (new or model.gradient_checkpointing_enable)({"use_reentrant": False, "preserve_rng_state": False})
            for p in model.parameters():
                if p.requires_grad:  # gradients count elsewhere: each is gone as soon as it would be added to its sum
                    p.register_post_accumulate_grad_hook(_drop)
            length = max(length, 2 * SHORT)
            short, long = (_peak(model, tokens, autocast, grad) for tokens in (SHORT, length))
    except Exception as error:  # a model's own code may ask a tensor for its numbers, which it has not
        return Trace(fault=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}")
    token = (long - short) / (length - SHORT)
    return Trace(max(short - token * SHORT, 0.0), token)


def of_many(
    config: Any,
    layers: int,
    length: int,
    dtype: torch.dtype,
    autocast: bool,
    grad: bool,
    checkpointing: bool,
    adapter: Adapter | None = None,
) -> Trace:
    """The same of a model of many equal layers, from two models of few: each layer adds as much as the one before."""
    how = (length, dtype, autocast, grad, checkpointing, adapter)
    few = [traced(_with_layers(config, number), *how) for number in FEW]
    if fault := few[0].fault or few[1].fault:
        return Trace(fault=fault)
    more = (layers - FEW[1]) / (FEW[1] - FEW[0])
    once, token = (a + more * (a - b) for a, b in ((few[1].once, few[0].once), (few[1].token, few[0].token)))
    return Trace(max(once, 0.0), token)


def _with_layers(config: Any, number: int) -> Any:
    changed = copy.deepcopy(config)
    if getattr(changed, "layer_types", None):
        changed.layer_types = changed.layer_types[:number]
    changed.num_hidden_layers = number
    return changed


def _peak(model: Any, length: int, autocast: bool, grad: bool) -> int:
    ids = torch.zeros(1, length, dtype=torch.long)
    with _Live(model) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(grad):
            hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
        if grad:
            hidden.sum().backward()
    return live.peak


@contextmanager
def _unpacked() -> Iterator[None]:
    """The library finds out by their positions whether several sequences were packed into one; these have no numbers
    to look at, and it would go on with a mask that no step has."""
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


@contextmanager
def _unmoved() -> Iterator[None]:
    """An adapter's layers are moved to where their base is, and into its dtype. Tensors without numbers cannot be moved
    within a module, and are there already."""
    utils: Any = torch.utils
    before = utils.swap_tensors
    utils.swap_tensors = lambda one, other: None
    try:
        yield
    finally:
        utils.swap_tensors = before


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch logs of an operation that fails is said in a line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


class _Live(TorchDispatchMode):
    """The bytes of all storages that are made under it, and their peak; a model's own are there before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        own = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        self._alive: dict[int, Any] = {id(storage): storage for storage in own}

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
