"""The records that evaluation writes and the report reads, and the words for what is wrong with one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dudi.errors import DudiError
from dudi.records import About, GradedAnswer, Item, Table, TaskScore, fifths
from dudi.strict import parsed, read_each, read_one


def test_what_is_written_is_read_back(evals: Path) -> None:
    folder = evals / "drawn"
    for kind, name in ((About, "eval.json"), (Table, "table.json")):
        text = (folder / name).read_text(encoding="utf-8")
        assert json.loads(json.dumps(read_one(kind, folder / name).as_dict())) == json.loads(text) | (
            {
                "benchmark": {"path": None, **json.loads(text)["benchmark"]},
                "decoding": {**json.loads(text)["decoding"], "engine": "local"},
            }
            if kind is About
            else {}
        )
    for kind, name in ((GradedAnswer, "responses-3.jsonl"), (TaskScore, "scores.jsonl")):
        text = (folder / name).read_text(encoding="utf-8")
        lines = [json.dumps(one.as_dict(), ensure_ascii=False) + "\n" for one in read_each(kind, folder / name)]
        assert "".join(lines) == text and len(lines) > 10


@pytest.mark.parametrize("place", ["table", "score", "answer"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(place: str, number: float, evals: Path, tmp_path: Path) -> None:
    files = {"table": "table.json", "score": "scores.jsonl", "answer": "responses-0.jsonl"}
    kinds = {"table": Table, "score": TaskScore, "answer": GradedAnswer}
    text = (evals / "base" / files[place]).read_text(encoding="utf-8").split("\n")[0]
    keys = {"table": {"overall": {"mean": number}}, "score": {"score": number}, "answer": {"value": number}}
    (tmp_path / "x.json").write_text(json.dumps({**json.loads(text), **keys[place]}), encoding="utf-8")
    with pytest.raises(DudiError, match=r"expected a finite number, found (nan|inf)"):
        read_one(kinds[place], tmp_path / "x.json")


def test_keys_of_a_later_version_are_left_alone_in_an_evaluation_but_not_in_a_benchmark(evals: Path) -> None:
    line = json.loads((evals / "base" / "responses-0.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert parsed(GradedAnswer, json.dumps({**line, "later": 1}), "here") == parsed(
        GradedAnswer, json.dumps(line), "here"
    )
    with pytest.raises(DudiError, match=r"here: messages\.0: unknown key: 'rol'; did you mean 'role'\?"):
        parsed(
            Item, '{"id": "1", "task": "t", "language": "id", "messages": [{"rol": "user", "content": "?"}]}', "here"
        )


@pytest.mark.parametrize("steps", [[1], [10, 20, 30, 40, 50], [3, 6, 9, 10], list(range(1, 101)), [50, 60]])
def test_the_first_and_the_last_fifth(steps: list[int]) -> None:
    end = steps[-1]
    first, last = fifths([(step, step) for step in steps], end)
    assert first == ([step for step in steps if 5 * step <= end] or steps[:1])
    assert last == [step for step in steps if 5 * step > 4 * end]
    assert fifths([(step, step) for step in steps], 100 * end) == (steps, steps[-1:])  # logged early alone
    assert fifths([], end) == ([], [])


def test_records_and_report_load_no_torch() -> None:
    code = "import sys, dudi.records, dudi.strict, dudi.report.write; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert {"torch", "transformers", "sacrebleu", "dudi.evals"} & found == set() and "dudi.records" in found
