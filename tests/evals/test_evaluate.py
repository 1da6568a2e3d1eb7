"""Whole evaluations: what is written, what is reused, what is refused, and the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.evals import DESCRIPTION, rows, save_model, write

from dudi import cli
from dudi.errors import DudiError
from dudi.evals import evaluate as module
from dudi.evals.aggregate import aggregate
from dudi.evals.bench import read_benchmark
from dudi.evals.evaluate import default_output, evaluate
from dudi.evals.spread import with_intervals
from dudi.lock import locked
from dudi.records import GradedAnswer, TaskScore
from dudi.text.template import keywords

FILES = ["eval.json", "responses-0.jsonl", "scores.jsonl", "table.json", "table.md"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "m", 3, tied=False)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write(tmp_path / "bench")


def silent(text: str) -> None:
    pass


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def never(*args: Any) -> Any:
    raise AssertionError("a model is loaded")


# ── a model ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_what_is_written(model: str, bench: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    table = evaluate(model, bench, out, batch=5, say=silent, progress=lambda done, total: seen.append((done, total)))
    assert sorted(f.name for f in out.iterdir()) == FILES
    assert seen == [(5, 12), (10, 12), (12, 12)]
    record = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    assert record["model"]["path"] == model and len(record["model"]["weights_sha256"]) == 64
    sha256 = read_benchmark(bench).sha256
    assert record["benchmark"] == {"path": str(bench), "name": "small", "version": 1, "sha256": sha256}
    assert record["decoding"] == {
        "temperature": 0, "seeds": [0], "batch": 5, "limit": None, "dtype": "float32", "attention": None,
        "template_sha256": None, "chat_kwargs": {}, "engine": "local",
    }  # fmt: skip
    assert set(record["versions"]) == {"dudi", "torch", "transformers", "sacrebleu", "py3langid"}
    assert record["model"]["generation_config"]["eos_token_id"] == 2
    responses = lines(out / "responses-0.jsonl")
    assert [line["id"] for line in responses] == [row["id"] for row in rows()]
    assert set(responses[0]) == {
        "id", "task", "language", "response", "tokens", "finished", "value", "prediction", "in_language",
    }  # fmt: skip
    scores = [TaskScore(**line) for line in lines(out / "scores.jsonl")]
    assert len(scores) == 9 and {s.model for s in scores} == {model}
    graded = [GradedAnswer(**line) for line in responses]
    assert with_intervals(aggregate(scores, read_benchmark(bench)), scores, [graded], read_benchmark(bench)) == table
    assert json.loads((out / "table.json").read_text()) == json.loads(json.dumps(table.as_dict()))
    assert "| average |" in (out / "table.md").read_text(encoding="utf-8")


def test_the_same_again_is_the_same_files_and_loads_no_model(
    model: str, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, bench, tmp_path / "one", say=silent)
    evaluate(model, bench, tmp_path / "two", say=silent)
    before = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == before
    monkeypatch.setattr(module, "load_responder", never)
    said: list[str] = []
    evaluate(model, bench, tmp_path / "one", say=said.append)
    assert contents(tmp_path / "one") == before
    assert said == ["small: the 12 answers of seed 0 are there already"]


def test_a_model_that_has_moved_is_the_same(
    model: str, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, bench, tmp_path / "out", say=silent)
    shutil.copytree(model, tmp_path / "moved")
    bench = bench.rename(tmp_path / "bench moved")
    monkeypatch.setattr(module, "load_responder", never)
    evaluate(str(tmp_path / "moved"), bench, tmp_path / "out", say=silent)


def test_seeds_are_added_to_those_that_are_there(model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(model, bench, out, seeds=(1,), temperature=1.5, say=silent)
    first = (out / "responses-1.jsonl").read_bytes()
    said: list[str] = []
    table = evaluate(model, bench, out, seeds=(1, 2), temperature=1.5, say=said.append)
    assert said[0].endswith("seed 1 are there already") and "temperature 1.5, seed 2" in said[1]
    assert (out / "responses-1.jsonl").read_bytes() == first != (out / "responses-2.jsonl").read_bytes()
    assert table.seeds == (1, 2) and len(lines(out / "scores.jsonl")) == 18
    assert table.overall.spread is not None
    both = tmp_path / "both"
    evaluate(model, bench, both, seeds=(1, 2), temperature=1.5, say=silent)
    assert contents(both) == contents(out)


def test_answers_that_were_cut_off_are_asked_again(model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(model, bench, out, say=silent)
    before = contents(out)
    file = out / "responses-0.jsonl"
    for broken in (before[file.name][:-30], b"", b"".join(before[file.name].splitlines(keepends=True)[1:])):
        file.write_bytes(broken)
        said: list[str] = []
        evaluate(model, bench, out, say=said.append)
        assert said == ["small: 12 items, greedy, cpu in float32"] and contents(out) == before


def test_a_value_that_was_changed_by_hand_is_not_believed(model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(model, bench, out, say=silent)
    before = contents(out)
    changed = [{**line, "value": 1.0} for line in lines(out / "responses-0.jsonl")]
    (out / "responses-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    evaluate(model, bench, out, say=silent)
    assert contents(out) == before


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 0.5}, "decoding.temperature is 0.0 there, and 0.5 here"),
    "batch": ({"batch": 3}, "decoding.batch is 64 there, and 3 here"),
    "limit": ({"limit": 1}, "decoding.limit is None there, and 1 here"),
    "chat": ({"chat_kwargs": {"a": 1}}, "decoding.chat_kwargs is {} there"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_refused(name: str, model: str, bench: Path, tmp_path: Path) -> None:
    changes, said = OTHERS[name]
    out = tmp_path / "out"
    evaluate(model, bench, out, say=silent)
    before = contents(out)
    with pytest.raises(DudiError) as refused:
        evaluate(model, bench, out, say=silent, **changes)
    assert said in str(refused.value) and "--overwrite" in str(refused.value)
    assert contents(out) == before
    evaluate(model, bench, out, say=silent, overwrite=True, **changes)
    fresh = tmp_path / "fresh"
    evaluate(model, bench, fresh, say=silent, **changes)
    assert contents(out) == contents(fresh)


def test_another_model_template_and_benchmark_are_refused(model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(model, bench, out, say=silent)
    other = save_model(tmp_path / "other", 4)
    with pytest.raises(DudiError, match=r"model\.weights_sha256 is '.*' there"):
        evaluate(other, bench, out, say=silent)
    (tmp_path / "t.jinja").write_text(kit.CHATML + " ")
    with pytest.raises(DudiError, match=r"decoding\.template_sha256 is None there"):
        evaluate(model, bench, out, say=silent, template=tmp_path / "t.jinja")
    write(bench, {**DESCRIPTION, "version": 2})
    with pytest.raises(DudiError, match=r"benchmark\.version is 1 there, and 2 here"):
        evaluate(model, bench, out, say=silent)


def test_overwrite_takes_only_what_is_ours(model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(model, bench, out, seeds=(4,), temperature=1.0, say=silent)
    (out / "notes.txt").write_text("mine")
    evaluate(model, bench, out, say=silent, overwrite=True)
    assert sorted(f.name for f in out.iterdir()) == sorted([*FILES, "notes.txt"])


def test_a_folder_that_another_process_writes_to_is_refused(model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    with locked(out), pytest.raises(DudiError, match=r"out' is in use by process \d+ .*another folder with --output"):
        evaluate(model, bench, out, say=silent, overwrite=True)
    assert not out.parent.exists()
    evaluate(model, bench, out, say=silent)
    before = contents(out)
    with locked(out), pytest.raises(DudiError, match="in use"):
        evaluate(model, bench, out, say=silent, overwrite=True)
    assert contents(out) == before


def test_a_folder_of_something_else_is_refused(model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    evaluate(model, bench, out, limit=2, say=silent)  # an empty one is fine
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.md").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DudiError, match="holds something else than an evaluation"):
            evaluate(model, bench, tmp_path / "mine", say=silent, overwrite=overwrite)
    with pytest.raises(DudiError, match="is a file"):
        evaluate(model, bench, tmp_path / "mine" / "table.md", say=silent)
    with pytest.raises(DudiError, match=r"cannot be locked: Not a directory"):
        evaluate(model, bench, tmp_path / "mine" / "table.md" / "out", say=silent)


def test_a_limit_that_leaves_one_label_makes_the_task_missing(model: str, bench: Path, tmp_path: Path) -> None:
    table = evaluate(model, bench, tmp_path / "out", limit=1, say=silent)
    assert table.overall.mean is None
    assert table.refused[0].startswith("mood, id: the right choice is the same in all 1 items")
    assert table.by_competency["th"]["rules"].mean is not None
    assert len(lines(tmp_path / "out" / "responses-0.jsonl")) == 9


def test_a_template_of_ones_own(bench: Path, tmp_path: Path) -> None:
    bare = kit.save(tmp_path / "m", kit.model(1, dtype=torch.float32), kit.tokenizer(template=None))
    out = tmp_path / "out"
    with pytest.raises(DudiError, match=r"no chat template"):
        evaluate(bare, bench, out, say=silent)
    assert not out.exists()
    (tmp_path / "t.jinja").write_text(kit.CHATML)
    evaluate(bare, bench, out, say=silent, template=tmp_path / "t.jinja")
    assert json.loads((out / "eval.json").read_text())["decoding"]["template_sha256"]


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1.0}, "temperature: expected 0 (greedy) or a positive number, found -1.0"),
    ({"temperature": float("nan")}, "temperature: expected 0 (greedy)"),
    ({"seeds": (0, 1)}, "greedy decoding draws nothing"),
    ({"seeds": (3,)}, "greedy decoding draws nothing"),
    ({"seeds": (1, 1), "temperature": 1.0}, "seeds: expected different whole numbers"),
    ({"seeds": (), "temperature": 1.0}, "seeds: expected different whole numbers"),
    ({"seeds": (-1,), "temperature": 1.0}, "seeds: expected different whole numbers"),
    ({"batch": 0}, "batch: expected a positive whole number, found 0"),
    ({"limit": 0}, "limit: expected a positive whole number, found 0"),
    ({"model": "nowhere"}, "no model folder 'nowhere'"),
    ({"benchmark": Path("nowhere")}, "no benchmark in 'nowhere'"),
    ({"template": Path("nowhere")}, "nowhere: cannot be read"),
]


@pytest.mark.parametrize("changes, said", ARGUMENTS, ids=lambda case: str(case)[:40])
def test_bad_arguments(changes: dict[str, Any], said: str, model: str, bench: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": model, "benchmark": bench, "output": tmp_path / "out", "say": silent}
    with pytest.raises(DudiError) as refused:
        evaluate(**{**arguments, **changes})
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_run_folder_is_pointed_into(model: str, bench: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "1-cold-start" / "model")
    shutil.copytree(model, run / "2-dudi" / "model")
    with pytest.raises(DudiError, match=r"holds no weights.*it is a run's folder: give '.*run/2-dudi/model'"):
        evaluate(str(run), bench, tmp_path / "out", say=silent)


def test_default_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_output("a/m", "b") == Path("a/m.eval/b") == default_output("a/m/", "b")
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path / "m")
    assert default_output(".", "b") == tmp_path / "m.eval" / "b"


def test_keywords() -> None:
    found = keywords(["enable_thinking=false", "n=3", "date_string=26 Jul 2024", "x=", "y=a=b"])
    assert found == {"enable_thinking": False, "n": 3, "date_string": "26 Jul 2024", "x": "", "y": "a=b"}
    for bad in ("x", "=1", "a b=1"):
        with pytest.raises(DudiError, match="expected key=value"):
            keywords([bad])


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def dudi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`dudi`, called in this process: exit status, standard output and error."""

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dudi", *argv])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_the_command(model: str, bench: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    done = subprocess.run(
        [sys.executable, "-m", "dudi", "eval", str(tmp_path / "m"), "--benchmark", str(bench)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "small: 12 items, greedy, cpu in float32" in done.stdout
    assert "without nlg" in done.stdout and "average" in done.stdout
    assert f"evaluation folder: {tmp_path / 'm.eval' / 'small'}" in done.stdout
    assert sorted(f.name for f in (tmp_path / "m.eval" / "small").iterdir()) == FILES


def test_the_options_reach_the_evaluation(dudi: Any, model: str, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "t.jinja").write_text(kit.CHATML)
    seeds = ("--seed", "4", "--seed", "5", "--temperature", "0.7", "--batch", "3", "--limit", "2")
    more = ("--template", str(tmp_path / "t.jinja"), "--chat", "enable_thinking=false", "--attention", "eager")
    status, text, error = dudi("eval", model, "--benchmark", str(bench), "--output", str(out), *seeds, *more)
    assert (status, error) == (0, "") and "decoding seeds (4, 5)" in text
    decoding = json.loads((out / "eval.json").read_text())["decoding"]
    assert decoding.pop("template_sha256") and decoding == {
        "temperature": 0.7, "seeds": [4, 5], "batch": 3, "limit": 2, "dtype": "float32",
        "attention": "eager",
        "chat_kwargs": {"enable_thinking": False}, "engine": "local",
    }  # fmt: skip
    assert dudi("eval", model, "--benchmark", str(bench), "--output", str(out))[0] == 2
    assert dudi("eval", model, "--benchmark", str(bench), "--output", str(out), "--overwrite")[0] == 0


def test_bad_input_is_one_line_and_status_2(dudi: Any, model: str, bench: Path, tmp_path: Path) -> None:
    cases = [
        (("eval", "nowhere"), "dudi: model: no folder 'nowhere'"),
        (("eval", model, "--benchmark", "nowhere"), "dudi: no benchmark in 'nowhere'"),
        (("eval", "nowhere", "--benchmark", str(bench)), "dudi: no model folder 'nowhere'"),
        (("eval", model, "--benchmark", str(bench), "--seed", "1"), "dudi: greedy decoding draws nothing"),
        (("eval", model, "--benchmark", str(bench), "--chat", "x"), "dudi: --chat 'x': expected key=value"),
    ]
    for argv, said in cases:
        status, text, error = dudi(*argv)
        assert (status, text) == (2, ""), error
        assert error.startswith(said) and len(error.splitlines()) == 1
    assert not Path(f"{model}.eval").exists()


def test_help_loads_no_torch() -> None:
    code = "import sys, dudi.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "sacrebleu", "py3langid"} & set(done.stdout.split()) == set()
