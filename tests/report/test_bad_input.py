"""Bad input is one line that says what is wrong, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import reports

from dudi.errors import DudiError
from dudi.report.write import write_report

Arguments = dict[str, Any]


def spoilt(source: Path, target: Path, name: str, change: Callable[[str], str] | None) -> Path:
    """A copy of a folder with one file changed, or (None) removed."""
    shutil.copytree(source, target)
    file = target / name
    if change is None:
        file.unlink()
    else:
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    return target


def edited(**changes: Any) -> Callable[[str], str]:
    """Top-level keys of a JSON object replaced."""
    return lambda text: json.dumps({**json.loads(text), **changes})


def first_line(**changes: Any) -> Callable[[str], str]:
    """Keys of the first line replaced."""
    return lambda text: "\n".join([json.dumps({**json.loads(text.split("\n")[0]), **changes}), *text.split("\n")[1:]])


RUNS: dict[str, tuple[str, Callable[[str], str] | None, str]] = {
    "no recipe": ("recipe.toml", None, "is not the folder of a run: recipe.toml is missing"),
    "no lengths": ("lengths.json", None, "lengths.json is missing"),
    "no data": ("data/report.json", None, "data/report.json is missing"),
    "broken recipe": ("recipe.toml", lambda text: "bogus = 1\n" + text, "bogus"),
    "broken lengths": ("lengths.json", lambda text: text[:-3], "lengths.json: not valid JSON"),
    "data of another kind": (
        "data/report.json",
        edited(languages={"th": {"read": "many"}}),
        "languages.th.read: expected a whole number, found 'many'",
    ),
    "metrics of another kind": (
        "1-dudi/metrics.jsonl",
        first_line(step="ten"),
        "metrics.jsonl: line 1: step: expected a whole number, found 'ten'",
    ),
    "metrics broken": ("1-dudi/metrics.jsonl", lambda text: "{\n" + text, "metrics.jsonl: line 1: not valid JSON"),
    "times negative": (
        "1-dudi/times.jsonl",
        first_line(rollout=-1),
        "times.jsonl: line 1: rollout: expected a number of at least 0, found -1",
    ),
    "memory as text": (
        "1-dudi/phases.json",
        lambda text: text.replace(str(2**30), '"1 GiB"'),
        "phases.json: memory.reading: expected a whole number, found '1 GiB'",
    ),
    "a rollout without its text": (
        "1-dudi/rollouts.jsonl",
        first_line(text=None),
        "rollouts.jsonl: line 1: text: expected a text, found None",
    ),
}
EVALS: dict[str, tuple[str, Callable[[str], str] | None, str]] = {
    "no table": ("table.json", None, "is no finished evaluation: table.json is missing"),
    "no record": ("eval.json", None, "eval.json is missing"),
    "no responses": ("responses-0.jsonl", None, "responses-0.jsonl: cannot be read"),
    "broken table": ("table.json", lambda text: text[:50], "table.json: not valid JSON"),
    "table of another kind": (
        "table.json",
        edited(overall=3),
        "table.json: overall: expected a table (JSON object), found 3",
    ),
    "table without seeds": ("table.json", edited(seeds=[]), "table.json: seeds: expected 1 or more entries, found []"),
    "table without a language": ("table.json", edited(by_language={}), "by_language: 'id' is missing"),
    "averaged of nowhere": ("table.json", edited(averaged=["xx"]), "averaged: 'xx' is not among"),
    "scores of nothing": ("scores.jsonl", lambda text: "", "of task 'sentiment', which the scores do not have"),
    "a response of another kind": (
        "responses-0.jsonl",
        first_line(tokens="many"),
        "responses-0.jsonl: line 1: tokens: expected a whole number, found 'many'",
    ),
    "not text": ("responses-0.jsonl", lambda text: "\0", "line 1: not valid JSON"),
}


def refused(capsys: pytest.CaptureFixture[str] | None, target: Path, expected: str, **arguments: Any) -> None:
    arguments = {"folders": (), "output": target, **arguments}
    with pytest.raises(DudiError) as caught:
        write_report(**arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("case", RUNS)
def test_a_spoilt_run(case: str, run: Path, tmp_path: Path) -> None:
    name, change, expected = RUNS[case]
    refused(None, tmp_path / "out", expected, folders=[spoilt(run, tmp_path / "run", name, change)])


@pytest.mark.parametrize("case", EVALS)
def test_a_spoilt_evaluation(case: str, evals: Path, tmp_path: Path) -> None:
    name, change, expected = EVALS[case]
    folder = spoilt(evals / "base", tmp_path / "base", name, change)
    refused(None, tmp_path / "out", expected, evals=[f"base={folder}"])


def arguments(run: Path, evals: Path, bench: Path, tmp: Path) -> dict[str, tuple[Arguments, str]]:
    base, dudi = evals / "base", evals / "dudi"
    other = reports.benchmark(tmp / "other", ("th", "my"))
    stranger = reports.simple(tmp / "stranger", other, 0.5)
    b = reports.read_benchmark(bench)
    shorter = reports.evaluation(tmp / "shorter", bench, {0: reports.answers(b, {"default": 0.5})[:-1]})
    return {
        "nothing": ({}, "nothing to report on"),
        "no output": ({"evals": [f"a={base}"], "output": None}, "give --output FOLDER"),
        "no such run": ({"folders": [tmp / "gone"]}, "no run folder"),
        "an evaluation as a run": ({"folders": [base]}, "is not the folder of a run"),
        "a run twice": ({"folders": [run, run.parent / "." / run.name]}, "is given twice"),
        "no such evaluation": ({"evals": [f"a={tmp / 'gone'}"]}, "evaluation 'a': no folder"),
        "a run as an evaluation": ({"evals": [f"a={run}"]}, "is no finished evaluation"),
        "no name": ({"evals": [str(base)]}, "expected NAME=FOLDER"),
        "an empty name": ({"evals": [f"={base}"]}, "expected NAME=FOLDER"),
        "a name twice": ({"evals": [f"a={base}", f"a={dudi}"]}, "two evaluations are called 'a'"),
        "two benchmarks": ({"evals": [f"a={base}", f"b={stranger}"]}, "evaluations of different benchmarks"),
        "other items": ({"evals": [f"a={base}", f"b={shorter}"]}, "asked different items (92 and 91)"),
        "no such baseline": (
            {"evals": [f"base={base}", f"dudi={dudi}"], "baseline": "bas"},
            "unknown evaluation: 'bas'; did you mean 'base'?",
        ),
        "a baseline of nothing": ({"folders": [run], "baseline": "base"}, "there are no evaluations"),
        "no benchmark": ({"evals": [f"a={base}"], "benchmark": tmp}, "no benchmark.json"),
        "another benchmark": ({"evals": [f"a={base}"], "benchmark": other}, "is not what the evaluations asked"),
        "a benchmark of nothing": ({"folders": [run], "benchmark": bench}, "there are none"),
    }


def test_arguments_that_do_not_fit(run: Path, evals: Path, bench: Path, tmp_path: Path) -> None:
    for given, expected in arguments(run, evals, bench, tmp_path).values():
        refused(None, tmp_path / "out", expected, **given)


def test_an_output_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    for target in (file, file / "inner"):
        with pytest.raises(DudiError, match="--output"):
            write_report([run], output=target)
    assert file.read_text(encoding="utf-8") == "mine"
