"""Data and benchmark of the lab, read and scored by the code that reads everybody's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kit.lab import EIGHT, Asked, record

from dudi.data.load import load_rows
from dudi.evals.aggregate import aggregate
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import Benchmark, read_benchmark
from dudi.evals.cells import task_scores
from dudi.evals.language import identify
from dudi.lab.artefacts import vocabulary, write_benchmark
from dudi.lab.build import ROWS
from dudi.lab.rows import TRAINED, answer, instruction_rows
from dudi.lab.sentences import state
from dudi.lab.tasks import TASKS
from dudi.lab.truth import FACTS
from dudi.lab.words import load
from dudi.languages import ENGLISH, LANGUAGES
from dudi.recipe.schema import Data
from dudi.records import Item

# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_loader_keeps_every_row(data: Path) -> None:
    read = load_rows(Data(source=str(data), format="sea_instruct"), 0)
    assert len(read.train) == ROWS * len(TRAINED) and read.report.notes == []
    for l in TRAINED:
        counts = read.report.languages[l]
        assert (counts.kept, counts.read) == (ROWS, ROWS), l
    written = {(e.x, e.y, e.l) for l in TRAINED for _, e in instruction_rows(l, "train", ROWS, 0)}
    assert {(e.x, e.y, e.l) for e in read.train} == written


def test_the_quality_filter_keeps_every_row(data: Path) -> None:
    for wanted in (True, False):
        assert len(
            load_rows(Data(source=str(data), format="sea_instruct", quality_filter=wanted), 0).train
        ) == ROWS * len(TRAINED)


def test_evaluation_rows_are_drawn_from_the_lab_as_from_any_data(data: Path) -> None:
    rows = load_rows(Data(source=str(data), format="sea_instruct", languages=TRAINED, eval_rows_per_language=10), 0)
    assert (len(rows.train), len(rows.eval)) == ((ROWS - 10) * len(TRAINED), 10 * len(TRAINED))


def test_there_is_a_file_a_language_in_no_order_of_tasks(data: Path) -> None:
    assert sorted(f.name for f in data.iterdir()) == sorted(f"{LANGUAGES[l].name}.parquet" for l in TRAINED)
    tasks = pq.read_table(data / "Thai.parquet")["prompt_primary_task"].to_pylist()
    assert tasks != sorted(tasks) and len(set(tasks[:40])) > 8
    ids = pq.read_table(data / "Thai.parquet")["conversations_id"].to_pylist()
    assert len(set(ids)) == ROWS


# ── benchmark ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def bench(benchmark: Path) -> Benchmark:
    return read_benchmark(benchmark)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Asked]:
    """(task, language, prompt) -> what was asked."""
    with pytest.MonkeyPatch.context() as patch:
        asked = record(patch)
        write_benchmark(tmp_path_factory.mktemp("again"))
    return {(a.task, a.l, text): a for a in asked for text in (*a.phrasings.train, *a.phrasings.test)}


def scores(bench: Benchmark, respond: Callable[[Item], str]) -> dict[tuple[str, str], float]:
    """(task, language) -> score."""
    rows = [grade(item, Answer(respond(item), 5, True), bench) for item in bench.items]
    return {(s.task, s.language): s.score for s in task_scores(rows, bench, "m", 0) if s.score is not None}


def test_every_task_has_items_in_every_language(bench: Benchmark) -> None:
    assert set(bench.cells) == {(task, l) for task in TASKS for l in EIGHT}
    for (task, l), items in bench.cells.items():
        assert len(items) >= 4, (task, l)
        assert len({item.messages for item in items}) == len(items), (task, l)
        if task == "grammar":  # two sentences of its own in each item, the right one now first, now second
            assert {(item.choices or ()).index(item.targets[0]) for item in items} == {0, 1}, l
        elif TASKS[task].choices:
            assert {item.targets[0] for item in items} == set(items[0].choices or ()), (task, l)
    assert bench.languages[: len(TRAINED)] == TRAINED and bench.description.translation == ("nlg",)


@pytest.mark.parametrize(("seed", "share"), [(0, 0.1), pytest.param(1, 0.1, marks=pytest.mark.slow)])
def test_a_share_of_the_benchmark_is_a_benchmark(tmp_path: Path, seed: int, share: float, bench: Benchmark) -> None:
    write_benchmark(tmp_path, seed, share)
    small = read_benchmark(tmp_path)
    assert set(small.cells) == set(bench.cells) and len(small.items) < 0.4 * len(bench.items)
    assert min(map(len, small.cells.values())) >= 4
    if seed == 0:
        assert all(items == bench.cells[cell][: len(items)] for cell, items in small.cells.items())


def test_the_first_target_of_every_item_scores_100(bench: Benchmark) -> None:
    rows = [grade(item, Answer(item.targets[0], 5, True), bench) for item in bench.items]
    assert [row.id for row in rows if row.value is None or row.value < 1 - 1e-9] == []
    assert [row.id for row in rows if row.in_language is False] == []
    found = task_scores(rows, bench, "m", 0)
    assert [(s.task, s.language, s.score) for s in found if s.score != pytest.approx(100)] == []
    assert aggregate(found, bench).overall.mean == pytest.approx(100)


def test_every_target_counts(bench: Benchmark) -> None:
    for item in bench.items[::5]:
        for target in item.targets:
            assert grade(item, Answer(target, 5, True), bench).value == pytest.approx(1), (item.id, target)


def test_targets_are_in_the_language_that_is_asked_for(bench: Benchmark) -> None:
    """In the way that the evaluation tells languages: by the benchmark's own word lists."""
    told = 0
    for item in bench.items:
        found = identify(item.targets[0], bench.candidates, bench.words)
        assert not found or item.asked in found, (item.id, item.targets[0], found)
        told += bool(found)
    assert told > 0.85 * len(bench.items)


