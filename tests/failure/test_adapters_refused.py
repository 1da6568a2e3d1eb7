"""What [adapter] is refused with, in one line, before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from kit import recipes, runs

from dudi.errors import DudiError
from dudi.recipe.read import parse_recipe
from dudi.run.paths import check_adapter
from dudi.run.pipeline import run
from dudi.run.plan.plan import plan


def test_without_peft_it_is_refused_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    recipe = runs.recipe(tmp_path, {"name": "sft"}, adapter={"r": 4})
    for use in (lambda: run(recipe, say=lambda _: None), lambda: plan(recipe, "h100"), lambda: check_adapter(recipe)):
        with pytest.raises(DudiError) as error:
            use()
        line = recipes.the_line(error)
        assert "peft is not installed" in line and "pip install 'dudi[peft]'" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"lora_dropout": 0.05}, "unknown key in [adapter]: 'lora_dropout'"),
        ({"rank": 4}, "unknown key in [adapter]: 'rank'"),
        ({"r": 0}, "adapter.r: input should be greater than 0, found 0"),
        ({"lora_alpha": 0.0}, "adapter.lora_alpha: input should be greater than 0, found 0.0"),
        ({"target_modules": "q_proj"}, 'adapter.target_modules: expected "all-linear", or a list of names'),
        ({"target_modules": ()}, 'adapter.target_modules: expected "all-linear", or a list of names'),
        ({"use_dora": 1}, "adapter.use_dora: input should be a valid boolean, found 1"),
    ],
)
def test_bad_keys_are_one_line(table: dict[str, Any], line: str) -> None:
    with pytest.raises(DudiError) as error:
        parse_recipe({**recipes.good(), "adapter": table}, "test")
    assert line in recipes.the_line(error)
