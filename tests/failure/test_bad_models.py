"""Models that cannot be used: their files, the tokenizers of two, the hub. One line, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from kit.command import Dudi
from transformers import AutoModelForCausalLM

from dudi.data import hub
from dudi.errors import DudiError
from dudi.models import load as dudi_models
from dudi.models.load import load_model
from dudi.recipe.schema import Models

# ── config and tokenizer ──────────────────────────────────────────────────────────────────────────────────────────────
CONFIGS: list[Any] = [
    "[]", "3", '"x"', "null", "", "{", "[" * 5000, "{}", b"\xff\xfe",
    {"model_type": 3}, {"model_type": None}, {"vocab_size": "many"}, {"vocab_size": -1}, {"vocab_size": 0},
    {"hidden_size": "x"}, {"hidden_size": 0}, {"hidden_size": 33}, {"num_hidden_layers": -1},
    {"num_hidden_layers": 10**9}, {"num_hidden_layers": "two"}, {"num_attention_heads": 0},
    {"num_attention_heads": 5}, {"intermediate_size": None}, {"hidden_act": "nothing"}, {"layer_types": ["x", "y"]},
    {"rope_parameters": {"rope_type": "nothing"}},
    {"max_position_embeddings": "long"},
]  # fmt: skip


def broken(models: Path, folder: Path, given: Any) -> Path:
    """The teacher with another config."""
    path = folder / "broken"
    shutil.copytree(models / "teacher", path)
    file = path / "config.json"
    if isinstance(given, dict):
        file.write_text(json.dumps(json.loads(file.read_text()) | given))
    else:
        file.write_bytes(given if isinstance(given, bytes) else given.encode())
    return path


@pytest.mark.parametrize("given", CONFIGS, ids=lambda case: str(case)[:40])
def test_a_config_that_cannot_be_used(dudi: Dudi, given: Any) -> None:
    path = broken(dudi.models, dudi.folder, given)
    line = dudi.run_refused(f"models.teacher='{path}'")
    assert line.startswith("models.teacher: ") and len(line) < 700


@pytest.mark.parametrize("given", CONFIGS, ids=lambda case: str(case)[:40])
def test_the_loader_itself_says_it_in_one_line(given: Any, models: Path, tmp_path: Path) -> None:
    """A stage's result, an evaluation, a script: there nobody looked at the files before."""
    path = broken(models, tmp_path, given)
    with pytest.raises(DudiError) as error:
        load_model(str(path), "models.teacher", Models(student="x"), torch.float32)
    line = str(error.value)
    assert line.startswith("models.teacher: ") and repr(str(path)) in line and len(line) < 700


def test_memory_that_is_used_up_is_not_the_models_fault(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(torch.OutOfMemoryError):  # which `guards.memory` makes a line of
        load_model(str(models / "teacher"), "models.teacher", Models(student="x"), torch.float32)


TOKENIZERS: list[tuple[str, str | bytes]] = [
    ("tokenizer.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer.json", "{"), ("tokenizer.json", b"\xff"),
    ("tokenizer.json", "[" * 5000), ("tokenizer.json", '{"version": "1.0", "model": {"type": "None"}}'),
    ("tokenizer_config.json", "[]"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", b"\xff"),
    ("tokenizer_config.json", '{"tokenizer_class": 3}'), ("tokenizer_config.json", "[" * 5000),
]  # fmt: skip


@pytest.mark.parametrize("name, text", TOKENIZERS, ids=lambda case: str(case)[:30])
def test_a_tokenizer_that_cannot_be_used(dudi: Dudi, name: str, text: str | bytes) -> None:
    path = dudi.folder / "broken"
    shutil.copytree(dudi.models / "student", path)
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    line = dudi.run_refused(f"models.student='{path}'")
    assert line.startswith("models.student: ") and len(line) < 700


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return edit


def nan_weights(folder: Path) -> None:
    made = kit.model(1, dtype=torch.float32)
    with torch.no_grad():
        made.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    made.save_pretrained(folder)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no folder '{path}'; give a model folder or a hub name"),
    "not a model": (lambda f: [file.unlink() for file in f.iterdir()], "'{path}' cannot be loaded: "),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "'{path}' holds no weights"),
    "cut weights": (weights(lambda b: b[:4000]), "'{path}' cannot be loaded: "),
    "no safetensors": (weights(lambda b: b"x" * 999), "'{path}' cannot be loaded: "),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "'{path}' cannot be loaded: "),
    "unknown kind": (edit_config(model_type="nothing"), "'{path}' cannot be loaded: "),
    "no language model": (edit_config(model_type="clip"), "'{path}' cannot be loaded: "),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "'{path}' cannot be loaded: "),
    "a layer too few": (
        edit_config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        "the weights do not fit its config.json: 'model.layers.2.input_layernorm.weight' is missing",
    ),
    "other sizes": (edit_config(vocab_size=500), "the weights do not fit its config.json: 'model.embed_tokens.weight'"),
    "too few embeddings": (
        lambda f: kit.save(f, kit.model(1, rows=kit.VOCAB - 1, dtype=torch.float32), kit.tokenizer()),
        f"the model has {kit.VOCAB - 1} embeddings, but the tokenizer has {kit.VOCAB} tokens",
    ),
    "NaN": (nan_weights, "the model's logits are not finite"),
}


