"""Students with an adapter that has been moved off its start, and trainers of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dudi.methods import build_method
from dudi.models.adapter import merged, with_adapter, without_adapter
from dudi.recipe.schema import Adapter
from dudi.training.trainer import DistillationTrainer
from kit.models import VOCAB, model
from kit.trainers import trainer
from kit.world import World

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


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


def adapted_trainer(
    folder: Path, method: Mapping[str, Any], student: PreTrainedModel | None = None, **kwargs: Any
) -> DistillationTrainer:
    """A trainer of any method whose student has an adapter; R, where there is one, is the student without it."""
    student = adapted(model(1, rows=VOCAB + 6)) if student is None else student
    reference = without_adapter(student) if build_method(method).needs_reference else None
    return trainer(folder, method, student=student, reference=reference, **kwargs)
