"""Cached greedy decoding, in a batch of unequal prompts, is decoding without a cache, and the model's own `generate`;
and losses are those of the full logits. All architectures: slow; six of all kinds: here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from kit.architectures import ARCHITECTURES, REFUSED, VOCAB, Checked, build, check

from dudi.errors import DudiError
from dudi.models import decoding
from dudi.models.probe import check_decoding, check_head, check_reading
from dudi.models.reader import Reader
from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine

FAST = ("qwen3", "gemma2", "gemma3_text", "gpt2", "qwen3_5_text", "mamba")


def right(name: str) -> None:
    found = check(name)
    if name in REFUSED:
        assert REFUSED[name] in (found.refused or ""), found
        return
    assert found == Checked(name, refused=None, greedy=True, generate=True, loss=found.loss, padding=found.padding)
    assert found.loss is not None and found.loss < 1e-5


def test_the_page_lists_them_all() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "architectures.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (?:yes|-) \| (?:yes|-) \|", page, re.MULTILINE)
    assert rows == sorted(ARCHITECTURES)


@pytest.mark.parametrize("name", FAST)
def test_an_architecture(name: str) -> None:
    right(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in FAST])
def test_every_other_architecture(name: str) -> None:
    right(name)


def test_a_head_is_scaled_as_its_config_says() -> None:
    """Whatever the config calls it; every real Falcon-H1 has such a number."""
    check_head(build("falcon_h1", lm_head_multiplier=0.04), VOCAB, "student")


def test_weights_that_change_when_they_are_called_are_refused() -> None:
    """RWKV's: a copy that decodes, refreshed in another mode, would be another model."""
    with pytest.raises(DudiError, match=r"^student: RwkvForCausalLM changes its own weights"):
        Reader(build("rwkv", rescale_every=2, num_hidden_layers=4).train(), VOCAB, "student")


def test_a_model_that_sees_what_comes_later_is_refused() -> None:
    """Padding on the right would change what it says of the tokens before."""
    model = build("qwen3")
    for layer in model.base_model.layers:
        layer.self_attn.is_causal = False
    model.config.is_causal = False
    plain = model.base_model.forward

    def forward(input_ids: torch.Tensor, **rest: object) -> object:
        return plain(input_ids=input_ids, attention_mask=torch.zeros(1, 1, *2 * input_ids.shape[1:]), **rest)

    model.base_model.forward = forward
    with pytest.raises(DudiError, match=r"^student: Qwen3ForCausalLM sees tokens that come later"):
        check_reading(model, VOCAB, "student")


def test_a_model_that_loses_its_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a name that is swallowed by `**kwargs` loses it."""
    monkeypatch.setattr(decoding, "ARGUMENTS", ("no_such_name",))
    for name in ("gemma2", "mamba"):
        with pytest.raises(DudiError, match=r"^student: .* says something else with its cache than without"):
            Reader(build(name), VOCAB, "student")
    with pytest.raises(DudiError, match=r"^rollouts: "):
        LocalEngine(Sampling((), 0, VOCAB, 0.0))(build("gemma2"), [Request((5, 6), ("k",), 3)])


@pytest.mark.parametrize("name", ["qwen3", "mamba2", "falcon_mamba", "gemma3_text", "gpt_oss", "mixtral"])
def test_bfloat16_is_not_taken_for_a_fault(name: str) -> None:
    """Teachers are loaded so: its rounding is far below what a lost state makes, also with deeper layers."""
    model = build(name, dtype=torch.bfloat16)
    Reader(model, VOCAB, "teacher")
    assert check_decoding(model, VOCAB, "teacher")
