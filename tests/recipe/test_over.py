"""A recipe laid over another: later than all that it extends, earlier than --set."""

from __future__ import annotations

from pathlib import Path

import pytest

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe


def test_a_second_recipe_is_laid_over_the_first(tmp_path: Path) -> None:
    over = tmp_path / "over.toml"
    over.write_text('[training]\nlr = 1e-3\nbatch = 4\n[models]\nstudent = "mine"\n', encoding="utf-8")
    plain, found = load_recipe("qwen2.5-0.5b/gkd"), load_recipe("qwen2.5-0.5b/gkd", ["training.batch=2"], [over])
    assert (found.training.lr, found.training.batch, found.models.student) == (1e-3, 2, "mine")
    assert found.training.epochs == plain.training.epochs and found.models.teacher == plain.models.teacher
    assert (found.name, found.method, found.paper) == (plain.name, plain.method, plain.paper)
    with pytest.raises(DudiError, match="no recipe 'nowhere'"):
        load_recipe("qwen2.5-0.5b/gkd", (), ["nowhere"])
