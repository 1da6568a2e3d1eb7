"""`dudi eval --import`: whose results, which runs fit together, what they become; conversations of several turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.seahelm import BEFORE, LAYOUTS, Made, Place, choice, paper_tasks, run, small, write
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.evals.seahelm.aggregate import Expected, leaderboard
from dudi.evals.seahelm.collect import read_results
from dudi.lock import locked

both = pytest.mark.parametrize("layout", LAYOUTS)
SENTIMENT = ("id", "nlu", "sentiment")


@both
def test_imports_are_compared_as_other_evaluations_are(tmp_path: Path, layout: str) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        files = [write(tmp_path / name, paper_tasks(10 * seed + r), layout, run=r) for r in (0, 1)]
        shown = run("--import", files[0], "--import", files[1], "--output", tmp_path / f"{name}.eval")
        assert "## per_run" in shown and "## paper7" in shown and "## leaderboard" in shown
    one, two = (str(tmp_path / f"{name}.eval" / "paper7") for name in ("one", "two"))
    compared = CliRunner().invoke(app, ["compare", f"one={one}", f"two={two}"])
    assert compared.exit_code == 0 and "two minus one" in compared.output, compared.output
    page = tmp_path / "report"
    shown = CliRunner().invoke(app, ["report", "--eval", f"one={one}", "--eval", f"two={two}", "--output", str(page)])
    assert shown.exit_code == 0, shown.exception
    assert "| Burmese (my) |" in (page / "report.md").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, ["compare", f"one={one}", f"two={tmp_path / 'two.eval' / 'per_run'}"])
    assert isinstance(again.exception, DudiError) and "benchmark.name" in str(again.exception)


def test_results_alone_give_tables(tmp_path: Path) -> None:
    file = tmp_path / "theirs.json"
    write(tmp_path / "made", paper_tasks()).rename(file)
    assert "| average |" in run("--import", file, "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out/paper7/table.json").read_text(encoding="utf-8"))["overall"]["mean"] > 0


def made_twice(tmp_path: Path, one: dict[Place, Made], two: dict[Place, Made]) -> list[str | Path]:
    """The options of an import of two runs."""
    files = [write(tmp_path, made, run=run) for run, made in enumerate((one, two))]
    return ["--import", files[0], "--import", files[1], "--output", tmp_path / "out"]


@pytest.mark.parametrize("first", [True, False])
def test_a_task_of_one_run_alone_is_missing_in_every_average(tmp_path: Path, first: bool) -> None:
    """Whichever run has it: the leaderboard as well must not average over what is left."""
    without = {place: made for place, made in small().items() if place != SENTIMENT}
    given = (small(), without) if first else (without, small())
    run(*made_twice(tmp_path, *given))
    for name in ("per_run/table.json", "leaderboard.json"):
        table = json.loads((tmp_path / "out" / name).read_text(encoding="utf-8"))
        assert table["by_task"]["id"]["sentiment"]["mean"] is None and table["overall"]["mean"] is None, name
        assert table["by_task"]["id"]["toxicity"]["mean"] is not None and len(table["refused"]) >= 1


def test_runs_that_were_asked_other_rows_are_no_runs_of_the_same(tmp_path: Path) -> None:
    fewer = small() | {SENTIMENT: choice("111011", "ABABAB")}
    with pytest.raises(DudiError, match=r"sentiment \(id\): .*run_1.* other rows \(6\) than .*run_0.* \(8\)"):
        run(*made_twice(tmp_path, small(), fewer))
    assert not (tmp_path / "out").exists()


def test_an_import_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, paper_tasks(seed)) for seed, name in enumerate(("a", "b")))
    small_one = write(tmp_path / "c", small() | {("id", "nlu", "novel"): choice("11110000")})
    line = ("--output", tmp_path / "out")
    run("--import", one, *line)
    run("--import", one, *line)  # the same again
    before = (tmp_path / "out/per_run/table.json").read_bytes()
    with pytest.raises(DudiError, match="holds an import of other results"):
        run("--import", two, *line)
    assert (tmp_path / "out/per_run/table.json").read_bytes() == before
    run("--import", small_one, *line, "--overwrite")
    assert (tmp_path / "out/paper7").is_dir()  # it has sentiment and if-eval
    with locked(tmp_path / "out"), pytest.raises(DudiError, match="in use by process"):
        run("--import", one, *line, "--overwrite")
    (tmp_path / "out/notes.txt").write_text("mine", encoding="utf-8")
    for more in ((), ("--overwrite",)):
        with pytest.raises(DudiError, match="holds something else"):
            run("--import", small_one, *line, *more)


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────
MT_BENCH = ("id", "multi-turn", "mt-bench")


def conversations(file: Path, wins: list[list[float]], answer: str) -> Path:
    """mt-bench as SEA-HELM before v1.2 writes it: a value for each turn, the model's answers among the messages."""
    rows = file.parent.parent / "inferences/id/mt-bench/student_mt-bench_id.jsonl"
    messages = [
        {"role": role, "content": text} for role, text in (("user", "Q1"), ("assistant", answer), ("user", "Q2"))
    ]
    lines = [
        {"conversations": messages, "responses": [answer, answer], "individual_scores": {"weighted_win_rate": one}}
        for one in wins
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_conversations_are_read_turn_by_turn_and_compared_whatever_the_model_said(tmp_path: Path) -> None:
    won = Made((True, False), (), None, "weighted_win_rate")
    files = []
    for name, answer in (("one", "Ya."), ("two", "Tidak.")):
        file = write(tmp_path / name, small() | {MT_BENCH: won}, BEFORE)
        files.append(conversations(file, [[1, 0.5], [0, 0.5]], answer))
    (task,) = (task for task in read_results(files[0]).tasks if task.task == "mt-bench")
    assert [row.value for row in task.rows] == [0.75, 0.25] and task.rows[0].turns == (1, 0.5)
    board = leaderboard("m", [read_results(files[0])], [Expected(*MT_BENCH, None)])
    assert board.overall.mean == pytest.approx(50)
    for name, file in zip(("one", "two"), files, strict=True):
        run("--import", file, "--output", tmp_path / f"{name}.eval")
    given = [f"{name}={tmp_path / f'{name}.eval' / 'per_run'}" for name in ("one", "two")]
    compared = CliRunner().invoke(app, ["compare", *given])
    assert compared.exit_code == 0, compared.exception


def test_what_does_not_belong_to_an_import_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, small())
    other = write(tmp_path, small(), model="other")
    for line, said in (
        ((file, "--checkout", tmp_path), "--checkout is no option of --import"),
        ((file, "--attention", "eager"), "--attention is no option of --import"),
        ((file, "--batch", "8"), "--batch is no option of --import"),
        ((file, "--import", file), "the same results file twice"),
        ((file, "--import", other), "results of 2 models"),
    ):
        with pytest.raises(DudiError, match=said):
            run("--import", *line)
    with pytest.raises(DudiError, match="leave MODEL out"):
        run("model", "--import", file)
    with pytest.raises(DudiError, match="--runs is no option of --with dudi"):
        run("model", "--runs", "3")
    with pytest.raises(DudiError, match="MODEL is missing"):
        run()
