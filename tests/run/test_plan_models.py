"""What a plan counts of a model is what the model has: weights, operations, activations, keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import kit
import pytest
import torch
from kit import runs
from kit.architectures import build
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from dudi.models.fused import FusedDecoder
from dudi.models.parts import backbone, head_of
from dudi.models.products import Product
from dudi.models.reference import round_linears
from dudi.models.sharding import bytes_here
from dudi.run.plan.plan import plan
from dudi.run.plan.shapes import Shape
from dudi.run.plan.traced import Trace, of_many, traced

F32, BF16 = torch.float32, torch.bfloat16
ROWS, LENGTH = 2, 64


def shape(made: PreTrainedModel) -> Shape:
    with torch.device("meta"):
        return Shape("models.student", AutoModelForCausalLM.from_config(made.config, dtype=F32))


def dense(tied: bool = True, layers: int = 2, kind: str = "qwen2") -> PreTrainedModel:
    return kit.model(1, rows=kit.VOCAB + 6, tied=tied, layers=layers, kind=kind, dtype=F32)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3_moe", "mamba", "deepseek_v3", "falcon"])
def test_weights_of_any_architecture_are_counted_as_they_are(name: str) -> None:
    made = build(name)
    assert shape(made).parameters == sum(p.numel() for p in made.parameters())
    assert shape(made).bytes(BF16) == bytes_here(made.to(BF16))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_reference_keeps_what_it_would(tied: bool, autocast: bool) -> None:
    made = dense(tied)
    found = shape(made).reference_bytes(F32, autocast)
    if autocast:
        round_linears(made)
    assert found == bytes_here(made) and (found < 4 * shape(made).parameters) is autocast


def flops(made: PreTrainedModel, length: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(made)(input_ids=torch.zeros(ROWS, length, dtype=torch.long), use_cache=False)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_operations_are_those_that_torch_counts(kind: str) -> None:
    """Torch's counter knows nothing of causal attention, which does half of what it counts."""
    made = dense(kind=kind)
    made.set_attn_implementation("eager")  # whose products it counts on a CPU
    heads, size = made.config.num_attention_heads, made.config.head_dim if kind == "qwen3" else 32 // 4
    skipped = 2 * ROWS * made.config.num_hidden_layers * heads * size * LENGTH**2
    rotary = flops(made, LENGTH) - skipped - shape(made).flops((ROWS, LENGTH))
    assert 0 <= rotary < 0.01 * shape(made).flops((ROWS, LENGTH))  # positions times frequencies


def test_of_experts_those_that_read_a_token_count() -> None:
    found = shape(build("qwen3_moe"))
    experts = sum(p.numel() for name, p in found.model.named_parameters() if ".experts." in name)
    assert experts > 0 and found.chosen == 0.5
    ends = found.model.get_input_embeddings().weight.numel() + found.head
    vectors = sum(p.numel() for p in found.model.parameters() if p.ndim < 2)
    assert found.body == found.parameters - ends - vectors - experts / 2


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_keys_values_and_transposed_weights_are_those_of_the_decoder(kind: str) -> None:
    made = dense(kind=kind).eval()
    decoder = FusedDecoder(made, torch.ones(3, 20, dtype=torch.long))
    cached = sum(t.numel() * t.element_size() for layer in decoder.layers for t in (layer.keys, layer.values))
    assert shape(made).cache_bytes(F32) * 3 * 20 == cached
    products = [p for layer in decoder.layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    products.append(Product(head_of(made, kit.VOCAB + 6).weight, None))
    assert shape(made).fused
    assert shape(made).transposed_bytes(F32) == sum(p.panels.numel() * 4 for p in products)


def saved(made: PreTrainedModel, rows: int, length: int, autocast: bool) -> int:
    """Bytes of the tensors that a real backward pass is going to read, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in made.parameters()}
    found: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no other takes its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", BF16, enabled=autocast),
    ):
        backbone(made)(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False)
    return sum(found.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_activations_are_what_a_real_backward_pass_reads_and_little_more(kind: str, autocast: bool) -> None:
    made = dense(kind=kind, layers=4).train()
    trace = shape(made).trace(256, F32, autocast, True)
    wanted = saved(made, 2, 256, autocast)
    assert trace.fault == ""
    assert wanted <= trace.bytes(2 * 256) < 1.15 * wanted
    again = saved(made, 4, 256, autocast) - wanted  # grows with the tokens as the count says
    assert trace.token * 2 * 256 == pytest.approx(again, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_many_equal_layers_are_told_from_few(checkpointing: bool) -> None:
    config = cast(Any, dense(layers=8).config)
    config._attn_implementation = "sdpa"
    whole = traced(config, 256, F32, True, True, checkpointing)
    few = of_many(config, 8, 256, F32, True, True, checkpointing)
    assert few.once == pytest.approx(whole.once, rel=0.01) and few.token == pytest.approx(whole.token, rel=0.01)


def test_only_equal_layers_are_many() -> None:
    assert shape(dense(layers=8)).uniform
    assert not shape(build("gemma3_text")).uniform  # every other one with a window
    assert not shape(build("deepseek_v3")).uniform  # the first has no experts
    assert not shape(build("gemma3")).uniform  # layers of two towers


def test_checkpointing_and_no_gradients_keep_less() -> None:
    found = shape(dense(layers=3))
    full, checkpointed, frozen = (
        found.trace(256, F32, False, *how).bytes(2048) for how in ((True,), (True, True), (False,))
    )
    assert frozen < checkpointed < 0.5 * full


def test_a_model_that_asks_for_numbers_is_said_to_be_unknown() -> None:
    class Config:
        """No config at all."""

    found = traced(Config(), 64, F32, False, True)
    assert found.fault and found.bytes(100) == 0.0
    assert Trace(once=3.0, token=2.0).bytes(5) == 13.0


@pytest.mark.parametrize(("bits", "each"), [("8bit", 1.0), ("4bit", 0.5)])
def test_a_teacher_in_fewer_bits_is_planned_with_its_scales(
    bits: str, each: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not bitsandbytes is here: a scale of 4 bytes for each row, or of one byte for each 64 weights, 256 of
    which have one of 4 bytes, and tables of 16, 256 and 1 numbers."""
    monkeypatch.setattr("dudi.run.prepare.check_quantization", lambda recipe: None)
    monkeypatch.setattr("dudi.run.prepare.check_backend", lambda key, bits: None)
    recipe = runs.recipe(tmp_path, {"name": "dudi"}, models={"teacher_quantization": bits})
    items = {item.name: item.bytes for item in plan(recipe, "h100").stages[-1].memory.items}
    wanted = 0.0
    for name, p in AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").named_parameters():
        if name.endswith("_proj.weight"):
            blocks = -(-p.numel() // 64)
            scales = 4 * len(p) if bits == "8bit" else blocks + 4 * -(-blocks // 256) + 4 * 273
            wanted += each * p.numel() + scales
        else:
            wanted += 4 * p.numel()
    assert items[f"teacher, {bits}"] == wanted
    assert ("teacher: a layer, out of its 4 bits" in items) is (bits == "4bit")
