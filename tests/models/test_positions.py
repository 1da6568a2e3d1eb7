"""A model's positions against the recipe's limits: one line that names the key, before anything is paid for."""

from __future__ import annotations

from typing import Any

import pytest
from kit.command import Dudi
from transformers import AutoConfig, BloomConfig, GPT2Config, LlamaConfig, MambaConfig, MptConfig, OPTConfig

from dudi.errors import DudiError
from dudi.models.positions import check_positions, positions
from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Recipe


def recipe(method: str = "dudi", languages: tuple[str, ...] = (), **limits: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "x",
            "method": {"name": method},
            "models": {"student": "a", "teacher": "b"},
            "data": {"source": "builtin", "languages": list(languages)},
            "limits": {"prompt": 100, "verbalizer": 20, "total": 140, "rollout": 30, "teacher_prompt": 300} | limits,
        },
        "x.toml",
    )


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 1e4}
CONFIGS: dict[str, tuple[Any, int | None]] = {
    "llama": (LlamaConfig(max_position_embeddings=128), 128),
    "gpt2": (GPT2Config(n_positions=64), 64),
    "opt": (OPTConfig(max_position_embeddings=99), 99),
    "yarn": (LlamaConfig(max_position_embeddings=100, rope_parameters=YARN), 400),
    "mpt": (MptConfig(max_seq_len=55), 55),
    "bloom": (BloomConfig(), None),
    "mamba": (MambaConfig(), None),
    "inside": (AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 77}), 77),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_positions(name: str) -> None:
    config, wanted = CONFIGS[name]
    assert positions(config) == wanted


CASES: list[tuple[str, bool, int, str | None]] = [
    ("dudi", False, 150, None),  # p_z + rollout
    ("dudi", False, 149, r"150 tokens \(limits.prompt \+ limits.verbalizer \+ limits.rollout\): lower limits.prompt"),
    ("dudi", True, 330, None),
    ("dudi", True, 329, r"330 tokens \(limits.teacher_prompt \+ limits.rollout\): lower limits.teacher_prompt"),
    ("sft", False, 140, None),
    ("sft", False, 139, r"140 tokens \(limits.total\): lower limits.total"),
    ("sft", True, 1, None),  # nobody asks it
    ("spin", False, 139, r"limits.total"),
    ("sdft", False, 329, r"limits.teacher_prompt"),  # the student's own average reads z
    ("seqkd", True, 130, None),
    ("seqkd", True, 129, r"130 tokens \(limits.prompt \+ limits.rollout\)"),
    ("gkd", True, 139, r"limits.total"),
]


@pytest.mark.parametrize("method, teaches, known, said", CASES)
def test_the_longest_reading(method: str, teaches: bool, known: int, said: str | None) -> None:
    config = LlamaConfig(max_position_embeddings=known)
    if said is None:
        check_positions(config, recipe(method), "models.student", teaches)
        return
    with pytest.raises(DudiError, match=rf"^models\.student: the model has {known} positions.*{said}"):
        check_positions(config, recipe(method), "models.student", teaches)


def test_a_language_counts_where_it_is_trained() -> None:
    table = {"default": 30, "my": 60}
    check_positions(LlamaConfig(max_position_embeddings=150), recipe(languages=("id",), rollout=table), "s", False)
    for languages in ((), ("id", "my")):
        with pytest.raises(DudiError, match="180 tokens"):
            check_positions(
                LlamaConfig(max_position_embeddings=150), recipe(languages=languages, rollout=table), "s", False
            )


def test_a_run_is_refused(dudi: Dudi) -> None:
    line = dudi.run_refused("limits.teacher_prompt=4090")
    assert line.startswith("models.teacher: the model has 4,096 positions") and "lower limits.teacher_prompt" in line
