"""The weights that ship: made from today's text and templates, whole, and small enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dudi.lab.build import WEIGHTS, export, hash_of, identity, read_tokenizer
from dudi.lab.plans import FULL
from dudi.models.load import check_model, load_config, load_model
from dudi.recipe.schema import Models
from dudi.text.chat import Chat

MOST = 24 * 2**20


@pytest.fixture
def shipped() -> Path:
    """The shipped build."""
    return WEIGHTS


@pytest.fixture
def manifest(shipped: Path) -> dict[str, Any]:
    return json.loads((shipped / "manifest.json").read_text(encoding="utf-8"))


def test_they_are_made_from_todays_text_templates_and_plan(manifest: dict[str, Any]) -> None:
    today = identity(FULL, manifest["seed"])
    assert {key: manifest[key] for key in today} == today
    assert manifest["command"] == f"dudi lab build FOLDER --seed {manifest['seed']}"


def test_they_are_the_files_that_were_built(shipped: Path, manifest: dict[str, Any]) -> None:
    assert set(manifest["weights"]) == set(FULL.models)
    for name, digest in manifest["weights"].items():
        assert hash_of(shipped / name, "*.safetensors") == digest, name
    assert hash_of(shipped / "tokenizer", "tokenizer.json") == manifest["tokenizer"]


def test_they_are_small_and_no_pickles(shipped: Path) -> None:
    files = [file for file in shipped.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".txt"}


def test_they_load(shipped: Path) -> None:
    tokenizer = read_tokenizer(shipped)
    vocab = Chat(tokenizer, None, {}).vocab
    for name in FULL.models:
        folder = str(shipped / name)
        models = Models(student=folder)
        check_model(load_config(folder, name, models), folder, name, models, None, vocab)


def test_they_are_exported_by_default(shipped: Path, tmp_path: Path) -> None:
    export(tmp_path / "lab", rows=10, share=0.1)
    assert set(FULL.models) <= {file.name for file in (tmp_path / "lab").iterdir()}
    teacher = str(tmp_path / "lab" / "teacher")
    assert load_model(teacher, "teacher", Models(student=teacher), torch.float32).num_parameters() > 1e5
