"""Scoring of given answers: right ones, wrong ones, missing ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.evals import item, rows, write

from dudi.evals.aggregate import aggregate
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import read_benchmark
from dudi.evals.cells import task_scores
from dudi.evals.language import identify
from dudi.records import GradedAnswer

PERFECT = {
    "m1": "A.", "m2": "(B)", "m3": "ดี", "m4": "ไม่ดี", "c1": "kota Paris", "c2": "กรุงเทพ", "c3": "paris",
    "t1": "the cat eats fish", "t2": "a house", "t3": "house", "l1": "kucing,ayam", "l2": "Cat.",
}  # fmt: skip
WORDS = {"en": "the cat\ncat\neats\nfish\na house\nhouse\nparis", "id": "kota\nparis\nkucing\nayam", "th": "ดี\nไม่ดี"}


def scored(folder: Path, answers: dict[str, str | Answer]) -> list[GradedAnswer]:
    b = read_benchmark(folder)
    given = [answers.get(i.id, PERFECT[i.id]) for i in b.items]
    return [
        grade(i, a if isinstance(a, Answer) else Answer(a, 3, True), b) for i, a in zip(b.items, given, strict=True)
    ]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write(tmp_path / "words", words=WORDS)


def test_right_answers_score_100(words: Path) -> None:
    b = read_benchmark(words)
    found = task_scores(scored(words, {}), b, "m", 0)
    assert [s.score for s in found] == pytest.approx([100] * len(found))
    assert len(found) == len(b.cells) and {(s.stopped, s.tokens) for s in found} == {(1, 3)}
    assert aggregate(found, b).overall.mean == pytest.approx(100)
    mood = next(s for s in found if (s.task, s.language) == ("mood", "id"))
    assert (mood.in_language, mood.undetermined) == (None, 2)  # A and B are in no language
    translated = next(s for s in found if (s.task, s.language) == ("to_english", "id"))
    assert (translated.in_language, translated.undetermined) == (1, 0)  # in English, as asked


def test_wrong_answers(words: Path) -> None:
    b = read_benchmark(words)
    wrong = {"m1": "B", "m4": "?", "c1": "42", "t1": "ikan", "t2": "", "l1": "kucing, kucing", "l2": "แมว"}
    found = {(s.task, s.language): s for s in task_scores(scored(words, wrong), b, "m", 0)}
    assert (found["mood", "id"].raw, found["mood", "id"].score) == (50, 0)  # always B: chance
    assert (found["mood", "th"].raw, found["mood", "th"].score) == (50, 0)
    assert found["capital", "id"].score == 0 and found["capital", "id"].undetermined == 1
    assert found["list", "id"].score == found["list", "th"].score == 0
    assert found["list", "th"].in_language == 0
    assert 0 <= (found["to_english", "id"].score or 0) < 20


def test_a_constraint_on_the_language(words: Path) -> None:
    items = [*rows()[:-1], item("l2", "list", "th", "?", constraints={}, response_language="en")]
    folder = write(words, items=items, words=WORDS)
    for text, value in (("the cat", 1), ("kucing", 0), ("แมว", 0), ("paris", 1), ("7", 0)):
        assert scored(folder, {"l2": text})[-1].value == value
    assert identify("paris", ["en", "id"], read_benchmark(folder).words) == {"en", "id"}


def test_the_translation_score_is_of_the_corpus_and_the_items_of_sentences(words: Path) -> None:
    found = scored(words, {"t1": "the cat", "t2": "a house"})
    cell = task_scores(found, read_benchmark(words), "m", 0)
    values = [row.value for row in found if row.task == "to_english" and row.language == "id"]
    score = next(s for s in cell if (s.task, s.language) == ("to_english", "id"))
    assert values[1] == pytest.approx(1) and score.raw != pytest.approx(50 * (values[0] + values[1]))


def test_the_key_of_an_item_goes_with_its_answer(tmp_path: Path) -> None:
    keyed = [{**row, "key": "france"} if row["id"] in ("c1", "c3") else row for row in rows()]
    found = {one.id: one for one in scored(write(tmp_path, items=keyed), {})}
    assert [found[name].as_dict().get("key") for name in ("c1", "c2", "c3")] == ["france", None, "france"]
    assert "key" not in found["c2"].as_dict()


def test_an_item_without_an_answer_makes_its_task_missing(words: Path) -> None:
    b = read_benchmark(words)
    found = task_scores(scored(words, {"c2": Answer("", 0, False, "the template refuses")}), b, "m", 0)
    missing = next(s for s in found if s.score is None)
    assert (missing.task, missing.language, missing.raw, missing.n) == ("capital", "th", None, 1)
    assert missing.error == "1 of 1 items could not be asked: the template refuses"
    assert aggregate(found, b).overall.mean is None
