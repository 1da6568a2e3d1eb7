"""Models that are saved under other names than their own resume from their checkpoint, not from where they began."""

from __future__ import annotations

import shutil
from pathlib import Path

import kit
import pytest
from kit import runs
from kit.architectures import COMMON, build

from dudi.run.pipeline import run

TEXT = COMMON | {"vocab_size": kit.VOCAB, "max_position_embeddings": 4096}
STUDENTS = {
    "gemma3": {"text_config": TEXT | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}},
    "qwen3_moe": {"vocab_size": kit.VOCAB, "max_position_embeddings": 4096},
}


@pytest.mark.parametrize("name", STUDENTS)
def test_resumed_is_straight(name: str, tmp_path: Path) -> None:
    training = {"max_steps": 3, "save_every": 1}
    tables = {"cold_start": {"method": {"name": "none"}}, "training": training}
    recipe = runs.recipe(tmp_path, {"name": "sft"}, **tables)
    shutil.rmtree(tmp_path / "student")
    kit.save(tmp_path / "student", build(name, **STUDENTS[name]), kit.tokenizer())
    (stage,) = runs.stages(run(recipe, say=lambda *_: None))
    straight = runs.weights(stage)
    for later in ("checkpoint-3", "model"):
        shutil.rmtree(stage / later)
    run(recipe, resume=True, say=lambda *_: None)
    assert runs.identical(runs.weights(stage), straight)
