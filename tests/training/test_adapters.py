"""Training an adapter: the gradient written by hand, full rank, every method, micro-batches, stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.adapters import (
    EVERY_METHOD,
    KINDS,
    adapted,
    adapted_trainer,
    by_hand,
    close,
    frozen,
    learned,
    resumable,
    whole,
)
from kit.stops import StopAt, Stopped
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dudi.errors import DudiError
from dudi.methods import build_method
from dudi.models.adapter import WEIGHTS, merged, without_adapter
from dudi.run.pipeline import resume_stage

pytest.importorskip("peft")

SLOW = pytest.mark.slow


# ── the gradient ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("method", ["sft", "spin", "sdft", pytest.param("dudi", marks=SLOW)])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_written_by_hand(kind: str, method: str, tmp_path: Path) -> None:
    made = adapted(kit.model(1, rows=kit.VOCAB + 6), **KINDS[kind])
    reference = without_adapter(made) if build_method({"name": method}).needs_reference else None
    same = kit.trainer(tmp_path / "w", {"name": method}, student=whole(made), reference=reference)
    wanted, full = kit.step(same)
    loss, grads = kit.step(adapted_trainer(tmp_path / "a", {"name": method}, made))
    assert loss == pytest.approx(wanted, rel=1e-9) and wanted > 1e-4
    close(grads, by_hand(made, full, {"rslora": 6 / 2}.get(kind, 6 / 4)))


@pytest.mark.parametrize("method", ["sft", pytest.param("dudi", marks=SLOW)])
def test_an_adapter_of_full_rank_is_the_full_training(method: str, tmp_path: Path) -> None:
    """A = 1 and lora_alpha = r: then B is what is added to W, and AdamW moves it as it moves W."""
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    base = kit.model(1, rows=kit.VOCAB + 6)
    student = adapted(base, moved=0.0, r=32, lora_alpha=32.0, target_modules=modules)
    for name, p in learned(student).items():
        if "lora_A" in name:
            p.data.copy_(torch.eye(32))
            p.requires_grad_(False)
    full = kit.model(1, rows=kit.VOCAB + 6)
    for name, p in full.named_parameters():
        p.requires_grad_(name.split(".")[-2] in modules and name.endswith("weight"))
    settings: dict[str, Any] = {"batch": 4, "micro_batch": 2, "epochs": 2.0}
    reference = kit.model(1, rows=kit.VOCAB + 6).requires_grad_(False).eval() if method == "dudi" else None
    one = kit.trainer(tmp_path / "full", {"name": method}, student=full, reference=reference, **settings)
    other = adapted_trainer(tmp_path / "adapter", {"name": method}, student, **settings)
    for t in (one, other):
        t.train()
        assert t.state.global_step == 4
    start = dict(kit.model(1, rows=kit.VOCAB + 6).named_parameters())
    found = dict(merged(student, torch.float64, "cpu").named_parameters())
    for name, p in full.named_parameters():
        assert torch.allclose(p, found[name], rtol=0, atol=1e-8), name
        assert (float((p - start[name]).detach().abs().max()) > 1e-3) is p.requires_grad, name


class ByHand(nn.Module):
    """W -> W + s B A."""

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a.detach().clone()), nn.Parameter(b.detach().clone()), scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.b @ self.a


@pytest.mark.parametrize("method", ["sft", pytest.param("dudi", marks=SLOW)])
def test_an_adapter_of_full_rank_is_the_same_parametrisation_written_by_hand(method: str, tmp_path: Path) -> None:
    """A and B of full rank, both drawn, both trained, over four steps of AdamW; torch's own parametrisations beside."""
    student = adapted(kit.model(1, rows=kit.VOCAB + 6), r=32, lora_alpha=48.0)
    mine = kit.model(1, rows=kit.VOCAB + 6).requires_grad_(False)
    paths = [name.removesuffix(".lora_A.default.weight") for name in learned(student) if ".lora_A." in name]
    for path in paths:
        a, b = (student.get_submodule(f"{path}.lora_{x}.default").weight for x in "AB")
        parametrize.register_parametrization(mine.get_submodule(path), "weight", ByHand(a, b, 48 / 32))
    settings: dict[str, Any] = {"batch": 4, "micro_batch": 2, "epochs": 2.0}
    reference = kit.model(1, rows=kit.VOCAB + 6).requires_grad_(False).eval() if method == "dudi" else None
    one = kit.trainer(tmp_path / "hand", {"name": method}, student=mine, reference=reference, **settings)
    other = adapted_trainer(tmp_path / "adapter", {"name": method}, student, **settings)
    before = {name: p.detach().clone() for name, p in learned(student).items()}
    for t in (one, other):
        t.train()
        assert t.state.global_step == 4
    for path in paths:
        hand = mine.get_submodule(path).parametrizations.weight[0]
        for x, wanted in (("A", hand.a), ("B", hand.b)):
            name = f"{path}.lora_{x}.default.weight"
            found = student.get_parameter(name)
            assert torch.allclose(found, wanted, rtol=0, atol=1e-8), name
            assert float((found - before[name]).detach().abs().max()) > 1e-3, name


