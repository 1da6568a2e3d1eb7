"""What has to hold of sharded models, as far as one process can see it; tests/test_distributed.py has two."""

from __future__ import annotations

import kit
import pytest
import torch

from dudi.models.load import DecodingCopy
from dudi.models.sharding import bytes_here, frozen_states, idle, is_sharded, through, whole, whole_copy


def test_a_call_through_the_model_leaves_it_as_it_was() -> None:
    model = kit.model(1)
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    assert through(model, model, lambda: "mine") == "mine"
    with pytest.raises(ZeroDivisionError):
        through(model, model, lambda: 1 / 0)
    assert "forward" not in vars(model) and torch.equal(model(input_ids=ids).logits, before)


def test_a_zero_that_touches_the_backbone() -> None:
    model = kit.model(1, tied=False)
    zero = idle(model, 2, torch.device("cpu"))
    zero.backward()
    assert float(zero.detach()) == 0
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {name for name, _ in model.named_parameters()} - {"lm_head.weight"}
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert float(idle(model, 0, torch.device("cpu"))) == 0


def test_whole_models_stay_what_they_are() -> None:
    model = kit.model(1)
    assert not is_sharded(model) and frozen_states(model, {}, 2) == {}
    p = next(model.parameters())
    assert whole(p) is p
    assert bytes_here(model) == 8 * sum(p.numel() for p in model.parameters())
    copied = whole_copy(model)
    assert not any(p.requires_grad for p in copied.parameters()) and not copied.training
    with torch.no_grad():
        p.add_(1)
    assert not torch.equal(next(copied.parameters()), p)


def test_the_copy_that_decodes_keeps_its_rotary_frequencies() -> None:
    """In bfloat16 a frequency is off by up to 0.4 %: after a thousand tokens, by more than a radian. Training computes
    with float32 frequencies, and so must what decodes."""
    student = kit.model(1, dtype=torch.float32)
    copied = DecodingCopy(student, samples=True, bf16=True).refreshed()
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    for mine, theirs in zip(copied.buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs) and mine.dtype is torch.float32
    assert any(not torch.equal(b.bfloat16().float(), b) for b in student.buffers()), "else nothing is shown"


def test_nothing_is_copied_where_nothing_is_decoded() -> None:
    student = kit.model(1, dtype=torch.float32)
    assert DecodingCopy(student, samples=False, bf16=True).refreshed() is student
    assert DecodingCopy(student, samples=True, bf16=False).refreshed() is student
