"""The decoder layers of Llama, Qwen2 and Qwen3 with a cache of fixed size, in a quarter of the operations.

A step of a small batch waits for the many small operations between the matrix products (and, on a GPU, for their
launches). Here query, key and value are one product, gate and up another, on weights that lie as the product reads
them; keys and values are written in place; a rotation is three operations. Embeddings, norms, activation and rotary
frequencies are the model's own modules. Hidden states are those of the model's own forward up to rounding, which
`dudi.models.probe.check_decoding` tries on each model.

Shapes: B sequences padded on the left, l tokens fed at once, L tokens that fit, H hidden size, N query heads, K key and
value heads, D size of a head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import LlamaModel, PreTrainedModel, Qwen2Model, Qwen3Model

from dudi.models.parts import backbone, positions_of
from dudi.models.products import Product

FAMILY = (LlamaModel, Qwen2Model, Qwen3Model)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_fusable(model: PreTrainedModel) -> bool:
    """Whether a model can be decoded here: of the family, whole, in evaluation mode, with nothing added to it.

    Read elsewhere are: subclasses (also what sharding makes), hooks and forwards of a module's own, adapters and
    quantized layers, sliding windows, attention other than SDPA, rotary frequencies that follow the length, autocast.
    """
    reads = cast(Any, backbone(model))
    if type(reads) not in FAMILY or reads.training or not is_plain_config(reads.config):
        return False
    plain = all(
        not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
        for module in reads.modules()
    )
    return (
        plain
        and all(_is_plain_layer(layer) for layer in reads.layers)
        and not torch.is_autocast_enabled(reads.embed_tokens.weight.device.type)
    )


def is_plain_config(config: Any) -> bool:
    """Whether a model of the family attends by SDPA, and rotates a token by its position alone, however long the
    sequence is."""
    frequencies = str(config.rope_parameters["rope_type"])
    return config._attn_implementation == "sdpa" and "dynamic" not in frequencies and frequencies != "longrope"


def _is_plain_layer(layer: Any) -> bool:
    """Whether a layer's projections are linear, and its attention looks back at all tokens."""
    named = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
    attention = layer.self_attn
    return (
        all(type(named[name]) is nn.Linear for name in LINEARS)
        and getattr(attention, "sliding_window", None) is None
        and attention.is_causal
    )


class _Layer:
    """One decoder layer and its part of the cache, keys and values [B, 2 K, L, D]. Tokens lie flat: x [B l, H]."""

    def __init__(self, layer: Any, rows: int, length: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.act = mlp.act_fn
        self.qkv = Product.of(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.down = Product.of(attention.o_proj), Product.of(mlp.down_proj)
        self.gate_up, self.wide = Product.of(mlp.gate_proj, mlp.up_proj), mlp.gate_proj.out_features
        self.scale, self.size = attention.scaling, attention.head_dim
        self.kv = attention.k_proj.out_features // self.size
        self.group = attention.num_key_value_groups
        self.norms = _HeadNorms(attention, self.kv) if hasattr(attention, "q_norm") else None
        self.keep(attention.q_proj.weight.new_zeros(rows, 2 * self.kv, length, self.size))

    def keep(self, memory: Tensor) -> None:
        """Go on with this part of the cache."""
        self.memory, self.keys, self.values = memory, memory[:, : self.kv], memory[:, self.kv :]

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, l, N, D], and keys and values [B, l, 2 K, D]; queries and keys are rotated, where they lie."""
        made = self.qkv(self.before(x)).view(*cos.shape[:2], -1, self.size)
        turned = made[:, :, : -self.kv]
        straight = turned if self.norms is None else self.norms(turned)
        half = self.size // 2
        swapped = torch.cat((straight[..., half:], straight[..., :half]), -1)
        torch.addcmul(straight * cos, swapped, sin, out=turned)
        return made[:, :, : -2 * self.kv], made[:, :, -2 * self.kv :]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output: its input, what attention found [B l, N D], and the feed-forward part."""
        x = self.out(attended).add_(x)
        both = self.gate_up(self.between(x))
        return self.down(self.act(both[:, : self.wide]).mul_(both[:, self.wide :])).add_(x)

    def look_back(self, queries: Tensor, mask: Tensor | None, reach: int) -> Tensor:
        """One query a sequence [B, N, D] over the cache's first `reach` places -> [B, N D]. The queries that share
        keys are taken as so many queries of one head: keys and values are never repeated."""
        packed = queries.view(len(queries), self.kv, self.group, self.size)
        found = scaled_dot_product_attention(
            packed, self.keys[:, :, :reach], self.values[:, :, :reach], attn_mask=mask, scale=self.scale
        )
        return found.reshape(len(queries), -1)

    def read(self, queries: Tensor, mask: Tensor | None) -> Tensor:
        """All queries of a prompt [B, P, N, D], each over what is before it -> [B P, N D]."""
        reach, queries = queries.shape[1], queries.transpose(1, 2)
        keys, values, shared = self.keys[:, :, :reach], self.values[:, :, :reach], mask is None
        if not shared:  # with a mask, a GPU has no fast kernel for shared keys
            keys, values = keys.repeat_interleave(self.group, 1), values.repeat_interleave(self.group, 1)
        found = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=shared, scale=self.scale, enable_gqa=shared
        )
        return found.transpose(1, 2).flatten(2).flatten(0, 1)


