"""Files of a model (config, tokenizer) that are not what they should be: one line, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.command import Dudi
from transformers import AutoModelForCausalLM

from dudi.errors import DudiError
from dudi.models.load import load_model
from dudi.recipe.schema import Models

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
