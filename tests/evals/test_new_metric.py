"""A metric more: the file that docs/evaluation.md shows, one line in the table, and it evaluates and reports."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from kit.evals import DESCRIPTION, item, rows, save_model, write

from dudi.errors import DudiError
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import read_benchmark
from dudi.evals.cells import task_scores
from dudi.evals.evaluate import evaluate
from dudi.evals.metrics import METRICS
from dudi.report.write import write_report

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
TASK = {"competency": "nlu", "metric": "word_recall", "max_new_tokens": 6}


@pytest.fixture
def word_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one new file, and the one line."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "word_recall.py").write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("word_recall", tmp_path / "word_recall.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METRICS, "word_recall", module.WordRecall())


def bench(folder: Path, **fields: Any) -> Path:
    tasks = {**DESCRIPTION["tasks"], "where": TASK}
    more = [
        item("w1", "where", "id", "Di mana?", **{"targets": ["di kota Paris", "di ibu kota Paris"], **fields}),
        item("w2", "where", "id", "Di mana lagi?", targets=["di rumah ibu"]),
    ]
    return write(folder, {**DESCRIPTION, "tasks": tasks}, [*rows(), *more])


def test_it_is_unknown_without_its_line(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match=r"tasks\.where\.metric: expected one of .*, found 'word_recall'"):
        read_benchmark(bench(tmp_path))


def test_it_scores(word_recall: None, tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    answers = {"w1": "di Paris", "w2": "Di rumah nenek."}
    graded = [grade(i, Answer(answers[i.id], 3, True), b) for i in b.items if i.task == "where"]
    # w1: 2 of the first target's 3 words found, 2 of the second's 4. w2: 2 of 3.
    assert [one.value for one in graded] == pytest.approx([2 / 3, 2 / 3])
    (score,) = task_scores(graded, b, "m", 0)
    assert (score.metric, score.competency) == ("word_recall", "nlu")
    assert score.raw == score.score == pytest.approx(100 * 2 / 3)


def test_its_items_are_checked(word_recall: None, tmp_path: Path) -> None:
    for fields, said in (
        ({"targets": []}, "targets: expected one or more accepted answers"),
        ({"choices": ["a", "b"]}, "choices: not read; task 'where' has metric 'word_recall'"),
        ({"constraints": {"count": 1}}, "constraints: not read"),
    ):
        with pytest.raises(DudiError, match=re.escape(said)):
            read_benchmark(bench(tmp_path, **fields))


def test_it_evaluates_and_reports(word_recall: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = bench(tmp_path / "bench"), tmp_path / "out"
    table = evaluate(save_model(tmp_path / "m", 3, tied=False), folder, out, say=lambda text: None)
    assert table.by_task["id"]["where"].mean is not None
    marks = json.loads((out / "eval.json").read_text(encoding="utf-8"))["marks"]
    assert marks == {"choice": None, "exact": None, "chrf": "chrF++", "constraints": None, "word_recall": "recall"}
    monkeypatch.delitem(METRICS, "word_recall")  # the report knows no metric: it reads what the evaluation says
    html = write_report((), [f"m={out}"], output=tmp_path / "report").read_text(encoding="utf-8")
    assert "✓ right, ✗ wrong; chrF++ from 0 to 100; recall from 0 to 100." in html
    assert re.search(r"\brecall \d+\b", html) and "✗ wrong" in html
