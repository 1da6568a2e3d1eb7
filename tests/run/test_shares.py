"""`training.equalize` and the rows, before a run: what comes of it is said, and what it cannot mean is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit import runs

from dudi.errors import DudiError
from dudi.recipe.read import dump_recipe, load_recipe, parse_recipe
from dudi.recipe.schema import Recipe
from dudi.run.prepare import prepare


def recipe(folder: Path, equalize: Any, languages: tuple[str, ...] = ("id", "th"), **training: Any) -> Recipe:
    given = {"equalize": equalize, **training}
    return runs.recipe(folder, {"name": "gkd"}, number=21, data={"languages": languages}, training=given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shares")


def said(made: Recipe) -> list[str]:
    return [line for line in prepare(made).said if "equalize" in line]


def test_the_shares_are_said_beside_those_of_the_tokens(folder: Path) -> None:
    made = prepare(recipe(folder, {"id": 3, "th": 1}))
    tokens = {l: sum(len(row.y) for row in made.train.rows if row.example.l == l) for l in ("id", "th")}
    of_id, of_th = (f"{tokens[l] / sum(tokens.values()):.1%}" for l in ("id", "th"))
    line = (
        f"training.equalize: shares of each step's loss: id 75.0% (of the tokens of y: {of_id}),"
        f" th 25.0% (of the tokens of y: {of_th})"
    )
    assert [one for one in made.said if "equalize" in one] == [line], "once, though two stages have it"
    cold = recipe(folder, "none").model_dump(mode="json", exclude_none=True)
    cold["cold_start"]["training"]["equalize"] = {"id": 3, "th": 1}
    assert said(parse_recipe(cold, "test")) == [f"cold_start.{line}"]
    assert said(recipe(folder, "none")) == []
    assert said(recipe(folder, "tokens", ("id",))) == ["training.equalize changes nothing: every training row is in id"]


def test_steps_without_a_language_are_counted_beforehand(folder: Path) -> None:
    """Four rows of id and three of th: one a step, and in pairs."""
    end = ": the other languages share those; a larger training.batch makes fewer steps"
    assert said(recipe(folder, "tokens", batch=1))[1:] == [
        f"training.equalize: 3 of 7 steps an epoch have no row in id, which has 4{end}",
        f"training.equalize: 4 of 7 steps an epoch have no row in th, which has 3{end}",
    ]
    assert len(said(recipe(folder, "tokens", batch=2))) == 1


@pytest.mark.parametrize(
    ("equalize", "message"),
    [
        ({"id": 1.0}, "training.equalize: no share for th; give one to each language trained on (id, th)"),
        (
            {"id": 1.0, "th": 1.0, "my": 2.0},
            "training.equalize: a share for my, which is not trained on (trained on: id, th)",
        ),
    ],
)
def test_a_table_of_other_languages_is_refused(folder: Path, equalize: Any, message: str) -> None:
    with pytest.raises(DudiError) as error:
        prepare(recipe(folder, equalize))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("equalize", "message"),
    [
        ("rows", 'expected "none", "tokens", or a table of shares above 0 by language such as {id = 2, my = 1}'),
        ({"id": 0.0, "th": 1.0}, "a table of shares above 0 by language"),
        ({"id": float("inf")}, "a table of shares above 0 by language"),
        ({"id": True}, "a table of shares above 0 by language"),
        ({}, "expected a share for each language, found none"),
        ({"Thai": 1.0}, "use the language code 'th' instead of 'Thai'"),
        ({"xx-nowhere": 1.0}, "training.equalize: "),
    ],
)
def test_what_is_no_table_of_shares_is_refused(folder: Path, equalize: Any, message: str) -> None:
    with pytest.raises(DudiError) as error:
        recipe(folder, equalize)
    assert str(error.value).startswith("test: training.equalize: ") and message in str(error.value)
    assert "\n" not in str(error.value) and "more fault" not in str(error.value)


def test_a_table_is_kept_with_the_run(folder: Path) -> None:
    made = recipe(folder, {"id": 2, "th": 0.5})
    (folder / "kept.toml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(folder / "kept.toml") == made
    table = made.model_dump(mode="json", exclude_none=True)
    table["cold_start"]["training"] = {"equalize": "tokens"}
    other = parse_recipe(table, "test")
    assert other.cold_start.training.equalize == "tokens" and other.training.equalize == {"id": 2.0, "th": 0.5}