MODELS = [(what, fault) for what in ("models.student", "models.teacher", "cold_start.checkpoint") for fault in BROKEN]


@pytest.mark.parametrize("what, fault", MODELS)
def test_a_model_that_cannot_be_used(dudi: Dudi, what: str, fault: str) -> None:
    path = dudi.folder / "broken"
    shutil.copytree(dudi.models / "student", path)
    break_it, said = BROKEN[fault]
    break_it(path)
    sets = [f"{what}='{path}'"]
    if what == "models.teacher":  # so that the first stage reads it
        sets += ["cold_start.method.name=none"]
    line = dudi.run_refused(*sets)
    name = what.split(".")[1].replace("checkpoint", "student") if fault == "NaN" else what
    assert line.startswith(f"{name}: ") and said.format(path=path) in line


def test_different_tokenizers(dudi: Dudi) -> None:
    other = kit.tokenizer(kit.VOCAB - 24)
    path = kit.save(dudi.folder / "other", kit.model(1, rows=kit.VOCAB + 6, dtype=torch.float32), other)
    line = dudi.run_refused(f"models.teacher='{path}'")
    assert f"different tokenizers ({kit.VOCAB} and {kit.VOCAB - 24} tokens; " in line


def test_an_attention_that_is_not_installed(dudi: Dudi) -> None:
    if dudi_models.torch.cuda.is_available():
        pytest.skip("may be installed where there is a GPU")
    assert "models.student: " in dudi.run_refused("models.attention=flash_attention_2")


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class Response:
    """As much of an HTTP response as the errors look at."""

    def __init__(self, status: int) -> None:
        self.status_code, self.headers, self.request, self.text = status, {}, None, ""


def gated(*args: Any, **kwargs: Any) -> Any:
    raise GatedRepoError("401 https://signed.example/secret", response=Response(401))  # type: ignore[arg-type]


def gated_as_transformers_says_it(*args: Any, **kwargs: Any) -> Any:
    try:
        gated()
    except GatedRepoError as error:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it") from error


def missing(*args: Any, **kwargs: Any) -> Any:
    raise RepositoryNotFoundError("404", response=Response(404))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [gated, gated_as_transformers_says_it])
@pytest.mark.parametrize("what", ["student", "teacher"])
def test_a_gated_model(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, what: str, error: Any) -> None:
    whole = dudi_models.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        dudi_models.AutoTokenizer,
        "from_pretrained",
        lambda path, **more: error() if path == "meta-llama/Gated" else whole(path, **more),
    )
    line = dudi.run_refused(f"models.{what}=meta-llama/Gated")
    assert line == (
        f"models.{what}: 'meta-llama/Gated': the hub refuses access: accept the terms on"
        " https://huggingface.co/meta-llama/Gated, then give a token with `hf auth login` or HF_TOKEN"
    )


def test_a_model_that_the_hub_does_not_have(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dudi_models.AutoTokenizer, "from_pretrained", missing)
    line = dudi.run_refused("models.student=nobody/nothing")
    assert "models.student: 'nobody/nothing': the hub answered 404; check the name" in line


def test_gated_data_without_a_token(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.HuggingFaceHub, "listing", gated)
    line = dudi.run_refused("data.source=aisingapore/SEA-Instruct-2602", "data.format=sea_instruct")
    assert "'aisingapore/SEA-Instruct-2602'" in line and "accept its terms on" in line and "HF_TOKEN" in line
    assert "signed.example" not in line


def test_the_hub_is_switched_off(dudi: Dudi) -> None:
    assert "the hub is switched off (HF_HUB_OFFLINE)" in dudi.run_refused("data.source=nobody/nothing")
    assert "models.student: 'nobody/nothing' cannot be loaded: " in dudi.run_refused("models.student=nobody/nothing")
