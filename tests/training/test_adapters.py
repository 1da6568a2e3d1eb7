"""Training an adapter: the gradient written by hand, full rank, every method, micro-batches, stops."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.adapters import KINDS, adapted, adapted_trainer, frozen, learned
from kit.stops import StopAt, Stopped
from torch import Tensor
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.methods import METHODS, build_method
from dudi.models.adapter import WEIGHTS, merged, without_adapter
from dudi.run.pipeline import resume_stage
from dudi.training.trainer import DistillationTrainer

pytest.importorskip("peft")

ALL: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in METHODS},
    "spin-online": {"name": "spin", "variant": "online"},
    "gkd-sum": {"name": "gkd", "variant": "sum"},
    "sdft-fast": {"name": "sdft", "ema_rate": 0.3},
}
SLOW = pytest.mark.slow


def close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys() and found
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-5, "no gradient: nothing is compared"
    for name, g in wanted.items():
        assert float((found[name] - g).abs().max()) <= tolerance * max(largest, 1.0), name


# ── the gradient ─────────────────────────────────────────────────────────────────────────────────────────────────────
def whole(made: PreTrainedModel) -> PreTrainedModel:
    """The same function with all weights of its own, that learn."""
    return copy.deepcopy(merged(made, torch.float64, "cpu")).requires_grad_(True)


def by_hand(made: PreTrainedModel, full: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """d loss / d adapter from d loss / d W', by the chain rule. W' = W + s B A; or DoRA's m V / |V|, V = W + s B A, of
    which |V|, the length of each row, counts as a constant."""
    state = {name: p.detach() for name, p in made.named_parameters()}
    found = {}
    for name in [name for name in state if name.endswith(".lora_A.default.weight")]:
        path = name.removesuffix(".lora_A.default.weight")
        a, b, g = state[name], state[f"{path}.lora_B.default.weight"], full[f"{path}.weight"]
        length = f"{path}.lora_magnitude_vector.default.weight"
        if length in state:
            v = state[f"{path}.base_layer.weight"] + scale * b @ a
            found[length] = (g * v).sum(1) / v.norm(dim=1)
            g = g * (state[length] / v.norm(dim=1))[:, None]
        found[name], found[f"{path}.lora_B.default.weight"] = scale * b.T @ g, scale * g @ a.T
    return found


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


@pytest.mark.slow
def test_gradient_checkpointing_and_micro_batches_change_nothing(tmp_path: Path) -> None:
    wanted, full = kit.step(adapted_trainer(tmp_path / "8", {"name": "dudi"}))
    split = adapted_trainer(tmp_path / "2", {"name": "dudi"}, micro_batch=2, gradient_checkpointing=True)
    loss, grads = kit.step(split)
    assert loss == pytest.approx(wanted, rel=1e-9)
    close(grads, full)


# ── every method ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("method", ALL)
def test_every_method_trains_the_adapter_and_nothing_else(method: str, tmp_path: Path) -> None:
    """Sampled responses, and an evaluation."""
    rows = kit.short_rows(6)
    t = adapted_trainer(tmp_path, ALL[method], examples=rows[:4], evals=rows[4:], forced=False, batch=4, micro_batch=2)
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
def resumable(folder: Path, method: str, **settings: Any) -> DistillationTrainer:
    """Seven rows in batches of four, two epochs: steps 1 to 4; checkpoints at 2 and 4. Float32, sampled."""
    student = adapted(kit.model(1, rows=kit.VOCAB + 6, dtype=torch.float32), **settings)
    training = {"batch": 4, "micro_batch": 2, "epochs": 2.0, "save_every": 2, "log_every": 3, "overlap_every": 2}
    return adapted_trainer(folder, ALL[method], student, examples=kit.short_rows(7), forced=False, **training)


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
