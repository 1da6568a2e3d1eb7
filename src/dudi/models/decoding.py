"""Decoding with a cache: a batch of prompts, continued one token at a time.

`decoder` gives what continues a model: the family of Llama and Qwen in few operations (`dudi.models.fused`), every
other model through its own forward, with the cache that its own `generate` would give it.
Shapes: B sequences padded on the left, P the longest prompt, L tokens that they may become, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dudi.models.fused import FusedDecoder, is_fusable
from dudi.models.parts import backbone, positions_of

ARGUMENTS = ("cache", "past_key_values", "state")
"""What a model may call its cache: the name since transformers 5.24, the one before, RWKV's."""


class Decoder(Protocol):
    """A batch that is being continued."""

    @property
    def shrinks(self) -> bool:
        """Whether rows can be dropped. Asked after the prompts were read."""
        ...

    def __call__(self, ids: Tensor) -> Tensor:
        """Hidden state [B, H] of the last of these tokens: the prompts [B, P] first, then what follows, [B, 1]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        ...


def decoder(model: PreTrainedModel, mask: Tensor) -> Decoder:
    """What continues a batch of prompts. mask [B, L]: 0 at the padding on the left of prompts, 1 up to the length that
    the longest may reach."""
    return FusedDecoder(model, mask) if is_fusable(model) else OwnDecoder(model, mask)


class OwnDecoder:
    """A batch that is continued by the model's own forward, as its own `generate` would do it.

    Which cache a model takes (keys and values, sliding windows, the states of recurrent layers) follows from its
    config. Where a layer looks back at everything, its part is allocated once.
    """

    def __init__(self, model: PreTrainedModel, mask: Tensor) -> None:
        self.model, self.mask, self.positions = model, mask, positions_of(mask)
        self.named = next((name for name in ARGUMENTS if name in _parameters(backbone(model))), None)
        self.cache: Any = None  # a model with a cache class of its own makes it in its first call
        self.fed = 0
        if self.named != "state" and cast(Any, model)._supports_default_dynamic_cache():
            self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
            for place, layer in enumerate(self.cache.layers):
                if type(layer) is DynamicLayer:
                    self.cache.layers[place] = FullLayer(mask.shape[1])

    @property
    def shrinks(self) -> bool:
        """Only attention: states of other layers may lie anywhere (RecurrentGemma's in its modules)."""
        known = (FullLayer, DynamicSlidingWindowLayer)
        return type(self.cache) is DynamicCache and all(
            type(layer) in known and cast(Any, layer).is_initialized for layer in self.cache.layers
        )

    def __call__(self, ids: Tensor) -> Tensor:
        """Hidden state [B, H] of the last of these tokens [B, l]."""
        given = {} if self.cache is None or self.named is None else {self.named: self.cache}
        start, self.fed = self.fed, self.fed + ids.shape[1]
        inputs = cast(Any, self.model).prepare_inputs_for_generation(
            ids,
            attention_mask=self.mask[:, : self.fed],
            position_ids=self.positions[:, start : self.fed],
            use_cache=True,
            is_first_iteration=start == 0,
            **given,
        )
        reads = backbone(self.model)
        known = _parameters(reads)  # what only the head's side asks for (`logits_to_keep`) stays away
        out = reads(**{name: value for name, value in inputs.items() if name in known and value is not None})
        if self.named is not None:
            self.cache = getattr(out, self.named, self.cache)
        hidden: Tensor = out.last_hidden_state
        return hidden[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.reorder_cache(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]


class FullLayer(DynamicLayer):
    """Keys and values of a layer that looks back at everything, in memory for `length` tokens: nothing is copied when
    one is added. (transformers' own static layers attend to places that are not filled yet, under a mask.)"""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.filled = length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, in the shapes of the first call."""
        super().lazy_initialization(key_states, value_states)
        self.memory = [
            made.new_empty(*made.shape[:-2], self.length, made.shape[-1]) for made in (key_states, value_states)
        ]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add these [B, heads, l, D]; all that is there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        for memory, new in zip(self.memory, (key_states, value_states), strict=True):
            memory[:, :, start : self.filled] = new
        self.keys, self.values = (memory[:, :, : self.filled] for memory in self.memory)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows."""
        self.memory = [memory[beam_idx] for memory in self.memory]
        self.keys, self.values = (memory[:, :, : self.filled] for memory in self.memory)


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The arguments of a module's own forward, also where it is sharded."""
    return inspect.signature(type(module).forward).parameters
