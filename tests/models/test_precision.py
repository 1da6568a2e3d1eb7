"""R is computed as the student is: at the student = R, SPIN starts at ln 2 and margin 0, also under bfloat16."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import kit
import pytest
import torch
from transformers import PreTrainedModel

from dudi.models.reference import like_student


def made(kind: str, tied: bool) -> PreTrainedModel:
    return kit.model(1, rows=kit.VOCAB + 6, kind=kind, tied=tied, dtype=torch.float32)


@pytest.mark.parametrize("kind", kit.CLASSES)
@pytest.mark.parametrize("tied", [True, False])
def test_spin_starts_at_log_2_under_bfloat16(tmp_path: Path, kind: str, tied: bool) -> None:
    reference = like_student(lambda: made(kind, tied).requires_grad_(False).eval(), autocast=True)
    trainer = kit.trainer(
        tmp_path,
        {"name": "spin", "variant": "online"},
        student=made(kind, tied),
        reference=reference,
        autocast=True,
        micro_batch=3,
    )
    loss, _ = kit.step(trainer)
    assert loss == float(torch.tensor(math.log(2), dtype=torch.float32))
    sums = trainer.meter.sums
    margins = {key: value for key, value in sums.items() if "margin" in str(key)}
    assert len(margins) and all(value == 0 for value in margins.values()), margins


def test_a_pure_bfloat16_reference_would_not(tmp_path: Path) -> None:
    """What R was before: the test above can tell."""
    wrong = made("qwen2", True).bfloat16().requires_grad_(False).eval()
    trainer = kit.trainer(
        tmp_path, {"name": "spin", "variant": "online"}, student=made("qwen2", True), reference=wrong, autocast=True
    )
    assert abs(kit.step(trainer)[0] - math.log(2)) > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_linear_layers_are_kept_in_half_the_memory(tied: bool) -> None:
    model = like_student(lambda: made("qwen3", tied), autocast=True)
    kept = {name for name, p in model.named_parameters() if p.dtype is torch.float32}
    assert "model.embed_tokens.weight" in kept and "model.norm.weight" in kept
    assert "model.layers.0.mlp.up_proj.weight" not in kept
    assert model.get_output_embeddings().weight.dtype is (torch.float32 if tied else torch.bfloat16)
    assert {p.dtype for p in like_student(lambda: made("qwen3", tied), autocast=False).parameters()} == {torch.float32}


def test_a_layer_that_autocast_does_not_cast_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that is computed in float32 on purpose: rounding it would be a margin."""

    def load() -> PreTrainedModel:
        model = made("qwen2", True)
        inner = model.model.layers[0].mlp.gate_proj

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return torch.nn.functional.linear(x.float(), inner.weight.float())

        inner.forward = forward
        return model

    model = like_student(load, autocast=True)
    assert model.model.layers[0].mlp.gate_proj.weight.dtype is torch.float32
    assert {p.dtype for p in copy.deepcopy(model).parameters()} == {torch.float32}
