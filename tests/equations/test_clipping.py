"""`training.max_grad_norm`: what the optimizer gets has at most that norm, and the direction it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback


class Gradients(TrainerCallback):
    """The gradients that reach the optimizer, at each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.seen.append(flat([p.grad for p in others["model"].parameters()]))


def flat(grads: list[Tensor | None]) -> Tensor:
    return torch.cat([g.detach().flatten() for g in grads if g is not None])


def run(folder: Path, **training: Any) -> tuple[Tensor, list[Tensor]]:
    """Gradient of the first step as it is, and gradients as the optimizer got them."""
    made = kit.trainer(
        folder, {"name": "sft"}, student=kit.model(1, rows=kit.VOCAB + 6, sharpness=40.0), epochs=2.0, **training
    )
    watch = Gradients()
    made.add_callback(watch)
    free = kit.step(made)[1]
    made.optimizer = made.lr_scheduler = None
    names = [name for name, _ in made.model.named_parameters()]
    made.train()
    return flat([free.get(name) for name in names]), watch.seen


@pytest.mark.parametrize("most", [1e-3, None])
def test_a_gradient_is_clipped_to_its_norm(tmp_path: Path, most: float | None) -> None:
    """1.0 where nothing is said."""
    free, seen = run(tmp_path, **({} if most is None else {"max_grad_norm": most}))
    most = 1.0 if most is None else most
    assert free.norm() > 1.5 * most, "nothing to clip"
    assert len(seen) == 2
    for grad in seen:
        assert float(grad.norm()) == pytest.approx(most, rel=2e-3)
    torch.testing.assert_close(seen[0], free * (most / (free.norm() + 1e-6)), rtol=1e-6, atol=1e-12)


def test_a_gradient_below_it_is_left_alone(tmp_path: Path) -> None:
    free, seen = run(tmp_path, max_grad_norm=1e6)
    torch.testing.assert_close(seen[0], free, rtol=1e-9, atol=1e-14)
