"""Checkpoints as others save them: quantised, with an encoder, of another tokenizer, with a head that its config does
not know of. The result says of itself what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.architectures import build
from kit.command import Dudi
from kit.rows import message
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig, BartForConditionalGeneration

from dudi.errors import DudiError
from dudi.evals.respond import Responder
from dudi.models.load import eos_ids, load_model
from dudi.models.parts import backbone
from dudi.recipe.schema import Models
from dudi.run.pipeline import run
from dudi.text.chat import Chat


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("what", ["models.student", "models.teacher", "cold_start.checkpoint"])
@pytest.mark.parametrize("method", ["gptq", "of tomorrow"])
def test_a_quantised_model(dudi: Dudi, what: str, method: str) -> None:
    """Nothing quantised is trained; as a teacher it is refused where it would be read as if it were whole."""
    path = dudi.folder / "quantised"
    shutil.copytree(dudi.models / "student", path)
    edit(path, quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    line = dudi.run_refused(f"{what}='{path}'")
    if what != "models.teacher":
        assert line.startswith(f"{what}: '{path}' is quantised ({method}): such weights cannot be trained; give the")
    elif method == "gptq":
        assert line.startswith(f"{what}: '{path}' cannot be loaded: ") and "optimum" in line
    else:
        assert line.startswith(f"{what}: '{path}' is quantised in a way that transformers does not know ({method})")


def test_an_encoder_and_a_decoder(dudi: Dudi) -> None:
    """Its decoder alone would load, without its weights."""
    path = dudi.folder / "bart"
    config = BartConfig(
        vocab_size=kit.VOCAB, d_model=32, encoder_layers=1, decoder_layers=1, max_position_embeddings=4096
    )
    BartForConditionalGeneration(config).save_pretrained(path)
    kit.tokenizer().save_pretrained(path)
    line = dudi.run_refused(f"models.teacher='{path}'")
    assert line.startswith(f"models.teacher: '{path}' is an encoder and a decoder (bart): give a causal language model")


def test_a_cold_start_of_another_tokenizer(dudi: Dudi) -> None:
    path = dudi.folder / "other"
    kit.save(path, kit.model(3, rows=kit.VOCAB + 6, dtype=torch.float32), kit.tokenizer(kit.VOCAB - 24))
    line = dudi.run_refused(f"cold_start.checkpoint='{path}'")
    assert f"student and cold_start.checkpoint have different tokenizers ({kit.VOCAB} and {kit.VOCAB - 24}" in line


def test_a_text_config_that_names_no_end(tmp_path: Path) -> None:
    """As that of Qwen3-VL: what the model is, is for the loader to say."""

    class Silent:
        vocab_size = 8

        def get_text_config(self) -> Silent:
            return self

    assert eos_ids(Silent(), str(tmp_path), "models.student", None, ()) == ()


@pytest.mark.parametrize("given", [True, False])
def test_the_result_uses_its_cache_as_the_student_did(tmp_path: Path, given: bool) -> None:
    """The Trainer switches it off in the config that is saved."""
    recipe = runs.recipe(tmp_path, {"name": "sft"}, cold_start={"method": {"name": "none"}}, training={"max_steps": 1})
    edit(tmp_path / "student", use_cache=given)
    (stage,) = runs.stages(run(recipe, say=lambda *_: None))
    assert json.loads((stage / "model" / "config.json").read_text())["use_cache"] is given
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(stage / "model")
        assert (loaded(input_ids=torch.tensor([[3, 4]])).past_key_values is not None) is given


def test_a_head_of_its_own_that_the_config_calls_tied(tmp_path: Path) -> None:
    """transformers keeps both; others would follow the config and lose the head, so the result's says what it is."""
    recipe = runs.recipe(tmp_path, {"name": "sft"}, cold_start={"method": {"name": "none"}}, training={"max_steps": 1})
    weights = tmp_path / "student" / "model.safetensors"
    state = load_file(weights)
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"].flip(0).contiguous()}, weights)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["tie_word_embeddings"] is True
    (stage,) = runs.stages(run(recipe, say=lambda *_: None))
    assert AutoConfig.from_pretrained(stage / "model").tie_word_embeddings is False
    found = runs.weights(stage)
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_a_tied_head_stays_one(models: Path) -> None:
    assert (
        load_model(str(models / "student"), "x", Models(student="x"), torch.float32).config.tie_word_embeddings is True
    )


def test_a_backbone_under_another_name() -> None:
    """Llama 4's class names a prefix that it has not."""
    model = build("llama4_text")
    assert model.base_model is model and backbone(model) is model.model


def test_an_evaluation_counts_positions_as_a_training_does(models: Path) -> None:
    """YaRN: the config may say the length before it was scaled."""
    model = load_model(str(models / "student"), "x", Models(student="x"), torch.float32)
    scaled = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 40}
    model.config.max_position_embeddings, model.config.rope_parameters = 40, scaled
    responder = Responder(model, Chat(kit.tokenizer(), None, {}), (2,))
    item: Any = SimpleNamespace(id="a", prompt=list(message("?")))
    limit: Any = SimpleNamespace(max_new_tokens=lambda _: 100)
    assert responder._request(item, limit, 0).limit == 100
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    with pytest.raises(DudiError, match="100 new ones are more than the model's 40"):
        responder._request(item, limit, 0)
