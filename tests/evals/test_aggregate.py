"""SEA-HELM's order, by hand, on unequal numbers of tasks and competencies; failed tasks; seeds."""

from __future__ import annotations

import dataclasses
import json

import pytest
from kit.evals import bench, score

from dudi.evals.aggregate import aggregate
from dudi.evals.bench import Benchmark
from dudi.evals.tables import markdown, summary
from dudi.records import Average, Table, TaskScore

TASKS = {
    "mood": ("nlu", None, ["id", "th", "en"]),
    "qa1": ("nlu", "qa", ["id", "th"]),
    "qa2": ("nlu", "qa", ["id", "th"]),
    "qa3": ("nlu", "qa", ["id"]),
    "to": ("nlg", None, ["id", "th", "en"]),
    "from": ("nlg", None, ["id"]),
    "pairs": ("forms", None, ["id"]),
}
VALUES = {
    ("mood", "id"): 10.0, ("qa1", "id"): 20.0, ("qa2", "id"): 60.0, ("qa3", "id"): 70.0,
    ("to", "id"): 30.0, ("from", "id"): 40.0, ("pairs", "id"): 90.0,
    ("mood", "th"): 50.0, ("qa1", "th"): 0.0, ("qa2", "th"): 20.0, ("to", "th"): 8.0,
    ("mood", "en"): 100.0, ("to", "en"): 100.0,
}  # fmt: skip


def made() -> Benchmark:
    return bench(TASKS, averaged=("id", "th"), translation=("nlg",))


def scores(b: Benchmark, seed: int = 0, plus: float = 0.0, failed: tuple[str, str] | None = None) -> list[TaskScore]:
    return [score(b, *cell, None if cell == failed else value + plus, seed) for cell, value in VALUES.items()]


def means(row: dict[str, Average]) -> dict[str, float | None]:
    return {name: cell.mean for name, cell in row.items()}


def test_order_by_hand() -> None:
    b = made()
    t = aggregate(scores(b), b)
    # id: nlu = mean(mood 10, qa mean(20, 60, 70) = 50) = 30; nlg = mean(30, 40) = 35; forms = 90
    assert means(t.by_competency["id"]) == pytest.approx({"nlu": 30, "nlg": 35, "forms": 90})
    # th: nlu = mean(50, qa mean(0, 20) = 10) = 30; nlg = 8; it has no forms
    assert means(t.by_competency["th"]) == pytest.approx({"nlu": 30, "nlg": 8})
    assert means(t.by_competency["en"]) == pytest.approx({"nlu": 100, "nlg": 100})
    assert means(t.by_language) == pytest.approx({"id": 155 / 3, "th": 19, "en": 100})
    assert means(t.by_language_without_translation) == pytest.approx({"id": 60, "th": 30, "en": 100})
    assert t.overall.mean == pytest.approx((155 / 3 + 19) / 2)  # en is shown only
    assert t.overall_without_translation.mean == pytest.approx(45)
    assert means(t.competency_overall) == pytest.approx({"nlu": 30, "nlg": 21.5, "forms": 90})
    assert means(t.by_task["th"]) == pytest.approx({"mood": 50, "qa1": 0, "qa2": 20, "to": 8})
    assert t.refused == () and t.languages == ("id", "th", "en") and t.seeds == (0,)


def test_order_is_not_a_mean_over_tasks_or_cells() -> None:
    b = made()
    t = aggregate(scores(b), b)
    averaged = [v for (_, l), v in VALUES.items() if l in ("id", "th")]
    assert t.overall.mean != pytest.approx(sum(averaged) / len(averaged))


def test_a_failed_task_is_missing_and_refuses_every_average_above_it() -> None:
    b = made()
    t = aggregate(scores(b, failed=("to", "th")), b)
    assert means(t.by_competency["th"]) == {"nlu": pytest.approx(30), "nlg": None}
    assert means(t.by_language)["th"] is None and t.overall.mean is None
    assert t.overall_without_translation.mean == pytest.approx(45)  # does not contain it
    assert means(t.by_language)["id"] == pytest.approx(155 / 3)
    assert means(t.competency_overall) == {"nlu": pytest.approx(30), "nlg": None, "forms": pytest.approx(90)}
    assert t.refused == ("to, th: it broke",)


def test_a_task_of_a_group_that_failed_is_missing_too() -> None:
    b = made()
    t = aggregate(scores(b, failed=("qa2", "id")), b)
    assert means(t.by_competency["id"])["nlu"] is None
    assert t.overall.mean is None and t.overall_without_translation.mean is None


def test_a_failure_in_a_language_that_is_not_averaged_leaves_the_overall_alone() -> None:
    b = made()
    t = aggregate(scores(b, failed=("mood", "en")), b)
    assert means(t.by_language)["en"] is None
    assert t.overall.mean == pytest.approx((155 / 3 + 19) / 2)


def test_a_score_that_is_not_there_is_missing() -> None:
    b = made()
    t = aggregate([s for s in scores(b) if (s.task, s.language) != ("mood", "id")], b)
    assert t.overall.mean is None and t.refused == ("mood, id: no score",)


