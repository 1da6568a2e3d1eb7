"""A student with an adapter: what it says, what it learns, what it shares, and what it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.adapters import KINDS, adapted, learned
from kit.architectures import build
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from dudi.errors import DudiError
from dudi.loss.head import Head
from dudi.loss.losses import by_autograd
from dudi.models.adapter import is_adapted, merge_again, merged, save_adapter, without_adapter
from dudi.models.fused import is_fusable
from dudi.models.reader import DecodingCopy, EmaTeacher
from dudi.models.reference import like_student
from dudi.models.swapped import adapter_of, read, with_weights, without
from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine

pytest.importorskip("peft")

IDS = torch.arange(40).reshape(2, 20)


@torch.no_grad()
def logits(made: PreTrainedModel) -> Tensor:
    return made(input_ids=IDS).logits


def storages(made: torch.nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in made.parameters()}


# ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", KINDS)
def test_at_first_it_says_what_it_said_before(kind: str) -> None:
    base = kit.model(1, rows=kit.VOCAB + 6)
    wanted = logits(base)
    made = adapted(base, moved=0.0, **KINDS[kind])
    assert is_adapted(made) and type(made).__name__ == "Qwen2ForCausalLM"
    assert torch.equal(logits(made), wanted)
    assert all(".lora_" in name for name in learned(made)) and len(learned(made)) >= 28


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_starts_as_its_reference_bit_for_bit(kind: str) -> None:
    """On a base whose linear weights are kept in bfloat16; the adapter learns in float32."""
    base = like_student(lambda: kit.model(1, dtype=torch.float32).requires_grad_(False).eval(), autocast=True)
    made = adapted(base, moved=0.0, **KINDS[kind])
    assert {p.dtype for p in learned(made).values()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in made.parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(made), logits(without_adapter(made)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", kit.CLASSES)
def test_merged_it_says_the_same(family: str, kind: str, tied: bool) -> None:
    base = kit.model(1, rows=kit.VOCAB + 6, kind=family, tied=tied, dtype=torch.float32)
    before = logits(base)
    made = adapted(base, **KINDS[kind])
    wanted, plain = logits(made), merged(made, torch.float32, "cpu")
    assert float((logits(plain) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert float((wanted - before).abs().max()) > 1e-2 * float(before.abs().max()), "the adapter says nothing"
    assert not is_adapted(plain) and [n for n, _ in plain.named_parameters()] == [
        n for n, _ in kit.model(1, kind=family, tied=tied).named_parameters()
    ]
    assert torch.equal(logits(made), wanted), "merging changed the student"


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "gemma3_text"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # peft's, of GPT-2's layers
def test_other_architectures_merge(name: str) -> None:
    experts = {"target_modules": ("q_proj", "o_proj")} if name == "qwen3_moe" else {}
    made = adapted(build(name), **experts).eval()
    wanted, plain = logits(made), logits(merged(made, torch.float32, "cpu"))
    assert float((plain - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert not torch.allclose(wanted, logits(without_adapter(made)), atol=1e-3)


def test_weights_are_the_formula(tmp_path: Path) -> None:
    """W + lora_alpha / r B A; with rsLoRA, over the root of r; DoRA's, of length m."""
    for kind, scale in (("lora", 6 / 4), ("rslora", 6 / 2), ("dora", 6 / 4)):
        made = adapted(kit.model(1), **KINDS[kind])
        state = dict(made.named_parameters())
        for name, weight in merged(made, torch.float64, "cpu").named_parameters():
            path = name.removesuffix(".weight")
            if f"{path}.base_layer.weight" not in state:
                assert torch.equal(weight, state.get(name, state.get(f"{path.removesuffix('.bias')}.base_layer.bias")))
                continue
            a, b = (state[f"{path}.lora_{x}.default.weight"] for x in "AB")
            wanted = state[f"{path}.base_layer.weight"] + scale * b @ a
            if kind == "dora":
                length = state[f"{path}.lora_magnitude_vector.default.weight"]
                wanted = wanted * (length / wanted.norm(dim=1))[:, None]
            assert torch.allclose(weight, wanted, rtol=1e-12, atol=1e-12), (kind, name)


