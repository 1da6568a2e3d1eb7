"""Several sources: each row as often as its source's weight says, always the same rows, none twice by accident."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kit.data import made_rows, turns, write_jsonl, write_parquet
from pydantic import ValidationError
from typer.testing import CliRunner

from dudi.data.cli import app
from dudi.data.load import check, load_rows, read_rows, write_rows
from dudi.data.mixture import copies
from dudi.data.settings import check_settings
from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.recipe.read import dump_recipe, load_recipe, parse_recipe
from dudi.recipe.schema import Data


def chat(name: str, numbers: Sequence[int], language: str = "id") -> list[dict[str, Any]]:
    return [{"language": language, "messages": turns(f"{name} {language} {k}", "a")} for k in numbers]


def data(folder: Path, *sources: dict[str, Any], **more: Any) -> Data:
    """Sources by file name in a folder."""
    filled = tuple({**one, "source": str(folder / one["source"])} for one in sources)
    return Data.model_validate({"sources": filled, **more})


def asked(examples: Sequence[Example]) -> Counter[str]:
    return Counter(example.x[-1].content for example in examples)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sources, in three formats: 20 and 10 rows in id and th, 8 in id, 40 of SEA-Instruct (10 in each of two)."""
    write_jsonl(tmp_path / "a.jsonl", [*chat("a", range(20)), *chat("a", range(10), "th")])
    write_jsonl(tmp_path / "b.jsonl", [{"tanya": f"b {k}", "jawab": "b"} for k in range(8)])
    write_parquet(tmp_path / "sea/Indonesian.parquet", made_rows(12))
    return tmp_path


B = {"source": "b.jsonl", "format": "alpaca", "columns": {"instruction": "tanya", "output": "jawab"}, "language": "id"}


# ── how often ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("weight", "wanted"), [(1.0, (20, 10)), (2.0, (40, 20)), (0.5, (10, 5)), (1.25, (25, 13)), (0.04, (1, 0))]
)
def test_a_source_has_its_weight_in_every_language(folder: Path, weight: float, wanted: tuple[int, int]) -> None:
    write_jsonl(folder / "c.jsonl", chat("c", range(3), "th"))
    loaded = load_rows(data(folder, {"source": "a.jsonl", "weight": weight}, {"source": "c.jsonl"}), 0)
    counts = asked(loaded.train)
    of_a = {l: [n for text, n in counts.items() if text.startswith(f"a {l}")] for l in ("id", "th")}
    assert tuple(sum(n) for n in of_a.values()) == wanted
    assert {n for each in of_a.values() for n in each} <= {max(int(weight), 1), int(weight) + 1}
    assert sum(n for text, n in counts.items() if text.startswith("c ")) == 3
    languages = [example.l for example in loaded.train]
    assert languages == sorted(languages), "ordered by language"
    for language, count in loaded.report.languages.items():
        assert count.balanced, language


def test_which_rows_is_drawn_by_seed_and_content_alone(folder: Path) -> None:
    half = {"source": "a.jsonl", "weight": 0.5}
    first = load_rows(data(folder, half, B), 0)
    assert load_rows(data(folder, half, B), 0).train == first.train
    reordered = data(folder, B, half, languages=("id", "th"))
    assert asked(load_rows(reordered, 0).train) == asked(first.train)
    assert asked(load_rows(data(folder, half, B), 1).train) != asked(first.train)
    rows = [Example((Message("user", str(k)),), "y", "id", "") for k in range(400)]
    more = copies(rows, 0.3, 0)
    less = copies(rows, 0.1, 0)
    assert (sum(more), sum(less)) == (120, 40) and all(m >= l for m, l in zip(more, less, strict=True))
    assert copies(rows, 2.1, 0) == [n + 2 for n in less]


def test_sources_of_weight_1_are_the_files_one_after_the_other(folder: Path) -> None:
    """As if one file held them all, in the order of the languages; and one source in a list is that source."""
    write_jsonl(folder / "c.jsonl", chat("c", range(5)))
    both = (folder / "a.jsonl").read_text(), (folder / "c.jsonl").read_text()
    (folder / "both.jsonl").write_text("".join(both))
    mixed = load_rows(data(folder, {"source": "a.jsonl"}, {"source": "c.jsonl"}), 0)
    assert asked(mixed.train) == asked(load_rows(Data(source=str(folder / "both.jsonl")), 0).train)
    alone, listed = (
        load_rows(Data(source=str(folder / "a.jsonl")), 0),
        load_rows(data(folder, {"source": "a.jsonl"}), 0),
    )
    assert listed.train == alone.train and listed.report.languages == alone.report.languages
    assert "sources" not in alone.manifest and "sources" not in alone.report.as_json()


