"""Intervals over items, beside every draw done by hand: its items written out, then scored and averaged like any."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.evals import item, write

from dudi.evals import spread
from dudi.evals.aggregate import aggregate
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import Benchmark, read_benchmark
from dudi.evals.cells import task_scores
from dudi.records import GradedAnswer, Table

DESCRIPTION = {
    "name": "made",
    "version": 1,
    "competencies": ["nlu", "knowledge", "nlg"],
    "averaged": ["id", "th"],
    "translation": ["nlg"],
    "tasks": {
        "mood": {"competency": "nlu", "metric": "choice", "max_new_tokens": 6},
        "capital": {"competency": "knowledge", "metric": "exact", "max_new_tokens": 5, "group": "facts"},
        "money": {"competency": "knowledge", "metric": "exact", "max_new_tokens": 5, "group": "facts"},
        "speech": {"competency": "nlg", "metric": "chrf", "max_new_tokens": 8},
    },
}


def rows(keys: int) -> list[dict[str, Any]]:
    """Items of three languages; the same key in all of them."""
    found = []
    for l in ("id", "th", "en"):
        for n in range(keys):
            for task, target in (("mood", "AB"[n % 2]), ("capital", "Paris"), ("money", "baht"), ("speech", "a house")):
                choices = {"choices": ["A", "B"]} if task == "mood" else {}
                text = f"{task} {n} {l}?"
                found.append(item(f"{task}{n}{l}", task, l, text, targets=[target], key=f"{task} {n}", **choices))
    return found


@pytest.fixture
def bench(tmp_path: Path) -> Benchmark:
    return read_benchmark(write(tmp_path, DESCRIPTION, rows(14)))


def graded(bench: Benchmark, seed: int, share: float = 0.6) -> list[GradedAnswer]:
    rng = random.Random(seed)
    texts = [one.targets[0] if rng.random() < share else "A" for one in bench.items]
    return [grade(one, Answer(text, 3, True), bench) for one, text in zip(bench.items, texts, strict=True)]


def table(bench: Benchmark, responses: list[list[GradedAnswer]]) -> Table:
    scores = [one for seed, row in enumerate(responses) for one in task_scores(row, bench, "m", seed)]
    return spread.with_intervals(aggregate(scores, bench), scores, responses, bench)


def test_every_draw_by_hand(bench: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "DRAWS", 40)
    answers = [one for one in graded(bench, 0) if one.task != "speech"]
    kept = [one for one in bench.items if one.task != "speech"]
    few = Benchmark(bench.description, tuple(kept), {}, bench.sha256)
    found = table(few, [answers])
    keys = list(dict.fromkeys(str(one.key) for one in kept))
    generator = np.random.default_rng(list(f"intervals {bench.sha256}".encode()))
    overall, thai = [], []
    for counts in generator.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), 40):
        times = dict(zip(keys, counts.tolist(), strict=True))
        drawn = [one for one in answers for _ in range(times[str(one.key)])]
        by_hand = aggregate(task_scores(drawn, few, "m", 0), few)
        overall.append(by_hand.overall.mean)
        thai.append(by_hand.by_language["th"].mean)
    for average, values in ((found.overall, overall), (found.by_language["th"], thai)):
        assert (average.low, average.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
        assert average.low < average.mean < average.high


def test_draws_move_a_corpus_score_around_itself(bench: Benchmark) -> None:
    found = table(bench, [graded(bench, 0)])
    with_nlg, without = found.by_language["id"], found.by_language_without_translation["id"]
    assert with_nlg.low < with_nlg.mean < with_nlg.high and without.low < without.mean < without.high
    assert (with_nlg.low, with_nlg.high) != (without.low, without.high)


def test_what_shares_a_key_is_drawn_together(tmp_path: Path) -> None:
    """The same question in three languages is one question: the interval of the average is no narrower by it."""
    together = rows(14)
    apart = [{**row, "key": f"{row['key']} {row['language']}"} for row in together]
    width = {}
    for name, lines in (("together", together), ("apart", apart)):
        bench = read_benchmark(write(tmp_path / name, DESCRIPTION, lines))
        right = {key: random.Random(key).random() < 0.6 for key in {str(row["key"])[:10] for row in lines}}
        texts = [one.targets[0] if right[str(one.key)[:10]] else "x" for one in bench.items]
        answers = [grade(one, Answer(t, 3, True), bench) for one, t in zip(bench.items, texts, strict=True)]
        overall = table(bench, [answers]).overall
        width[name] = overall.high - overall.low
    assert width["together"] > 1.2 * width["apart"]


def test_it_is_a_function_of_its_arguments_and_of_all_seeds(bench: Benchmark) -> None:
    one, two = graded(bench, 0), graded(bench, 1)
    assert table(bench, [one]) == table(bench, [one])
    both = table(bench, [one, two]).overall
    assert both.spread is not None and both.low < both.mean < both.high
    assert both.high - both.low < table(bench, [one]).overall.high - table(bench, [one]).overall.low


def test_a_table_with_a_missing_score_has_no_intervals(bench: Benchmark) -> None:
    answers = graded(bench, 0)
    scores = task_scores(answers[1:], bench, "m", 0)
    missing = aggregate([one for one in scores if (one.task, one.language) != ("mood", "id")], bench)
    assert spread.with_intervals(missing, scores, [answers], bench) == missing
    assert missing.overall.low is None and "[" not in str(missing.by_language["th"])
