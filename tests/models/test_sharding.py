"""What has to hold of sharded models, as far as one process can see it; tests/test_distributed.py has two."""

from __future__ import annotations

import kit
import pytest
import torch

from dudi.loss.scores import Reading
from dudi.models.reader import DecodingCopy, Reader
from dudi.models.sharding import bytes_here, through, whole, whole_copy


def test_a_call_through_the_model_leaves_it_as_it_was() -> None:
    model = kit.model(1)
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    assert through(model, model, lambda: "mine") == "mine"
    with pytest.raises(ZeroDivisionError):
        through(model, model, lambda: 1 / 0)
    assert "forward" not in vars(model) and torch.equal(model(input_ids=ids).logits, before)


def test_a_zero_that_touches_every_parameter() -> None:
    """What a process adds to its loss that has nothing to read."""
    model = kit.model(1, tied=False)
    zero = Reader(model, kit.VOCAB, "student").reading(model, {}, 2, lambda hidden, head, zero: zero)
    zero.backward()
    assert float(zero.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_one_who_reads_adds_nothing() -> None:
    model, ids = kit.model(1, tied=False), torch.tensor([[5, 6, 7]])
    readings = {"x": Reading(ids, torch.tensor([1]))}
    zero = Reader(model, kit.VOCAB, "student").reading(model, readings, 2, lambda hidden, head, zero: zero)
    assert float(zero) == 0 and zero.grad_fn is None


def test_whole_models_stay_what_they_are() -> None:
    model = kit.model(1)
    reader = Reader(model, kit.VOCAB, "teacher")
    assert not reader.lockstep and reader.hidden({}, 2) == {}
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
