"""What SEA-HELM wrote, read in both layouts: scores, averages by name, what is missing, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kit.seahelm import BEFORE, LAYOUTS, V12, Made, choice, paper_tasks, small, units_of, write

from dudi.errors import DudiError
from dudi.evals.aggregate import aggregate
from dudi.evals.seahelm.aggregate import (
    BOOTSTRAP_SEED,
    PAPER7,
    Expected,
    leaderboard,
    paper7,
    per_run_table,
    scores,
    units,
)
from dudi.evals.seahelm.collect import read_results
from dudi.records import Table

both = pytest.mark.parametrize("layout", LAYOUTS)
SENTIMENT = ("id", "nlu", "sentiment")
IF_EVAL = ("id", "instruction-following", "if-eval")


def per_run(file: Path) -> Table:
    return per_run_table("m", "b", [units(read_results(file))], (0,))


def paper(file: Path) -> Table:
    return aggregate(scores(paper7(), units(read_results(file)), "m", 0), paper7())


# ── averages ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@both
def test_averages_are_those_that_sea_helm_wrote(tmp_path: Path, layout: str) -> None:
    file = write(tmp_path, paper_tasks(), layout)
    own, table = json.loads(file.read_text(encoding="utf-8")), per_run(file)
    assert table.overall.mean == pytest.approx(own["total"], abs=1e-9)
    for language in PAPER7:
        assert table.by_language[language].mean == pytest.approx(own[language]["total"], abs=1e-9)
        for competency, average in table.by_competency[language].items():
            assert average.mean == pytest.approx(own[language][competency]["total"], abs=1e-9)
    assert len({round(average.mean or 0, 3) for average in table.by_language.values()}) == 7


@both
def test_the_papers_seven_leave_out_what_judges_score(tmp_path: Path, layout: str) -> None:
    tasks = paper_tasks()
    judged = Made((True,) * 4, (), None, "average_criteria_score")
    more = {("tl", "cultural", "kalahi-mc"): choice("11111111"), ("id", "multi-turn", "mt-bench-judge"): judged}
    means = []
    for language, row in PAPER7.items():
        mine = {c: {t: m for (l, k, t), m in tasks.items() if (l, k) == (language, c)} for c in row}
        competencies = [list(dict(units_of(one)).values()) for one in mine.values()]
        means.append(sum(sum(c) / len(c) for c in competencies) / len(competencies))
    file = write(tmp_path, {**tasks, **more}, layout)
    assert paper(file).overall.mean == pytest.approx(sum(means) / 7, abs=1e-9)
    assert per_run(file).overall.mean != pytest.approx(sum(means) / 7, abs=0.1)


def test_a_group_that_is_weighted_by_rows_has_the_value_that_sea_helm_gave_it(tmp_path: Path) -> None:
    tasks = {
        ("id", "knowledge", "global_mmlu_lite_astronomy"): choice("11110000", group="global_mmlu_lite"),
        ("id", "knowledge", "global_mmlu_lite_virology"): choice("11111111", group="global_mmlu_lite"),
    }
    file = write(tmp_path, tasks, BEFORE)
    table = json.loads(file.read_text(encoding="utf-8"))
    weighted = (0 * 8 + 100 * 24) / 32
    table["id"]["knowledge"]["global_mmlu_lite"] = weighted
    table["id"]["knowledge"]["total"] = table["id"]["total"] = table["total"] = weighted
    file.write_text(json.dumps(table), encoding="utf-8")
    assert per_run(file).by_task["id"]["global_mmlu_lite"].mean == weighted


def test_the_leaderboard_draws_each_question_from_one_of_the_runs(tmp_path: Path) -> None:
    first, second = "11101101", "10110100"
    one, two = (
        {
            SENTIMENT: choice(right),
            IF_EVAL: Made(tuple(c == "1" for c in right[:5]), (), None, "overall_lang_normalized_acc"),
        }
        for right in (first, second)
    )
    runs = [read_results(write(tmp_path, made, V12, run=run)) for run, made in enumerate((one, two))]
    order = [Expected(*SENTIMENT, None), Expected(*IF_EVAL, None)]
    table = leaderboard("m", runs, order)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = []
    for rows, labels in ((8, "ABABABAB"), (5, None)):
        for index in generator.integers(0, 2, size=(30, rows)):
            drawn = [int((first, second)[run][k]) for k, run in enumerate(index)]
            if labels is None:
                means.append(100 * sum(drawn) / rows)
            else:
                recall = [sum(v for v, l in zip(drawn, labels, strict=True) if l == x) / 4 for x in "AB"]
                means.append(100 * max((sum(recall) / 2 - 0.5) / 0.5, 0))
    expected = [(a + b) / 2 for a, b in zip(means[:30], means[30:], strict=True)]
    assert table.overall.mean == pytest.approx(sum(expected) / 30, abs=1e-9)
    assert table.overall.spread == pytest.approx(np.std(expected, ddof=1), abs=1e-9)


def test_subjects_of_global_mmlu_lite_are_one_task_of_the_leaderboard_weighted_by_rows(tmp_path: Path) -> None:
    tasks = {
        ("id", "knowledge", "global_mmlu_lite_one"): choice("1111", "ABCD", "global_mmlu_lite"),
        ("id", "knowledge", "global_mmlu_lite_two"): choice("11110000", "ABCDABCD", "global_mmlu_lite"),
    }
    run = read_results(write(tmp_path, tasks, BEFORE))
    table = leaderboard("m", [run], [Expected(*place, "global_mmlu_lite") for place in tasks])
    assert table.by_task["id"].keys() == {"global_mmlu_lite"}
    assert table.overall.mean == pytest.approx((100 * 4 + 100 / 3 * 8) / 12)


# ── missing ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@both
def test_a_failed_task_is_missing_and_no_average_holds_its_zero(tmp_path: Path, layout: str) -> None:
    tasks = small() | {SENTIMENT: choice("11101101", failed=True)}
    table = per_run(write(tmp_path, tasks, layout))
    assert table.by_task["id"]["sentiment"].mean is None and table.by_language["id"].mean is None
    assert table.overall.mean is None and table.by_language["th"].mean == pytest.approx(75)
    assert table.by_competency["id"]["safety"].mean == pytest.approx(50)
    (line,) = table.refused
    assert line.startswith("sentiment, id: ") and "error" in line


@both
@pytest.mark.parametrize("rows", [True, False])
def test_a_real_zero_of_if_eval_is_told_from_a_failure_by_its_rows(tmp_path: Path, layout: str, rows: bool) -> None:
    none = Made((False,) * 5, (), None, "overall_lang_normalized_acc", failed=True, rows=rows)
    file = write(tmp_path, small() | {IF_EVAL: none}, layout)
    table, (note,) = per_run(file), [t.note for t in read_results(file).tasks if t.task == "if-eval"]
    if rows:
        assert table.by_task["id"]["if-eval"].mean == 0 and table.refused == () and "5 rows" in str(note)
    else:
        assert table.by_task["id"]["if-eval"].mean is None and len(table.refused) == 1 and note is None


@both
def test_scored_rows_decide_whether_a_zero_is_real(tmp_path: Path, layout: str) -> None:
    failed = Made((False, True, False), (), None, "overall_lang_normalized_acc", failed=True)
    file = write(tmp_path, small() | {IF_EVAL: failed}, layout)
    folder = file.parent.parent / "inferences" / "id" / "if-eval"

    def scored(*values: int | None) -> None:
        rows = [{"responses": ["x"], "individual_scores": {failed.metric: v}} for v in values]
        (folder / "student_if-eval_id.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    scored(0, None, 0)
    assert per_run(file).by_task["id"]["if-eval"].mean == 0
    scored(0, 1, 0)
    assert per_run(file).by_task["id"]["if-eval"].mean is None


def test_unanswered_rows_are_no_real_zero(tmp_path: Path) -> None:
    none = Made((False,) * 3, (), None, "overall_lang_normalized_acc", failed=True)
    file = write(tmp_path, small() | {IF_EVAL: none}, V12)
    answers = next(file.parent.parent.glob("inferences/id/if-eval/*_turn1_batch_response.jsonl"))
    answers.write_text('{"responses": "a"}\n{"responses": null}\n{"responses": "b"}\n', encoding="utf-8")
    assert per_run(file).by_task["id"]["if-eval"].mean is None


@both
def test_a_missing_language_makes_the_papers_average_a_dash(tmp_path: Path, layout: str) -> None:
    tasks = {place: made for place, made in paper_tasks().items() if place[0] != "my"}
    file = write(tmp_path, tasks, layout)
    table = paper(file)
    assert table.overall.mean is None and table.by_language["my"].mean is None
    assert table.by_language["id"].mean is not None and per_run(file).overall.mean is not None
    assert len(table.refused) == sum(map(len, PAPER7["my"].values()))
    assert all(", my: not among what was run" in line for line in table.refused)


def test_what_was_expected_and_not_scored_is_named_with_its_reason(tmp_path: Path) -> None:
    lost = Expected("id", "nlu", "metaphor", None, "refused: 2 of 9 prompts cannot be asked", 9)
    table = per_run_table("m", "b", [units(read_results(write(tmp_path, small())), [lost])], (0,))
    assert table.by_language["id"].mean is None
    assert table.refused == ("metaphor, id: refused: 2 of 9 prompts cannot be asked",)


def test_a_part_of_linguistic_diagnostics_that_failed_takes_the_totals_with_it(tmp_path: Path) -> None:
    tasks = paper_tasks() | {("id", "linguistic-diagnostics", "mp-r"): choice("10101010", failed=True)}
    table = per_run(write(tmp_path, tasks, totals=False))
    assert table.by_language["id"].mean is None and table.by_language["ta"].mean is not None
    assert [line.partition(":")[0] for line in table.refused] == ["mp-r, id"]
    tasks["id", "linguistic-diagnostics", "mp-r"] = choice("11111111")
    tasks.pop(("id", "linguistic-diagnostics", "pragmatic-pair"))
    table = per_run(write(tmp_path, tasks, totals=False))
    assert table.by_task["id"]["mp-r"].mean == 100 and table.by_language["id"].mean is None
    assert table.refused == ("pragmatics, id: it takes the rows of pragmatic-single and pragmatic-pair",)


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def newer(file: Path) -> None:
    file.with_name("student_seahelm_results_2026-06-02T00:00:00.000000.json").write_text("{}", encoding="utf-8")


def other_rows(file: Path) -> None:
    rows = next(file.parent.parent.glob("inferences/id/sentiment/student_sentiment_id.jsonl"))
    rows.write_text(rows.read_text(encoding="utf-8").replace('"normalized_accuracy": 0', '"normalized_accuracy": 1'))


def fewer_answers(file: Path) -> None:
    answers = next(file.parent.parent.glob("inferences/id/sentiment/*_turn1_batch_response.jsonl"))
    answers.write_text('{"responses": "a"}\n', encoding="utf-8")


def change(text: str, by: str) -> Callable[[Path], None]:
    def changed(file: Path) -> None:
        before = file.read_text(encoding="utf-8")
        assert text in before
        file.write_text(before.replace(text, by, 1), encoding="utf-8")

    return changed


def cut(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8")[:200], encoding="utf-8")


def no_totals(file: Path) -> None:
    table = json.loads(file.read_text(encoding="utf-8"))
    del table["total"]
    file.write_text(json.dumps(table), encoding="utf-8")


def not_a_number(file: Path) -> None:
    rows = next(file.parent.parent.glob("inferences/id/qa/student_qa_id.jsonl"))
    text = rows.read_text(encoding="utf-8")
    rows.write_text(text.replace('"normalized_f1": 1', '"normalized_f1": NaN', 1), encoding="utf-8")


REFUSED = {
    "a row that is no number": (
        not_a_number,
        "line 1: individual_scores.normalized_f1: expected a number, found 'nan'",
    ),
    "a score that is no number": (
        change('"normalized_f1": 66', '"x": 1, "normalized_f1": NaN, "y": 66'),
        "found 'nan'",
    ),
    "older": (newer, "stale: student_seahelm_results_2026-06-02T00:00:00.000000.json is newer"),
    "rows of another scoring": (other_rows, "its 8 rows give 100.000000: they are stale"),
    "answers of another length": (fewer_answers, "not as many answers as student_sentiment_id.jsonl has rows (8)"),
    "cut off": (cut, "not valid JSON"),
    "stopped": (no_totals, "no totals: the run was stopped before its end"),
    "a changed total": (change('"total": ', '"total": 1'), "but its tasks give"),
    "a changed score": (change('"normalized_f1": 66', '"normalized_f1": 99'), "its 3 rows give 66.666667"),
    "an unknown metric": (change('"normalized_f1"', '"novel_f1"'), "none of the metrics that are read here"),
    "no number": (change('"normalized_f1": 66', '"normalized_f1": "66", "x": 66'), "expected a number, found '66'"),
    "a group from nowhere": (change('"nlu": {', '"nlu": {"novel": 3.0, '), "a group of tasks that are not in the file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    spoil, said = REFUSED[case]
    file = write(tmp_path, small())
    units(read_results(file))
    spoil(file)
    with pytest.raises(DudiError) as caught:
        units(read_results(file))
    assert said in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"id": 3}', '{"id": {"nlu": []}}', '{"id": {"nlu": {"total": 3}}, "total": 3}', "nan"]
)
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DudiError, match=r"results\.json"):
        read_results(file)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match="expected a results file"):
        read_results(tmp_path / "none.json")