@pytest.mark.slow
def test_gradient_checkpointing_and_micro_batches_change_nothing(tmp_path: Path) -> None:
    wanted, full = kit.step(adapted_trainer(tmp_path / "8", {"name": "dudi"}))
    split = adapted_trainer(tmp_path / "2", {"name": "dudi"}, micro_batch=2, gradient_checkpointing=True)
    loss, grads = kit.step(split)
    assert loss == pytest.approx(wanted, rel=1e-9)
    close(grads, full)


# ── every method ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_method_trains_the_adapter_and_nothing_else(method: str, tmp_path: Path) -> None:
    """Sampled responses, and an evaluation."""
    rows = kit.short_rows(6)
    t = adapted_trainer(
        tmp_path, EVERY_METHOD[method], examples=rows[:4], evals=rows[4:], forced=False, batch=4, micro_batch=2
    )
    before, started = frozen(t.student), {name: p.detach().clone() for name, p in learned(t.student).items()}
    t.train()
    assert t.state.global_step == 1
    assert runs.identical(frozen(t.student), before)
    moved = [name for name, p in learned(t.student).items() if not torch.equal(p, started[name])]
    assert len(moved) == len(started) > 20
    state = t.optimizer.state_dict()["state"]
    assert sum(entry["exp_avg"].numel() for entry in state.values()) == sum(p.numel() for p in started.values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [("eval" in line) for line in lines] == [False, True] and lines[0]["loss"] == lines[0]["loss"]


def test_at_its_start_the_margin_to_the_reference_is_nothing(tmp_path: Path) -> None:
    """SPIN at the student = R is ln 2, in bfloat16 too."""
    for autocast in (False, True):
        student = adapted(kit.model(1, dtype=torch.float32), moved=0.0)
        t = adapted_trainer(tmp_path / str(autocast), {"name": "spin"}, student, autocast=autocast)
        assert kit.step(t)[0] == pytest.approx(0.6931471805599453, abs=1e-6)


# ── stops ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("sdft-fast", "lora"),
        pytest.param("dudi", "dora", marks=SLOW),
        pytest.param("spin-online", "rslora", marks=SLOW),
    ],
)
def test_stopped_and_resumed_is_the_straight_training(method: str, kind: str, tmp_path: Path) -> None:
    straight = resumable(tmp_path / "straight", method, **KINDS[kind])
    resume_stage(straight)
    first = resumable(tmp_path / "stopped", method, **KINDS[kind])
    first.add_callback(StopAt(3))
    with pytest.raises(Stopped):
        resume_stage(first)
    second = resumable(tmp_path / "stopped", method, **KINDS[kind])
    resume_stage(second)
    assert second.state.global_step == straight.state.global_step == 4
    assert runs.identical(dict(straight.model.named_parameters()), dict(second.model.named_parameters()))
    states = [t.optimizer.state_dict()["state"] for t in (straight, second)]
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert runs.identical(one, other)
    if straight.ema is not None:
        assert second.ema is not None and runs.identical(straight.ema.state(), second.ema.state())
    read = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("straight", "stopped")]
    assert read[0] == read[1]


def test_a_checkpoint_holds_the_adapter_alone(tmp_path: Path) -> None:
    t = resumable(tmp_path, "sdft-fast")
    t.add_callback(StopAt(2))
    with pytest.raises(Stopped):
        resume_stage(t)
    saved = tmp_path / "checkpoint-2"
    assert (saved / "adapter_config.json").is_file() and not (saved / "model.safetensors").exists()
    size = 4 * sum(p.numel() for p in learned(t.student).values())
    for name in (WEIGHTS, "ema.safetensors"):
        assert size < (saved / name).stat().st_size < 1.5 * size
    again = resumable(tmp_path, "sdft-fast", r=2)  # of another rank
    with pytest.raises(DudiError, match=r"checkpoint-2: .* cannot be resumed from"):
        resume_stage(again)
