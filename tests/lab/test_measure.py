"""`dudi lab measure`: what is asked of a model, and what is counted of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.lab import lab_student
from typer.testing import CliRunner

from dudi.cli import app
from dudi.files import read_lines
from dudi.lab.measure import Asked, items_of, read_by_student, read_by_teacher, rollouts
from dudi.lab.rows import TRAINED, answer
from dudi.lab.tasks import TASKS, split
from dudi.lab.words import load
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
    for asked, item in zip(rows, read_by_teacher(rows, verbalizer, Mode.NONE), strict=True):
        assert text(item) == asked.row.x[-1].content and item["language"] == asked.row.l
        assert asked.row.y in item["targets"]
    for asked, item in zip(rows, read_by_teacher(rows, verbalizer, Mode.CROSSLINGUAL), strict=True):
        assert asked.row.x[-1].content in text(item) and asked.row.y in text(item)
        assert item["language"] == asked.row.l


def test_a_student_is_asked_for_l_z_without_a_demonstration(rows: list[Asked]) -> None:
    items = read_by_student(rows, Verbalizer(TRAINED))
    assert {item["response_language"] for item in items} == {"en", *TRAINED}
    z = read_by_teacher(rows, Verbalizer(TRAINED), Mode.CROSSLINGUAL)
    for asked, item, shown in zip(rows, items, z, strict=True):
        x = asked.row.x[-1].content
        assert x in text(item) and text(item) != x and len(text(item)) < len(text(shown))
        assert item["language"] == asked.row.l and item["response_language"] == shown["response_language"]
        assert answer(asked.task, asked.key, asked.row.l, item["response_language"]) in item["targets"]


def test_the_share_of_rollouts_in_l_z_is_counted_over_answers(rows: list[Asked], tmp_path: Path) -> None:
    found = rollouts(lab_student(tmp_path / "model"), tmp_path, rows, Verbalizer(TRAINED))
    answers = read_lines(tmp_path / "eval-p_z" / "responses-0.jsonl")
    told = [one["in_language"] for one in answers if one["in_language"] is not None]
    assert len(answers) == len(rows) and found["all"] == sum(told) / len(told)
    assert 0 < found["all"] < 1
    assert set(found["in_language"]) == {"en", *TRAINED} and len(set(found["in_language"].values())) > 2


def test_items_are_held_out_or_as_the_instruction_data_asks_them() -> None:
    held, trained = list(items_of("test", 2)), list(items_of("train", 2))
    for rows, part in ((held, "test"), (trained, "train")):
        assert {split(one.task, one.key, one.row.l) for one in rows} == {part}
        for one in rows:
            ways = TASKS[one.task].ask(load(one.row.l), one.key)
            assert one.row.x[-1].content in (ways.test if part == "test" else ways.train)


@pytest.mark.slow
def test_the_command_prints_its_json_alone(tmp_path: Path) -> None:
    """What is said of the single evaluations goes to the other stream: `dudi lab measure ... > found.json`."""
    asked = ["lab", "measure", lab_student(tmp_path / "model"), "--output", str(tmp_path / "out"), "--each", "2"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "measure.json").read_text())
    assert "greedy" in done.stderr