def test_an_answer_in_another_language_is_none(bench: Benchmark, keys: dict[tuple[str, str, str], Asked]) -> None:
    """Said in another script, for names are the same in many languages. Of two sentences, either is of the language."""

    def elsewhere(item: Item) -> str:
        if item.task == "grammar":
            return item.targets[0]
        asked = keys[item.task, item.language, item.messages[-1].content]
        other = "th" if LANGUAGES[item.asked].script == "Latin" else ENGLISH
        return answer(item.task, asked.key, item.language, other)

    for (task, l), score in scores(bench, elsewhere).items():
        if task != "grammar":
            assert score < 15, (task, l)
        if TASKS[task].metric in ("exact", "exact_among", "constraints"):
            assert score == 0, (task, l)


def test_an_answer_in_the_language_of_the_question_is_wrong_where_another_is_asked_for(
    bench: Benchmark, keys: dict[tuple[str, str, str], Asked]
) -> None:
    """Statements may read alike in Indonesian and Malay only."""
    for item in bench.items:
        if item.task == "answer-in":
            asked = keys[item.task, item.language, item.messages[-1].content]
            said = state(load(item.language), asked.key[1], asked.key[2:])
            value = grade(item, Answer(said, 5, True), bench).value
            assert value == 0 or {item.language, item.asked} <= {"id", "ms", "en"}, item.id


def test_the_other_label_is_wrong(bench: Benchmark) -> None:
    def other(item: Item) -> str:
        return next(c for c in item.choices if c != item.targets[0]) if item.choices else item.targets[0]

    found = scores(bench, other)
    for (task, l), score in found.items():
        assert score == pytest.approx(0 if TASKS[task].choices or TASKS[task].among else 100), (task, l)


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.choices])
def test_always_the_same_label_is_chance(bench: Benchmark, task: str) -> None:
    for l in EIGHT:
        items = bench.cells[task, l]
        rows = [grade(item, Answer((item.choices or ("",))[0], 1, True), bench) for item in items]
        (score,) = task_scores(rows, bench, "m", 0)
        assert (score.raw, score.score) == (50, 0)


def test_an_answer_is_not_in_the_question(bench: Benchmark, keys: dict[tuple[str, str, str], Asked]) -> None:
    """A model that repeats the prompt scores nothing where a word is asked for."""
    for item in bench.items:
        if TASKS[item.task].metric != "chrf":
            assert grade(item, Answer(item.messages[-1].content, 5, True), bench).value == 0, item.id


@pytest.mark.parametrize("l", EIGHT)
def test_word_lists_know_the_sentences_of_their_language(l: str, bench: Benchmark) -> None:
    words = set(bench.words[l])
    assert words == vocabulary(l) and len(words) > 200 and "" not in words
    for relation, facts in FACTS.items():
        for fact in random.Random(0).sample(facts, 10):
            assert l in identify(state(load(l), relation, fact), bench.candidates, bench.words), (relation, fact)