def test_no_scores_at_all() -> None:
    b = made()
    t = aggregate([], b)
    assert t.overall.mean is None and len(t.refused) == len(VALUES)


def test_zero_is_a_score() -> None:
    b = made()
    t = aggregate([dataclasses.replace(s, raw=0.0, score=0.0) for s in scores(b)], b)
    assert t.overall.mean == 0 and t.refused == ()


def test_seeds_mean_and_standard_deviation_of_each_average() -> None:
    b = made()
    t = aggregate([*scores(b, 3), *scores(b, 5, plus=6.0)], b)
    assert t.seeds == (3, 5)
    assert t.overall.mean == pytest.approx((155 / 3 + 19) / 2 + 3)
    assert t.overall.spread == pytest.approx(6 / 2**0.5)  # n - 1
    assert t.by_task["id"]["mood"] == Average(pytest.approx(13), pytest.approx(6 / 2**0.5))


def test_seeds_that_move_against_each_other_cancel_in_the_average() -> None:
    b = bench({"a": ("c", None, ["id", "th"])})
    values = {("id", 0): 10.0, ("th", 0): 30.0, ("id", 1): 30.0, ("th", 1): 10.0}
    t = aggregate([score(b, "a", l, v, seed) for (l, seed), v in values.items()], b)
    assert t.overall == Average(20, 0)
    assert t.by_language["id"].spread == pytest.approx(20 / 2**0.5)


def test_missing_under_one_seed_is_missing() -> None:
    b = made()
    t = aggregate([*scores(b, 0), *scores(b, 1, failed=("to", "th"))], b)
    assert t.overall == Average(None, None)
    assert t.refused == ("to, th, seed 1: it broke",)


def test_measures_are_means_over_seeds() -> None:
    b = bench({"a": ("c", None, ["id"])})
    one = score(b, "a", "id", 1.0, 0, n=4, stopped=0.5, tokens=3.0, in_language=None, undetermined=4)
    two = score(b, "a", "id", 1.0, 1, n=4, stopped=1.0, tokens=4.0, in_language=0.25, undetermined=0)
    m = aggregate([one, two], b).measures["id"]["a"]
    assert (m.n, m.stopped, m.tokens, m.in_language, m.undetermined) == (4, 0.75, 3.5, 0.25, 2)


def test_only_translation_has_no_average_without_it() -> None:
    b = bench({"a": ("nlg", None, ["id"])}, translation=("nlg",))
    t = aggregate([score(b, "a", "id", 7.0)], b)
    assert t.overall.mean == 7 and t.overall_without_translation.mean is None


def test_one_score_for_a_cell() -> None:
    b = made()
    with pytest.raises(AssertionError):
        aggregate([*scores(b), *scores(b)], b)


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def row(text: str, name: str) -> list[str]:
    """The cells of the first row of that name."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def shown(t: Table) -> str:
    return markdown(t, made())


def test_markdown_has_languages_by_competencies_and_both_averages() -> None:
    b = made()
    text = shown(aggregate(scores(b), b))
    assert row(text, "language") == ["nlu", "nlg", "forms", "average", "without nlg"]
    assert row(text, "id") == ["30.0", "35.0", "90.0", "51.7", "60.0"]
    assert row(text, "th") == ["30.0", "8.0", "", "19.0", "30.0"]
    assert row(text, "en (not averaged)") == ["100.0", "100.0", "", "100.0", "100.0"]
    assert row(text, "average") == ["30.0", "21.5", "90.0", "35.3", "45.0"]
    assert row(text, "qa3") == ["70.0", "", ""]
    assert "seed" not in text


def test_markdown_names_what_is_missing() -> None:
    b = made()
    text = shown(aggregate(scores(b, failed=("to", "th")), b))
    assert row(text, "average") == ["30.0", "-", "90.0", "-", "45.0"]
    assert "- to, th: it broke" in text and "to, th: it broke" in summary(
        aggregate(scores(b, failed=("to", "th")), b), b
    )


def test_markdown_says_that_seeds_are_decoding_seeds() -> None:
    b = made()
    text = shown(aggregate([*scores(b, 3), *scores(b, 5, plus=6.0)], b))
    assert "2 decoding seeds (3, 5)" in text
    assert row(text, "average")[-1] == "48.0 ± 4.2"


def test_without_translation_competencies_there_is_one_average() -> None:
    b = bench(TASKS, averaged=("id", "th"))
    assert row(markdown(aggregate(scores(b), b), b), "language") == ["nlu", "nlg", "forms", "average"]


def test_table_and_scores_are_json() -> None:
    b = made()
    given = scores(b, failed=("to", "th"))
    assert [TaskScore(**json.loads(json.dumps(s.as_dict()))) for s in given] == given
    table = json.loads(json.dumps(aggregate(given, b).as_dict()))
    assert table["overall"] == {"mean": None, "spread": None, "low": None, "high": None}
    assert table["by_competency"]["id"]["forms"]["mean"] == pytest.approx(90)