# ── what is shared ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_reference_has_no_weight_of_its_own() -> None:
    base = kit.model(1, rows=kit.VOCAB + 6, tied=False)
    wanted, size = logits(base), len(storages(base))
    made = adapted(base)
    reference = without_adapter(made)
    assert torch.equal(logits(reference), wanted) and not torch.equal(logits(made), wanted)
    assert storages(reference) < storages(made) and len(storages(reference)) == size
    assert len(storages(made) | storages(reference)) == size + len(learned(made))
    assert all(p.requires_grad for p in learned(made).values()) and learned(made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_asked_as_another_model(kind: str) -> None:
    """Without its adapter, or with other weights in it; an error in between changes nothing."""
    made = adapted(kit.model(1, rows=kit.VOCAB + 6), **KINDS[kind])
    before, plain, mine = adapter_of(made), logits(without_adapter(made)), logits(made)
    with without(made):
        assert torch.equal(logits(made), plain)
        assert dict(read(made)).keys() == dict(read(kit.model(1, rows=kit.VOCAB + 6))).keys()
    with torch.no_grad():
        for p in learned(made).values():
            p.mul_(1.5)
    moved = logits(made)
    for within, wanted in ((lambda: without(made), plain), (lambda: with_weights(made, before), mine)):
        with pytest.raises(ZeroDivisionError), within():
            assert torch.equal(logits(made), wanted) and not torch.equal(wanted, moved)
            1 / 0  # noqa: B018
        assert torch.equal(logits(made), moved)


def test_the_average_is_of_the_adapter_alone() -> None:
    made = adapted(kit.model(1))
    average = EmaTeacher(made, rate=0.25)
    assert average.model is made and average.state().keys() == learned(made).keys()
    start = logits(made)
    before, frozen = average.state(), {n: p.clone() for n, p in made.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in before.items()}
    with torch.no_grad():
        for p in learned(made).values():
            p.add_(1.0)
    average.update(made)
    for name, p in average.state().items():
        assert torch.allclose(p, before[name] + 0.25, atol=1e-12), name
    assert all(torch.equal(dict(made.named_parameters())[name], p) for name, p in frozen.items())
    average.load(before)
    moved = logits(made)
    with average.within():
        assert torch.equal(logits(made), start) and not torch.equal(start, moved)
    assert torch.equal(logits(made), moved), "the student has its own weights again"
    assert all(torch.equal(p, before[name]) for name, p in average.state().items())


# ── what decodes ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_of_the_merged_copy_are_those_through_the_adapter(kind: str) -> None:
    made = adapted(kit.model(1, rows=kit.VOCAB + 6), **KINDS[kind])
    decodes = DecodingCopy(made, samples=True, bf16=False)
    engine = LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.9))
    requests = [Request(tuple(range(3, 9 + k)), ("t", 0, 0, k, "y"), 24) for k in range(6)]
    for _ in range(2):
        copy = decodes.refreshed()
        assert is_fusable(copy) and not is_fusable(made.eval()) and not is_adapted(copy)
        assert engine(copy, requests) == engine(made, requests)
        with torch.no_grad():  # a step
            for p in learned(made).values():
                p.mul_(1.5)
    assert float((logits(copy) - logits(made)).abs().max()) > 1e-2, "the copy is the student's own weights"
    assert torch.allclose(logits(decodes.refreshed()), logits(made), atol=1e-5)


def test_a_copy_in_bfloat16_leaves_the_student_alone() -> None:
    made = adapted(kit.model(1, dtype=torch.float32))
    before = {name: p.clone() for name, p in made.named_parameters()}
    copy = DecodingCopy(made, samples=True, bf16=True).refreshed()
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    wanted = dict(merged(made, torch.float32, "cpu").named_parameters())
    assert all(torch.equal(p, wanted[name].bfloat16()) for name, p in copy.named_parameters())
    assert all(torch.equal(p, before[name]) and p.dtype is torch.float32 for name, p in made.named_parameters())
    assert DecodingCopy(made, samples=False, bf16=True).refreshed() is made


def test_merging_again_is_merging(tmp_path: Path) -> None:
    made = adapted(kit.model(1))
    plain = merged(made, torch.float64, "cpu")
    with torch.no_grad():
        for p in learned(made).values():
            p.mul_(2)
    merge_again(plain, made)
    again = dict(merged(made, torch.float64, "cpu").named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in plain.named_parameters())


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_peft_reads_what_is_saved(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    kit.save(tmp_path / "base", kit.model(1, dtype=torch.float32), kit.tokenizer())
    made = adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), **KINDS[kind])
    save_adapter(made, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(theirs), logits(made.eval()))
    assert theirs.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")


# ── refusals, and a head that is frozen ──────────────────────────────────────────────────────────────────────────────
@pytest.mark.filterwarnings("ignore:The following:RuntimeWarning")  # peft's, of the experts
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("falcon_h1", "adapter: FalconH1ForCausalLM cannot have one on these modules"),
        ("qwen3_moe", "adapter: Qwen3MoeForCausalLM keeps its experts in one tensor, .* adapter.target_modules"),
    ],
)
def test_an_architecture_that_cannot_have_one_is_one_line(name: str, line: str) -> None:
    with pytest.raises(DudiError, match=line) as error:
        adapted(build(name))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("wanted", ["q_prj", "lm_head", "embed_tokens", "input_layernorm"])
@pytest.mark.parametrize("tied", [True, False])
def test_modules_that_cannot_have_one_are_refused(wanted: str, tied: bool) -> None:
    base = kit.model(1, tied=tied)
    with pytest.raises(DudiError) as error:
        adapted(base, target_modules=("q_proj", wanted))
    assert f"adapter.target_modules: {wanted!r}" in str(error.value) and "down_proj, gate_proj" in str(error.value)
    assert not is_adapted(base)


def test_named_modules_alone_have_one() -> None:
    made = adapted(kit.model(1), target_modules=("q_proj", "v_proj"))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in learned(made)} == {"q_proj", "v_proj"}
    assert len(learned(made)) == 2 * 2 * 2


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same(bias: bool) -> None:
    from dudi.loss.chunked import Positions, Term, score

    def negative(log_p: Tensor, log_q: Any, labels: Tensor) -> Tensor:
        return -log_p.gather(-1, labels[:, None]).squeeze(-1)

    g = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(rows, 8, generator=g, dtype=torch.float64) for rows in (30, 11))
    labels, offset = torch.randint(0, 28, (11,), generator=g), torch.randn(30, generator=g, dtype=torch.float64)
    found = {}
    for learns in (True, False):
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(learns)
        b = offset.clone().requires_grad_(learns) if bias else None
        positions = Positions(labels, (Term(by_autograd(negative), torch.ones(11, dtype=torch.float64)),))
        score(states, Head(head, b, 28), None, [positions], chunk=4).loss.backward()
        found[learns] = states.grad, head.grad
    assert torch.equal(found[True][0], found[False][0]) and float(found[True][0].abs().max()) > 0.01
    assert found[False][1] is None and found[True][1] is not None
