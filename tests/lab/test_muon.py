"""Muon, beside PyTorch's own, which makes matrices orthogonal one by one and in bfloat16."""

from __future__ import annotations

import torch

from dudi.lab.muon import Muon, orthogonal

SHAPES = ((24, 24), (72, 24), (24, 72), (24, 24))


def test_it_is_pytorchs_muon_up_to_bfloat16() -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.full(shape, 0.1)) for shape in SHAPES] for _ in range(2))
    optimizers = (Muon(ours, lr=0.02, weight_decay=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.02))
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.02 * (b - 0.1).norm()


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    made = orthogonal(torch.randn(3, 16, 48))
    assert ((torch.linalg.svdvals(made) > 0.6) & (torch.linalg.svdvals(made) < 1.3)).all()


def test_a_saved_state_goes_on_the_same_way() -> None:
    def steps(optimizer: Muon, w: torch.nn.Parameter, first: int, last: int) -> None:
        for step in range(first, last):
            w.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    straight, stopped = (torch.nn.Parameter(torch.eye(8)) for _ in range(2))
    steps(Muon([straight], lr=0.1, weight_decay=0.0), straight, 0, 4)
    first = Muon([stopped], lr=0.1, weight_decay=0.0)
    steps(first, stopped, 0, 2)
    second = Muon([stopped], lr=0.1, weight_decay=0.0)
    second.load_state_dict(first.state_dict())
    steps(second, stopped, 2, 4)
    assert torch.equal(straight, stopped)
