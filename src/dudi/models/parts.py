"""A causal language model in its two halves: the backbone (ids -> last hidden states) and the output head."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.loss.head import Head

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call it: Gemma's and NanoChat's, RecurrentGemma's, xLSTM's."""

MULTIPLIERS, DIVISORS = ("logit_scale", "lm_head_multiplier", "output_multiplier"), ("logits_scaling",)
"""What configs call the scale of logits: Cohere's, Falcon-H1's, Muse's; and Granite's, which divides."""


def backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its head: token ids -> last hidden states."""
    inner = model.base_model
    return cast(nn.Module, getattr(model, "model", inner)) if inner is model else inner  # Llama 4 misnames its own


def head_of(model: PreTrainedModel, vocab: int) -> Head:
    """The model's output head, over the first `vocab` entries. `check_head` has been called once for this model.

    A sharded model has one only inside its forward (see `Reader.reading`), after its backbone was called.
    """
    linear = model.get_output_embeddings()
    config = model.config.get_text_config(decoder=True)  # of a model that also sees images, the part that writes
    scale = math.prod(_number(config, name, 1.0) for name in MULTIPLIERS)
    scale /= math.prod(_number(config, name, 1.0) for name in DIVISORS)
    softcap = max(_number(config, name, 0.0) for name in SOFTCAPS)
    return Head(linear.weight, linear.bias, vocab, scale, softcap or None)


def positions_of(mask: Tensor) -> Tensor:
    """[B, L] the place of each token in its sequence, not counting the padding on its left."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _number(config: object, name: str, default: float) -> float:
    """A number of a config; the default where it has none, or says it in another way."""
    found = getattr(config, name, None)
    return float(found) if isinstance(found, int | float) and found else default


def check_size(embeddings: int, vocab: int, what: str) -> None:
    """Raises `DudiError` for a model that has no embedding for some token."""
    if embeddings < vocab:
        raise DudiError(
            f"{what}: the model has {embeddings} embeddings, but the tokenizer has {vocab} tokens; use the model's own"
            " tokenizer"
        )