class _Norm:
    """A norm of the family: x [..., D], divided by its root mean square, times a weight [D] or [heads, D].

    In float32 its formula in as few operations as a CPU allows, with the module's own bits (the mean of squares and
    epsilon are one operation), or as the one that other devices have; else, as rounding is part of it, itself.
    """

    def __init__(self, norm: Any, weight: Tensor | None = None) -> None:
        self.norm, self.weight = norm, norm.weight if weight is None else weight
        self.epsilon = self.weight.new_tensor([norm.variance_epsilon])
        self.size = self.weight.new_tensor([self.weight.shape[-1]])

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.float32 or self.weight.dtype is not torch.float32:
            return cast(Tensor, self.norm(x))
        if x.device.type != "cpu":
            return rms_norm(x, x.shape[-1:], self.weight, self.norm.variance_epsilon)
        scale = torch.addcdiv(self.epsilon, (x * x).sum(-1, keepdim=True), self.size).rsqrt_()
        return (x * scale).mul_(self.weight)


class _HeadNorms:
    """Qwen3's norms of queries and of keys; on a CPU, as one where both are in float32."""

    def __init__(self, attention: Any, kv: int) -> None:
        queries, keys = attention.q_norm, attention.k_norm
        self.queries, self.keys, self.kv = _Norm(queries), _Norm(keys), kv
        counts = (kv * attention.num_key_value_groups, kv)
        weights = [norm.weight.expand(n, -1) for norm, n in zip((queries, keys), counts, strict=True)]
        self.both = _Norm(queries, torch.cat(weights))
        self.alike = queries.variance_epsilon == keys.variance_epsilon and queries.weight.device.type == "cpu"

    def __call__(self, heads: Tensor) -> Tensor:
        """Queries, then keys [B, l, N + K, D]."""
        if self.alike and heads.dtype is self.both.weight.dtype is torch.float32:
            return self.both(heads)
        return torch.cat((self.queries(heads[:, :, : -self.kv]), self.keys(heads[:, :, -self.kv :])), 2)


class FusedDecoder:
    """A batch that is being continued; see `dudi.models.decoding.Decoder` for how it is called.

    fixed: steps have the same shapes and touch the same memory whatever has been fed (as a CUDA graph needs it); each
    attends to all L places under a mask. Otherwise to those that are filled.
    """

    shrinks = True

    def __init__(self, model: PreTrainedModel, mask: Tensor, fixed: bool = False) -> None:
        reads = cast(Any, backbone(model))
        self.embed, self.norm = reads.embed_tokens, _Norm(reads.norm)
        self.layers = [_Layer(layer, *mask.shape) for layer in reads.layers[: reads.config.num_hidden_layers]]
        self.fixed, self.fed = fixed, 0
        self.mask = mask.bool()
        self.padded = not bool(self.mask.all())
        self.bias = _bias(self.mask, self.embed.weight)
        self.place = torch.zeros(1, dtype=torch.long, device=mask.device)
        cos, sin = reads.rotary_emb(self.embed.weight, torch.arange(mask.shape[1], device=mask.device)[None])
        half, positions = sin.shape[-1] // 2, positions_of(mask)
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)  # with the signs of the two halves of a rotation
        self.cos, self.sin = cos[0, positions, None], sin[0, positions, None]  # [B, L, 1, D]

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """Hidden state [B, H] of the last of these tokens [B, l]: the prompts first, then one token each."""
        return self.norm(self._prompt(ids) if self.fed == 0 else self._step(ids))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        for layer in self.layers:
            layer.keep(layer.memory[rows])
        self.mask, self.cos, self.sin = self.mask[rows], self.cos[rows], self.sin[rows]
        self.bias = self.bias[rows]

    def _prompt(self, ids: Tensor) -> Tensor:
        self.fed = width = ids.shape[1]
        self.place.fill_(width)
        mask = last = None
        if self.padded:  # what is padding sees itself, so that no row of the softmax is empty
            causal = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
            itself = torch.eye(width, dtype=torch.bool, device=ids.device)
            mask = _bias((causal & self.mask[:, None, :width]) | itself, self.embed.weight)[:, None]
            last = mask[:, :, -1:]
        x, cos, sin = self.embed(ids.flatten()), self.cos[:, :width], self.sin[:, :width]
        for layer in self.layers:
            queries, new = layer.project(x, cos, sin)
            layer.memory[:, :, :width] = new.transpose(1, 2)
            if layer is self.layers[-1]:  # of which only the last token is read
                ends = x.view(*ids.shape, -1)[:, -1]
                x = layer.finish(ends, layer.look_back(queries[:, -1], last, width))
            else:
                x = layer.finish(x, layer.read(queries, mask))
        if self.fixed:
            self.mask[:, width:] = False
        return cast(Tensor, x)

    def _step(self, ids: Tensor) -> Tensor:
        self.fed += 1
        reach = self.mask.shape[1] if self.fixed else self.fed
        if self.fixed:
            mask: Tensor | None = self.mask.index_fill_(1, self.place, True)[:, None, None]
        else:
            mask = self.bias[:, None, None, :reach] if self.padded else None
        x, cos, sin = self.embed(ids[:, 0]), self.cos.index_select(1, self.place), self.sin.index_select(1, self.place)
        for layer in self.layers:
            queries, new = layer.project(x, cos, sin)
            layer.memory.index_copy_(2, self.place, new.transpose(1, 2))
            x = layer.finish(x, layer.look_back(queries[:, 0], mask, reach))
        self.place += 1
        return cast(Tensor, x)


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to scores, 0 or minus infinity: made once, not by the attention of each layer."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, float("-inf"))
