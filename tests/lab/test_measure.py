"""`dudi lab measure`: what is asked of a model, and what is counted of its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.lab import lab_student
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.files import read_lines, write_text
from dudi.lab import measure as of_measure
from dudi.lab.build import WEIGHTS, export
from dudi.lab.measure import Asked, items_of, measure, read_by, rollouts
from dudi.lab.rows import TRAINED, answer
from dudi.lab.tasks import TASKS, split
from dudi.lab.words import load
from dudi.recipe.read import load_recipe
from dudi.signals import Mode
from dudi.text.verbalizer import Verbalizer


@pytest.fixture(scope="module")
def rows() -> list[Asked]:
    return list(items_of("test", 2))


def text(item: dict[str, list[dict[str, str]]]) -> str:
    (message,) = item["messages"]
    return message["content"]


def test_a_teacher_reads_x_or_a_demonstration_of_y(rows: list[Asked]) -> None:
    verbalizer = Verbalizer(TRAINED)
    for asked, item in zip(rows, read_by("teacher", rows, verbalizer, Mode.NONE), strict=True):
        assert text(item) == asked.row.x[-1].content and item["language"] == asked.row.l
        assert asked.row.y in item["targets"]
    for asked, item in zip(rows, read_by("teacher", rows, verbalizer, Mode.CROSSLINGUAL), strict=True):
        assert asked.row.x[-1].content in text(item) and asked.row.y in text(item)
        assert item["language"] == asked.row.l


def test_a_student_is_asked_for_l_z_without_a_demonstration(rows: list[Asked]) -> None:
    items = read_by("student", rows, Verbalizer(TRAINED), Mode.CROSSLINGUAL)
    assert {item["response_language"] for item in items} == {"en", *TRAINED}
    z = read_by("teacher", rows, Verbalizer(TRAINED), Mode.CROSSLINGUAL)
    for asked, item, shown in zip(rows, items, z, strict=True):
        x = asked.row.x[-1].content
        assert x in text(item) and text(item) != x and len(text(item)) < len(text(shown))
        assert item["language"] == asked.row.l and item["response_language"] == shown["response_language"]
        assert answer(asked.task, asked.key, asked.row.l, item["response_language"]) in item["targets"]


def test_the_share_of_rollouts_in_l_z_is_counted_over_answers(
    rows: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By l_z, whatever the row's language; answers whose language cannot be told do not count."""
    asked = {
        item["id"]: item["response_language"]
        for item in read_by("student", rows, Verbalizer(TRAINED), Mode.CROSSLINGUAL)
    }
    verdicts: dict[str, list[bool | None]] = {"th": [True, True, False], "my": [None], "en": [False, None, True, True]}
    given = {id: verdicts[l].pop() for id, l in asked.items() if verdicts.get(l)}
    settings: dict[str, Any] = {}

    def evaluate(model: str, benchmark: Path, output: Path, **more: Any) -> None:
        settings.update(more)
        lines = [json.dumps({"id": id, "in_language": given.get(id)}) for id in asked]
        write_text(output / "responses-0.jsonl", "\n".join(lines) + "\n")

    monkeypatch.setattr(of_measure, "evaluate", evaluate)
    found = rollouts("model", tmp_path, rows, Verbalizer(TRAINED))
    assert found["in_language"]["th"] == 2 / 3 and found["in_language"]["en"] == 2 / 3 and found["all"] == 4 / 6
    assert found["told"] == {l: {"th": 3, "en": 3}.get(l, 0) for l in found["told"]}
    assert found["in_language"]["my"] is None and set(found["told"]) == {"en", *TRAINED}
    assert settings["temperature"] == load_recipe("lab/dudi").rollouts.temperature


def test_items_are_held_out_or_as_the_instruction_data_asks_them() -> None:
    held, trained = list(items_of("test", 2)), list(items_of("train", 2))
    for rows, part in ((held, "test"), (trained, "train")):
        assert {split(one.task, one.key, one.row.l) for one in rows} == {part}
        for one in rows:
            ways = TASKS[one.task].ask(load(one.row.l), one.key)
            assert one.row.x[-1].content in (ways.test if part == "test" else ways.train)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """Of the items that it was taught; its JSON alone on standard output, what is said of the single evaluations on
    the other: `dudi lab measure ... > found.json`. Another model's measurement is not replaced."""
    exported, out = tmp_path / "lab", tmp_path / "out"
    export(exported, WEIGHTS, share=0.01)
    asked = ["lab", "measure", str(exported / "teacher"), "--output", str(out), "--each", "2", "--trained"]
    for _ in range(2):
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((out / "measure.json").read_text()) and "greedy" in done.stderr
    assert found["part"] == "train" and found["items"] == len(list(items_of("train", 2)))
    prompts = {one.row.x[-1].content for one in items_of("train", 2)}
    assert {text(item) for item in read_lines(out / "none" / "items" / "items.jsonl")} == prompts
    assert found["demonstration"]["after_z"] > found["demonstration"]["after_p_z"]
    assert found["modes"]["english"]["overall"] > found["modes"]["none"]["overall"] > 30
    with pytest.raises(DudiError, match=r"measure\.json: a measurement of .*teacher; give another --output"):
        measure(str(exported / "student-small"), out, 2)
    assert found == json.loads((out / "measure.json").read_text())


@pytest.mark.parametrize("where", ["file", "file/x"])
def test_an_output_that_cannot_be_written_is_one_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DudiError, match=r"it is a file|Not a directory"):
        measure(lab_student(tmp_path / "model"), tmp_path / where, 2)


def test_a_model_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match="nowhere"):
        measure(str(tmp_path / "nowhere"), tmp_path / "out", 1000)
    assert not (tmp_path / "out").exists()
