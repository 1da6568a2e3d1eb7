"""Students with an adapter that has been moved off its start, and trainers of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import dudi.run.folder
import dudi.run.pipeline
import dudi.run.prepare
import dudi.run.settings
from dudi.methods import METHODS, build_method
from dudi.models.adapter import merged, with_adapter, without_adapter
from dudi.models.quantised import dense
from dudi.recipe.schema import Adapter
from dudi.training.trainer import DistillationTrainer
from kit.models import VOCAB, model
from kit.rows import short_rows
from kit.trainers import trainer
from kit.world import World

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}

EVERY_METHOD: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in METHODS},
    "spin-online": {"name": "spin", "variant": "online"},
    "gkd-sum": {"name": "gkd", "variant": "sum"},
    "sdft-fast": {"name": "sdft", "ema_rate": 0.3},
}
"""`[method]` tables: all of `dudi methods`, and those of their variants that sample or average otherwise."""


def adapted(base: PreTrainedModel, moved: float = 0.05, **settings: Any) -> PreTrainedModel:
    """A model with an adapter, by default of rank 4; moved: how far each of its weights is from where it starts."""
    made = with_adapter(base.requires_grad_(False).eval(), Adapter(**{"r": 4, "lora_alpha": 6.0, **settings}), 7)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in learned(made).values():
            p.add_(moved * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return made


def learned(made: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained of a model, by name."""
    return {name: p for name, p in made.named_parameters() if p.requires_grad}


def frozen(made: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the rest."""
    return {name: p.detach().clone() for name, p in made.named_parameters() if not p.requires_grad}


def merged_start(w: World, table: dict[str, Any]) -> tuple[int, float]:
    """Numbers that are trained of a run's first student; and a sum of its weights as they are once all of these are
    0.1 further."""
    pytest.importorskip("peft")
    student = w.start(table)[0].student
    with torch.no_grad():
        for p in learned(student).values():
            p.add_(0.1)
    weights = merged(student, torch.float64, "cpu").parameters()
    return sum(p.numel() for p in learned(student).values()), float(sum(p.abs().sum() for p in weights))


def quantised_loads(w: World, table: dict[str, Any]) -> list[Any]:
    """What is asked of the library for each model, where bitsandbytes would do it."""
    pytest.importorskip("peft")
    found: list[Any] = []
    real = dudi.run.pipeline.load_model

    def load(path: str, what: str, *rest: Any) -> Any:
        found.append((what, rest[-1] and rest[-1].to_diff_dict()))
        return real(path, what, *rest[:-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dudi.run.pipeline, "load_model", load)
        patch.setattr(dudi.run.prepare, "check_quantization", lambda recipe: None)
        patch.setattr(dudi.run.settings, "check_quantization", lambda recipe: None)
        patch.setattr(dudi.run.prepare, "check_backend", lambda key, bits: None)
        patch.setattr(dudi.run.folder, "quantised", lambda recipe: {})  # whose version environment.json has
        w.start(table)
    return found


def adapted_trainer(
    folder: Path, method: Mapping[str, Any], student: PreTrainedModel | None = None, **kwargs: Any
) -> DistillationTrainer:
    """A trainer of any method whose student has an adapter; R, where there is one, is the student without it."""
    student = adapted(model(1, rows=VOCAB + 6)) if student is None else student
    reference = without_adapter(student) if build_method(method).needs_reference else None
    return trainer(folder, method, student=student, reference=reference, **kwargs)


def close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    """Assert that two gradients, by name, are the same."""
    assert found.keys() == wanted.keys() and found
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-5, "no gradient: nothing is compared"
    for name, g in wanted.items():
        assert float((found[name] - g).abs().max()) <= tolerance * max(largest, 1.0), name


def whole(made: PreTrainedModel) -> PreTrainedModel:
    """The same function with all weights of its own, that learn."""
    return copy.deepcopy(merged(made, torch.float64, "cpu")).requires_grad_(True)


def by_hand(made: PreTrainedModel, full: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """d loss / d adapter from d loss / d W', by the chain rule. W' = W + s B A; or DoRA's m V / |V|, V = W + s B A, of
    which |V|, the length of each row, counts as a constant."""
    state = {name: dense(p) for name, p in made.named_parameters()}
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


def resumable(folder: Path, method: str, **settings: Any) -> DistillationTrainer:
    """Seven rows in batches of four, two epochs: steps 1 to 4; checkpoints at 2 and 4. Float32, sampled."""
    student = adapted(model(1, rows=VOCAB + 6, dtype=torch.float32), **settings)
    training = {"batch": 4, "micro_batch": 2, "epochs": 2.0, "save_every": 2, "log_every": 3, "overlap_every": 2}
    return adapted_trainer(folder, EVERY_METHOD[method], student, examples=short_rows(7), forced=False, **training)
