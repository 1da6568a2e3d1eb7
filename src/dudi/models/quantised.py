"""Weights in 8 or 4 bits, by bitsandbytes: asked for as a model is loaded, and what they stand for.

Quantised are the linear layers but the head. The embedding, norms and the head stay in the dtype that a model is loaded
in, and products are taken in it, or in bfloat16 under autocast.
"""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from dudi.errors import DudiError
from dudi.models.sharding import bytes_here, whole
from dudi.recipe.fields import Quantization

BLOCK, NESTED = 64, 256
"""Weights that share a scale in 4 bits; and such scales that share one of their own, being kept in 8 bits."""
TABLES = 4 * (16 + 256) + 4
"""Bytes of a layer's tables of 4-bit values and 8-bit scales, and of the mean of its scales."""


def quantization(bits: Quantization, autocast: bool) -> BitsAndBytesConfig:
    """What transformers is given: LLM.int8(), or NF4 with scales that are quantised too, as in QLoRA."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for each product
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if autocast else torch.float32,
    )


def check_backend(key: str, bits: Quantization) -> None:
    """Raises `DudiError`, in the library's words, where bitsandbytes is too old, or has nothing for this machine."""
    try:
        AutoHfQuantizer.from_config(quantization(bits, autocast=False), pre_quantized=False).validate_environment()
    except (ImportError, RuntimeError) as error:
        raise DudiError(f"{key}: {' '.join(str(error).split()):.300}") from None


def check_plain(config: Any, path: str, key: str) -> None:
    """Raises `DudiError` for a model to be quantised that is already."""
    if getattr(config, "quantization_config", None) is not None:
        raise DudiError(
            f"{key}: {path!r} is quantised already: leave the key out, or give the model that it was made from"
        )


def is_quantised(model: nn.Module) -> bool:
    """Whether a model's linear layers are kept in 8 or 4 bits."""
    return bool(getattr(model, "is_quantized", False))


def dense(weight: Tensor) -> Tensor:
    """A weight as the numbers that it stands for, and whole: also one that is kept in 4 bits, or sharded."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return whole(weight.detach())
    from bitsandbytes.functional import dequantize_4bit

    return cast(Tensor, dequantize_4bit(weight.data, state))


def quantised_bytes(model: PreTrainedModel, bits: Quantization) -> int:
    """Bytes of a model's weights once it is loaded so; the others are counted in the dtype that they have here."""
    kept = HfQuantizer.get_modules_to_not_convert(model, None, [*(model._keep_in_fp32_modules or ())])
    total = bytes_here(model)
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            weight = cast(Tensor, module.weight)
            total += _bytes(weight, bits) - weight.numel() * weight.element_size()
    return total


def largest(model: PreTrainedModel) -> int:
    """Numbers of the largest weight that is quantised: as they are while it is multiplied with."""
    head = model.get_output_embeddings()
    return max((m.weight.numel() for m in model.modules() if type(m) is nn.Linear and m is not head), default=0)


def _bytes(weight: Tensor, bits: Quantization) -> int:
    if bits == "8bit":
        return weight.numel() + 4 * weight.shape[0]
    blocks = math.ceil(weight.numel() / BLOCK)
    return math.ceil(weight.numel() / 2) + blocks + 4 * math.ceil(blocks / NESTED) + TABLES
