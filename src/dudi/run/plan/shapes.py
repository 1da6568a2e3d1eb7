"""Models by their config alone: parameters, operations and bytes, counted on models that have shapes and no numbers."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dudi.models.adapter import with_adapter
from dudi.models.files import local_folder, reading_model
from dudi.models.fused import FAMILY, LINEARS
from dudi.models.load import load_config
from dudi.models.parts import backbone
from dudi.models.quantised import largest, quantised_bytes
from dudi.models.reference import round_linears
from dudi.models.sharding import bytes_here
from dudi.recipe.fields import Quantization
from dudi.recipe.schema import Adapter, Recipe
from dudi.recipe.stages import TEACHER, Stage, Train
from dudi.run.paths import named
from dudi.run.plan.traced import FEW, Trace, of_many, traced

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token")
"""What configs call the number of experts, and of those that read a token."""
ROUND = 256
"""Lengths are traced in multiples of it: fewer traces."""
_LAYER = re.compile(r".*?\.(\d+)\.(.*)")
"""A weight's name: the number of its layer, and what it is there."""
Size = tuple[int, int]
"""(sequences, padded length)."""


@dataclass
class Shape:
    """A model without its numbers. model: on the meta device, in float32; stored: bytes of its files, where these are
    quantised; adapter: what is trained of it, in place of its own weights; bits: what it is kept in as it is loaded."""

    key: str
    model: PreTrainedModel
    stored: int | None = None
    adapter: Adapter | None = None
    bits: Quantization | None = None
    _traces: dict[tuple[Any, ...], Trace] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """Of the part that writes."""
        return self.model.config.get_text_config(decoder=True)

    @cached_property
    def parameters(self) -> int:
        """Numbers of its own; a tied head counts once."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def trained(self) -> int:
        """Numbers that are trained: its own, or the adapter's."""
        if self.adapter is None:
            return self.parameters
        adapted = with_adapter(copy.deepcopy(self.model).requires_grad_(False), self.adapter, 0)
        return sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    def bytes(self, dtype: torch.dtype) -> int:
        """Of the weights."""
        if self.bits is not None:
            return quantised_bytes(nn.Module.to(copy.deepcopy(self.model), dtype), self.bits)
        return self.stored or self.parameters * dtype.itemsize

    def reference_bytes(self, dtype: torch.dtype, autocast: bool) -> int:
        """Of the weights as R, or the base of an adapter, keeps them (`dudi.models.reference`)."""
        model = copy.deepcopy(self.model)
        nn.Module.to(model, dtype)
        if autocast:
            round_linears(model)
        bits = None if self.adapter is None else self.adapter.quantization
        return bytes_here(model) if bits is None else quantised_bytes(model, bits)

    @property
    def dequantised(self) -> int:
        """Bytes of the largest layer that is kept in 4 bits, while it is multiplied with: in float32, and rounded."""
        bits = self.bits if self.adapter is None else self.adapter.quantization
        return 6 * largest(self.model) if bits == "4bit" else 0

    @property
    def head(self) -> int:
        """Numbers of the output head."""
        return int(self.model.get_output_embeddings().weight.numel())

    @property
    def embedding(self) -> int:
        """Numbers of the embedding of tokens."""
        return sum(p.numel() for p in self.model.get_input_embeddings().parameters())

    @property
    def hidden(self) -> int:
        """Numbers of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return int(self.config.num_hidden_layers)

    @cached_property
    def body(self) -> float:
        """Numbers that a token is multiplied with, in all layers together: of experts, those that read it."""
        outside = {id(self.model.get_input_embeddings().weight), id(self.model.get_output_embeddings().weight)}
        total = 0.0
        for name, p in self.model.named_parameters():
            if id(p) not in outside and p.ndim > 1:
                total += p.numel() * (self.chosen if ".experts." in name else 1.0)
        return total

    @property
    def chosen(self) -> float:
        """Share of the experts that reads a token; 1 for other models."""
        experts, read = (_number(self.config, names) for names in (EXPERTS, CHOSEN))
        return read / experts if experts and read else 1.0

    def flops(self, size: Size) -> float:
        """Operations of one forward pass of the layers, the head left out; attention looks back only."""
        rows, length = size
        heads, width = _attention(self.config)
        return rows * (2 * self.body * length + 2 * self.layers * heads * width * length**2)

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Of keys and values of one token, where every layer looks back at everything."""
        heads, width = _attention(self.config)
        heads = int(getattr(self.config, "num_key_value_heads", None) or heads)
        return 2 * self.layers * heads * width * dtype.itemsize

    def transposed_bytes(self, dtype: torch.dtype) -> int:
        """Of the copies that a rollout makes of weights as its products read them (`dudi.models.products`)."""
        total = self.head
        if self.fused:
            linears = [m for n, m in self.model.named_modules() if n.split(".")[-1] in LINEARS and type(m) is nn.Linear]
            total += sum(linear.weight.numel() for linear in linears)
        return total * dtype.itemsize

    @property
    def fused(self) -> bool:
        """Whether it is decoded in few operations (`dudi.models.fused`)."""
        return type(backbone(self.model)) in FAMILY and self.model.config._attn_implementation == "sdpa"

    def trace(self, length: int, dtype: torch.dtype, autocast: bool, grad: bool, checkpointing: bool = False) -> Trace:
        """Bytes of its activations, at sequences of this length."""
        length = -(-length // ROUND) * ROUND
        key = (length, dtype, autocast, grad, checkpointing)
        if key not in self._traces:
            config, how = self.model.config, (length, dtype, autocast, grad, checkpointing)
            many, adapter = self.layers > FEW[1] and self.uniform, self.adapter if grad else None
            trace = of_many(config, self.layers, *how, adapter) if many else traced(config, *how, adapter)
            self._traces[key] = trace
        return self._traces[key]

    @cached_property
    def uniform(self) -> bool:
        """Whether all layers are alike, by the shapes of their weights and by what the config says of each."""
        by_layer: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for name, p in self.model.named_parameters():
            if found := _LAYER.match(name):
                by_layer.setdefault(found[1], []).append((found[2], tuple(p.shape)))
        kinds = getattr(self.config, "layer_types", None) or ()
        alike = len({tuple(shapes) for shapes in by_layer.values()}) == 1 and len(set(kinds)) <= 1
        return alike and len(by_layer) == self.layers and self.config is self.model.config


def shapes(recipe: Recipe) -> dict[str, Shape]:
    """Every model that a run reads, by the key that names it. Raises `DudiError`."""
    found = {}
    for key, (path, revision) in named(recipe).items():
        config = load_config(path, key, recipe.models, revision)
        attention = "eager" if recipe.models.attention == "eager" else "sdpa"  # others need as much as sdpa
        chosen = {} if recipe.models.attention is None else {"attn_implementation": attention}
        with reading_model(path, key), torch.device("meta"):
            trust = recipe.models.trust_remote_code
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust, **chosen)
        folder, quantised = local_folder(path, revision), getattr(config, "quantization_config", None) is not None
        files = [*folder.glob("*.safetensors")] if folder is not None and quantised else []
        adapter, bits = (
            (recipe.adapter, None) if key != "models.teacher" else (None, recipe.models.teacher_quantization)
        )
        found[key] = Shape(key, model, sum(file.stat().st_size for file in files) or None, adapter, bits)
    return found


def key_of(name: str, stages: Sequence[Stage], known: Mapping[str, Shape]) -> str:
    """The key of the model that a stage calls so: the recipe's own, or that which an earlier stage started from."""
    if name == TEACHER:
        return "models.teacher"
    for stage in stages:
        if isinstance(stage, Train) and stage.name == name:
            return key_of(stage.start, stages, known)
    return "models.student" if name == "student" or "cold_start.checkpoint" not in known else "cold_start.checkpoint"


def _attention(config: Any) -> Size:
    """(heads, their size); none where a model has no attention."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or not heads:
        return 0, 0
    return heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _number(config: Any, names: Sequence[str]) -> int:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value), 0)