# ── kinds, languages, duplicates ─────────────────────────────────────────────────────────────────────────────────────
def test_each_source_is_read_in_its_own_way(folder: Path) -> None:
    sea = {"source": "sea", "format": "sea_instruct", "weight": 2.0}
    loaded = load_rows(data(folder, {"source": "a.jsonl"}, B, sea, languages=("th", "id")), 0)
    counts = asked(loaded.train)
    assert sum(n for text, n in counts.items() if text.startswith("question")) == 24 and counts["b 7"] == 1
    assert [e.l for e in loaded.train] == ["th"] * 10 + ["id"] * (20 + 8 + 24)
    assert [one.train for one in loaded.report.sources] == [{"id": 20, "th": 10}, {"id": 8}, {"id": 24}]
    assert loaded.report.languages["id"].kept == 40 and loaded.report.languages["id"].read == 40
    with pytest.raises(DudiError, match=r"^data.sources: no row in my; its languages: id, th$"):
        load_rows(data(folder, {"source": "a.jsonl"}, sea, languages=("id", "th", "my")), 0)


def test_a_default_of_data_holds_for_sources_without_their_own(folder: Path) -> None:
    write_jsonl(folder / "c.jsonl", [{"tanya": "c", "jawab": "c"}])
    columns = {"instruction": "tanya", "output": "jawab"}
    both = data(folder, {"source": "b.jsonl"}, {"source": "c.jsonl", "language": "ms"}, language="th", columns=columns)
    assert Counter(example.l for example in load_rows(both, 0).train) == {"th": 8, "ms": 1}


def test_rows_asked_for_are_counted_in_each_source(folder: Path) -> None:
    recipe = data(folder, {"source": "a.jsonl", "weight": 2.0}, B, rows_per_language=9, eval_rows_per_language=1)
    loaded = load_rows(recipe, 0)
    assert [(one.train, one.eval) for one in loaded.report.sources] == [({"id": 18, "th": 18}, 2), ({"id": 7}, 1)]
    assert loaded.report.notes == [f"{folder / 'b.jsonl'}: id: 9 training rows asked for, 7 there"]


@pytest.mark.parametrize("sea_first", [True, False])
def test_a_row_in_two_sources_is_one(folder: Path, sea_first: bool) -> None:
    """The first source has it; so a row that is held out is in no other source's training rows either."""
    write_jsonl(
        folder / "c.jsonl",
        [{"language": "id", "messages": turns(f"question {k}", f"answer {k}")} for k in range(6, 20)],
    )
    sources = [{"source": "sea", "format": "sea_instruct"}, {"source": "c.jsonl", "weight": 3.0}]
    sources = sources if sea_first else sources[::-1]
    loaded = load_rows(data(folder, *sources, eval_rows_per_language=2), 0)
    counts = loaded.report.languages["id"]
    assert counts.duplicated == 6 and counts.read == 26 and counts.balanced
    assert len(loaded.eval) == 4 and not asked(loaded.eval).keys() & asked(loaded.train).keys()
    assert len(asked(loaded.train)) == counts.kept == 16
    assert check(data(folder, *sources)).languages["id"].duplicated == 6


def test_evaluation_rows_are_taken_out_of_every_source(folder: Path) -> None:
    write_jsonl(
        folder / "held.jsonl", [*chat("a", (3, 4)), {"language": "id", "messages": turns("question 5", "answer 5")}]
    )
    sea = {"source": "sea", "format": "sea_instruct"}
    held = str(folder / "held.jsonl")
    loaded = load_rows(data(folder, {"source": "a.jsonl", "weight": 2.0}, sea, eval_source=held), 0)
    assert len(loaded.eval) == 3 and not asked(loaded.eval).keys() & asked(loaded.train).keys()
    assert loaded.manifest["eval_source"] == held


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_report_and_manifest_say_rows_by_source(folder: Path) -> None:
    recipe = data(folder, {"source": "a.jsonl", "weight": 1.5}, B, eval_rows_per_language=2)
    loaded = load_rows(recipe, 0)
    a, b = (str(folder / name) for name in ("a.jsonl", "b.jsonl"))
    lines = [
        f"{a}: 30 rows read, weight 1.5: 39 training rows an epoch (id 27, th 12), 4 set aside for evaluation",
        f"{b}: 8 rows read, weight 1: 6 training rows an epoch (id 6), 2 set aside for evaluation",
    ]
    assert loaded.report.details()[:2] == lines
    assert loaded.manifest["source"] is None
    found = [(one["source"], one["weight"], one["rows"]) for one in loaded.manifest["sources"]]
    assert found == [
        (a, 1.5, {"train": 39, "distinct": 26, "eval": 4}),
        (b, 1.0, {"train": 6, "distinct": 6, "eval": 2}),
    ]
    assert loaded.manifest["rows"] == {"train": 45, "eval": 6}
    write_rows(loaded, folder / "kept")
    again = read_rows(folder / "kept")
    assert again.train == loaded.train and again.report.sources == loaded.report.sources


