"""Cached greedy decoding, in a batch of unequal prompts, is decoding without a cache, and the model's own `generate`;
and losses are those of the full logits. All architectures: slow; six of all kinds: here."""

from __future__ import annotations

import pytest
from kit.architectures import ARCHITECTURES, REFUSED, Checked, check

FAST = ("qwen3", "gemma2", "gemma3_text", "gpt2", "qwen3_5_text", "mamba")


def right(name: str) -> None:
    found = check(name)
    if name in REFUSED:
        assert REFUSED[name] in (found.refused or ""), found
        return
    assert found == Checked(name, refused=None, greedy=True, generate=True, loss=found.loss, padding=found.padding)
    assert found.loss is not None and found.loss < 1e-5


@pytest.mark.parametrize("name", FAST)
def test_an_architecture(name: str) -> None:
    right(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in FAST])
def test_every_other_architecture(name: str) -> None:
    right(name)
