"""Weights in 8 or 4 bits, really quantised by bitsandbytes, on whatever device there is: what is loaded, what an
adapter beside them learns, what it becomes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import kit
import pytest
import torch
from kit.adapters import KINDS, adapted, by_hand, close, learned
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dudi.models.adapter import is_adapted, merged
from dudi.models.load import load_model
from dudi.models.quantised import is_quantised, quantised_bytes, quantization
from dudi.models.reader import Reader
from dudi.models.reference import like_student
from dudi.models.swapped import adapter_of, read, with_weights, without
from dudi.recipe.fields import Quantization
from dudi.recipe.schema import Models

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

IDS = torch.arange(40).reshape(2, 20)
CLASSES = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}


def plain(tied: bool = True) -> PreTrainedModel:
    return kit.model(1, hidden=64, rows=kit.VOCAB + 6, tied=tied, dtype=torch.float32)


def loaded(folder: Path, bits: Quantization, tied: bool = True, autocast: bool = False) -> PreTrainedModel:
    kit.save(folder, plain(tied), kit.tokenizer())
    models = Models(student=str(folder))
    return load_model(str(folder), "test", models, torch.float32, quantization=quantization(bits, autocast))


@torch.no_grad()
def logits(made: PreTrainedModel) -> Tensor:
    return made(input_ids=IDS.to(made.device)).logits.cpu()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", CLASSES)
def test_linear_layers_are_quantised_and_no_others(bits: Quantization, tied: bool, tmp_path: Path) -> None:
    made, before = loaded(tmp_path, bits, tied), plain(tied)
    kinds = {name: type(module).__name__ for name, module in made.named_modules() if isinstance(module, nn.Linear)}
    assert {kinds.pop("lm_head")} == {"Linear"} and {*kinds.values()} == {CLASSES[bits]} and len(kinds) == 14
    assert is_quantised(made) and not any(p.requires_grad for p in made.parameters())
    wanted = logits(before)
    off = float((logits(made) - wanted).norm() / wanted.norm())
    assert 1e-4 < off < 0.3
    Reader(made, kit.VOCAB, "teacher")
    state = {name: t for name, t in made.state_dict().items() if not (tied and name == "lm_head.weight")}
    kept = sum(t.numel() * t.element_size() for name, t in state.items() if "weight_format" not in name)
    # the state has the tables of values packed as text: some bytes a layer more or less
    assert quantised_bytes(before, bits) == pytest.approx(kept, abs=200 * 14)
    assert quantised_bytes(before, bits) < 0.75 * sum(4 * p.numel() for p in before.parameters())
    assert len({name for name, _ in read(made)} & {name for name, _ in before.named_parameters()}) > 20


def test_scales_are_part_of_what_a_model_says(tmp_path: Path) -> None:
    """Else a cache of one teacher's values would be taken for another's."""
    made = loaded(tmp_path, "4bit")
    before = Reader(made, kit.VOCAB, "teacher").fingerprint()
    made.get_parameter("model.layers.1.mlp.up_proj.weight").quant_state.absmax.add_(1)
    assert Reader(made, kit.VOCAB, "teacher").fingerprint() != before


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_beside_four_bits(kind: str, tmp_path: Path) -> None:
    """It begins as what is beneath; merged, and saved, it says the same as it does; beneath, nothing moves."""
    base = loaded(tmp_path, "4bit")
    before = logits(base)
    at_first = adapted(base, moved=0.0, **KINDS[kind])
    assert torch.equal(logits(at_first), before)
    made = adapted(loaded(tmp_path, "4bit"), **KINDS[kind])
    wanted = logits(made)
    assert float((wanted - before).abs().max()) > 1e-2 * float(before.abs().max())
    whole = merged(made, torch.float32, "cpu")
    assert float((logits(whole) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert not is_adapted(whole) and not is_quantised(whole)
    assert {type(m) for m in whole.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    whole.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again), logits(whole)) and torch.equal(logits(made), wanted)
    with without(made):
        assert torch.equal(logits(made), before)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_starts_as_its_reference_bit_for_bit(kind: str, tmp_path: Path) -> None:
    base = like_student(lambda: loaded(tmp_path, "4bit", tied=False, autocast=True), autocast=True)
    assert base.get_output_embeddings().weight.dtype is torch.bfloat16
    made = adapted(base, moved=0.0, **KINDS[kind])
    with torch.autocast(made.device.type, torch.bfloat16):
        Reader(made, kit.VOCAB, "student")
        wanted = logits(made)
        with without(made):
            assert torch.equal(logits(made), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_written_by_hand(kind: str, tmp_path: Path) -> None:
    """Of the weights that 4 bits stand for; R is the student with the adapter that it began with."""
    made = adapted(loaded(tmp_path / "m", "4bit"), **KINDS[kind])
    start = adapter_of(made)
    with torch.no_grad():
        for p in learned(made).values():
            p.mul_(1.2)
    whole = merged(made, torch.float32, "cpu").requires_grad_(True)
    with with_weights(made, start):
        reference = merged(made, torch.float32, "cpu")
    same = kit.trainer(tmp_path / "w", {"name": "spin"}, student=whole, reference=reference)
    wanted, full = kit.step(same)
    within = partial(with_weights, made, start)
    loss, grads = kit.step(
        kit.trainer(tmp_path / "a", {"name": "spin"}, student=made, reference=made, reference_as=within)
    )
    assert loss == pytest.approx(wanted, rel=1e-5) and abs(wanted - 0.6931) > 1e-3
    close(grads, by_hand(made, full, {"rslora": 6 / 2}.get(kind, 6 / 4)), tolerance=1e-4)
