"""Decoding with a cache: a batch of prompts, continued one token at a time, as the model's own `generate` does it.

Which cache a model takes (keys and values, sliding windows, the states of recurrent layers) follows from its config.
Shapes: B sequences padded on the left, L tokens fed so far, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from dudi.models.parts import backbone

ARGUMENTS = ("cache", "past_key_values", "state")
"""What a model may call its cache: the name since transformers 5.24, the one before, RWKV's."""


class Decoder:
    """A batch that is being continued. Each call feeds tokens that follow those of the calls before it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.named = next((name for name in ARGUMENTS if name in _parameters(backbone(model))), None)
        self.cache: Any = None  # a model with a cache class of its own makes it in its first call
        self.first = True
        if self.named != "state" and cast(Any, model)._supports_default_dynamic_cache():
            self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Hidden state [B, H] of the last of these tokens. ids [B, l]; mask [B, L]: 0 at padding; positions [B, l]."""
        given = {} if self.cache is None or self.named is None else {self.named: self.cache}
        inputs = cast(Any, self.model).prepare_inputs_for_generation(
            ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            is_first_iteration=self.first,
            **given,
        )
        reads = backbone(self.model)
        known = _parameters(reads)  # what only the head's side asks for (`logits_to_keep`) stays away
        out = reads(**{name: value for name, value in inputs.items() if name in known and value is not None})
        if self.named is not None:
            self.cache = getattr(out, self.named, self.cache)
        self.first = False
        hidden: Tensor = out.last_hidden_state
        return hidden[:, -1]


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The arguments of a module's own forward, also where it is sharded."""
    return inspect.signature(type(module).forward).parameters


def positions_of(mask: Tensor) -> Tensor:
    """[B, L] the place of each token in its sequence, not counting the padding on its left."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
