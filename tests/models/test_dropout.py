"""Dropout is off in distillation, whatever the config says; the config that is saved stays as it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.architectures import build
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from dudi.errors import DudiError
from dudi.models.dropout import dropout_off
from dudi.recipe.read import parse_recipe

NOISY: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "seed_oss": {"attention_dropout": 0.5, "residual_dropout": 0.5},
    "qwen3": {"attention_dropout": 0.5},
    "falcon": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "bloom": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "xglm": {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5, "layerdrop": 0.5},
    "granitemoe": {"attention_dropout": 0.5},
    "phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5},
}


def gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=kit.VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=2048, bos_token_id=None, eos_token_id=2
    )
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.1
    return GPT2LMHeadModel(config)


@torch.no_grad()
def hidden(model: PreTrainedModel, training: bool) -> torch.Tensor:
    model.train(training)
    return model.base_model(input_ids=torch.arange(3, 43).reshape(2, 20), use_cache=False).last_hidden_state


@pytest.mark.parametrize("name", NOISY)
def test_training_is_evaluation(name: str) -> None:
    model = build(name, **NOISY[name])
    assert not torch.equal(hidden(model, True), hidden(model, False)), "else nothing is shown"
    dropout_off(model, "student")
    for _ in range(3):
        torch.testing.assert_close(hidden(model, True), hidden(model, False), rtol=1e-5, atol=1e-5)
    assert all(getattr(model.config, key) == value for key, value in NOISY[name].items())


def test_other_noise_is_refused_by_name() -> None:
    model = build("llama")
    model.base_model.layers[0].register_forward_hook(
        lambda module, inputs, out: out + torch.randn_like(out) if module.training else out
    )
    with pytest.raises(DudiError, match=r"^student: LlamaForCausalLM computes something else in training"):
        dropout_off(model, "student")


def test_spin_starts_at_log_2(tmp_path: Path) -> None:
    reference = gpt2().requires_grad_(False).eval()
    trainer = kit.trainer(tmp_path, {"name": "spin", "variant": "online"}, student=gpt2(), reference=reference)
    assert kit.step(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_micro_batches_change_nothing_without_it_and_everything_with_it(tmp_path: Path) -> None:
    def loss(folder: str, **training: Any) -> float:
        torch.manual_seed(0)
        return kit.step(kit.trainer(tmp_path / folder, {"name": "sft"}, student=gpt2(), **training))[0]

    assert loss("a", micro_batch=8) == pytest.approx(loss("b", micro_batch=1), rel=1e-5)
    assert abs(loss("c", dropout=True, micro_batch=8) - loss("a2", micro_batch=8)) > 1e-4


@pytest.mark.parametrize("method", ["dudi", "spin", "seqkd", "sdft", "gkd"])
def test_the_key_is_for_sft_and_dft(method: str) -> None:
    table = {
        "name": "x",
        "method": {"name": method},
        "models": {"student": "a", "teacher": "b"},
        "data": {"source": "builtin"},
        "training": {"dropout": True},
    }
    with pytest.raises(DudiError, match=rf"training\.dropout: method '{method}' compares distributions"):
        parse_recipe(table, "x.toml")
    table |= {"training": {}, "cold_start": {"training": {"dropout": True}}}
    assert parse_recipe(table, "x.toml").cold_start.training.dropout
    table |= {"method": {"name": "dft"}, "training": {"dropout": True}, "cold_start": {}}
    assert parse_recipe(table, "x.toml").training.dropout
