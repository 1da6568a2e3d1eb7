"""Muon, the optimizer of the lab's builds: steps of the layers' matrices are made orthogonal, all of a shape at once.

    M <- mu M + (1 - mu) G,   U = mu M + (1 - mu) G,   W <- (1 - eta lambda) W - eta sqrt(max(1, rows/columns)) NS(U)

NS is five rounds of a quintic Newton-Schulz iteration, which moves the singular values of U/|U| towards 1. PyTorch's
own `torch.optim.Muon` takes one matrix after the other, in bfloat16: on a CPU without bfloat16 its step took longer
than the rest of a training step (docs/log.md). Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonal(updates: torch.Tensor) -> torch.Tensor:
    """The nearest matrices with singular values around 1: updates (B, m, n), m <= n -> (B, m, n)."""
    a, b, c = NEWTON_SCHULZ
    x = updates / updates.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Muon of matrices; their gradients must all be there."""

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every matrix."""
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for shape, alike in groupby(sorted(group["params"], key=lambda w: tuple(w.shape)), key=lambda w: w.shape):
                matrices = list(alike)
                gradients = torch.stack([w.grad for w in matrices])
                mean = torch.stack([self.state[w].setdefault("mean", torch.zeros_like(w)) for w in matrices])
                mean.lerp_(gradients, 1 - mu)
                for w, one in zip(matrices, mean, strict=True):
                    self.state[w]["mean"].copy_(one)
                wide = shape[0] <= shape[1]
                update = gradients.lerp(mean, mu)
                update = orthogonal(update if wide else update.transpose(1, 2))
                scale = lr * max(1.0, shape[0] / shape[1]) ** 0.5
                for w, one in zip(matrices, update if wide else update.transpose(1, 2), strict=True):
                    w.mul_(1 - lr * group["weight_decay"]).add_(one, alpha=-scale)