def test_data_check_takes_several(folder: Path) -> None:
    write_jsonl(folder / "c.jsonl", [*chat("a", (1, 2)), *chat("c", (1,))])
    result = CliRunner().invoke(
        app, ["check", str(folder / "a.jsonl"), str(folder / "c.jsonl")], env={"COLUMNS": "200"}
    )
    assert result.exception is None, result.exception
    assert f"{folder / 'a.jsonl'}: 30 rows read, 30 that could be trained on" in result.output
    assert f"{folder / 'c.jsonl'}: 3 rows read, 1 that could be trained on" in result.output
    one = CliRunner().invoke(app, ["check", str(folder / "a.jsonl")])
    assert "could be trained on" not in one.output


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────
TABLE = {"name": "r", "method": {"name": "sft"}, "models": {"student": "s"}}


def test_a_recipe_with_sources_is_kept_whole(tmp_path: Path) -> None:
    text = """
    name = "r"
    method.name = "sft"
    models.student = "s"
    [[data.sources]]
    source = "a.jsonl"
    weight = 2
    columns = {prompt = "tanya", "completion" = "ja wab"}
    [[data.sources]]
    source = "owner/name"
    revision = "v1"
    """
    (tmp_path / "r.toml").write_text(text)
    made = load_recipe(tmp_path / "r.toml")
    assert [(one.source, one.weight) for one in made.data.sources] == [("a.jsonl", 2.0), ("owner/name", 1.0)]
    (tmp_path / "again.toml").write_text(dump_recipe(made))
    assert load_recipe(tmp_path / "again.toml") == made
    (tmp_path / "one.toml").write_text('extends = "r.toml"\n[data]\nsource = "b.jsonl"\n')
    one = load_recipe(tmp_path / "one.toml").data
    assert (one.source, one.sources) == ("b.jsonl", ())
    (tmp_path / "two.toml").write_text('extends = "one.toml"\n[[data.sources]]\nsource = "c.jsonl"\n')
    two = load_recipe(tmp_path / "two.toml").data
    assert two.source is None and [source.source for source in two.sources] == ["c.jsonl"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "data.source: missing; it has no default, unless there are [[data.sources]]"),
        ({"sources": []}, "data.source: missing"),
        ({"source": "a", "sources": [{"source": "b"}]}, "data.source: give it, or [[data.sources]], not both"),
        ({"revision": "v", "sources": [{"source": "b"}]}, "data.revision: with [[data.sources]], give each its own"),
        ({"sources": [{"source": "b", "weight": 0}]}, "data.sources.0.weight: "),
        ({"sources": [{"source": "b"}, {"weight": 1}]}, "data.sources.1.source: missing; it has no default"),
        ({"sources": [{"source": "b", "wieght": 2}]}, "did you mean 'weight'"),
        ({"sources": [{"source": "b", "language": "Klingon"}]}, "data.sources.0.language: "),
        ({"sources": {"source": "b"}}, "data.sources: expected an array"),
    ],
    ids=str,
)
def test_what_is_no_table_of_sources(table: dict[str, Any], said: str) -> None:
    with pytest.raises(DudiError) as error:
        parse_recipe(TABLE | {"data": table}, "here")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_faults_of_a_source_name_it(folder: Path) -> None:
    for check_it in (check_settings, lambda data: load_rows(data, 0)):
        with pytest.raises(DudiError, match=r"^data.sources.1.source: no file or folder '.*nowhere.jsonl'"):
            check_it(data(folder, {"source": "a.jsonl"}, {"source": "nowhere.jsonl"}))
        with pytest.raises(DudiError, match=r"^data.format: expected one of .*found 'alpacca'"):
            check_it(data(folder, {"source": "a.jsonl"}, {"source": "b.jsonl", "format": "alpacca"}))
    write_jsonl(folder / "broken.jsonl", [*chat("d", range(2)), {"language": "id", "messages": []}])
    with pytest.raises(DudiError, match=r"broken.jsonl: line 3: "):
        load_rows(data(folder, {"source": "a.jsonl"}, {"source": "broken.jsonl"}), 0)
    with pytest.raises(DudiError, match=r"no row of 'id' is left to train on: 8 read, 8 left out by the weight"):
        load_rows(data(folder, {**B, "weight": 0.01}), 0)
    with pytest.raises(ValidationError, match="weight"):
        data(folder, {"source": "a.jsonl", "weight": float("inf")})
