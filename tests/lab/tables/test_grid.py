"""A grid of seconds a cell, really trained: killed and gone on with, by one job or two, and each cell by hand."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from kit.tables import SETS, write_lab
from rich.console import Console
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.lab.tables.command import Asked, tables
from dudi.lab.tables.lines import FILE, Line, Name, read
from dudi.lab.tables.runner import Task
from dudi.lab.tables.work import work

CELLS = ("dudi", "spin")
"""And the cold start that both start from."""
NAMES = {(f"qwen2.5-0.5b/{cell}", seed) for cell in ("sft", *CELLS) for seed in (0, 1)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lab(tmp_path_factory.mktemp("tables") / "lab")


class Here:
    """A job in this process."""

    done: ClassVar[list[Name]] = []

    def __init__(self, task: Task, benchmark: Path) -> None:
        self.done.append(task.job.name)
        work(task.job.folder, task.job.model, benchmark)

    def poll(self) -> int:
        return 0

    def terminate(self) -> None:
        """It has ended."""

    def wait(self) -> int:
        return 0


def run_here(lab: Path, output: Path, **changes: Any) -> list[Name]:
    """What was trained or asked."""
    Here.done = []
    asked = Asked(**{"output": output, "lab": lab, "changes": SETS, "only": CELLS, "seeds": 1, **changes})
    tables(asked, Console(file=io.StringIO()), Here)
    return Here.done


def contents(folder: Path) -> dict[Name, Any]:
    """All lines but for times, day and machine."""
    return {name: line.content for name, line in read(folder).items()}


def arguments(lab: Path, output: Path, jobs: int) -> list[str]:
    sets = [part for one in SETS for part in ("--set", one)]
    only = [part for one in CELLS for part in ("--only", one)]
    return [
        "lab",
        "tables",
        *only,
        "--seeds",
        "2",
        "--jobs",
        str(jobs),
        "--lab",
        str(lab),
        "--output",
        str(output),
        *sets,
    ]


def command(given: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "dudi", *given], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


# ── fast ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_cell_is_trained_from_its_cold_start_evaluated_and_printed(lab: Path, tmp_path: Path) -> None:
    first = run_here(lab, tmp_path, only=("gkd",))
    assert first == [("qwen2.5-0.5b/sft", 0), ("qwen2.5-0.5b/gkd", 0)]
    there = read(tmp_path)
    gkd, sft = there["qwen2.5-0.5b/gkd", 0], there["qwen2.5-0.5b/sft", 0]
    assert gkd.settings["start_weights"] == sft.weights != gkd.weights
    assert gkd.average is not None and set(gkd.languages) == {"id", "th", "en"} and gkd.overlap and not sft.overlap
    assert set(gkd.seconds) == {"1-gkd", "evaluation"} and set(sft.seconds) == {"1-sft", "evaluation"}
    assert "| GKD | " in (tmp_path / "findings.md").read_text(encoding="utf-8")
    before = (tmp_path / FILE).read_bytes()
    assert run_here(lab, tmp_path, only=("gkd",)) == [] and (tmp_path / FILE).read_bytes() == before
    with pytest.raises(DudiError, match=r"gkd, seed 0, was made with other settings \(recipe.training.lr: "):
        run_here(lab, tmp_path, only=("gkd",), seeds=2, changes=(*SETS, "training.lr=1e-5"))
    with pytest.raises(DudiError, match="unknown table, finding or cell: 'tabel2'; did you mean 'table2'"):
        run_here(lab, tmp_path, only=("tabel2",))


# ── slow ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def whole(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid by two jobs."""
    output = tmp_path_factory.mktemp("tables") / "two"
    run = command(arguments(lab, output, 2))
    said = run.communicate(timeout=600)[0].decode()
    assert run.returncode == 0 and f"findings: {output / 'findings.md'}" in said, said
    return output


@pytest.mark.slow
def test_one_job_gives_the_lines_of_two(lab: Path, whole: Path, tmp_path: Path) -> None:
    run = command(arguments(lab, tmp_path / "one", 1))
    assert run.wait(timeout=600) == 0
    assert set(read(whole)) == NAMES and contents(tmp_path / "one") == contents(whole)


@pytest.mark.slow
def test_a_grid_that_is_killed_goes_on(lab: Path, whole: Path, tmp_path: Path) -> None:
    """kill -9 once a line is there: its processes end with it, no cell is trained twice, the lines are the same."""
    output = tmp_path / "killed"
    first = command(arguments(lab, output, 2))
    until = time.monotonic() + 300
    while not read(output) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before: dict[Name, Line] = read(output)
    assert 0 < len(before) < len(NAMES)
    time.sleep(1)
    assert command(arguments(lab, output, 2)).wait(timeout=600) == 0
    after = read(output)
    assert {name: after[name] for name in before} == before, "with their times: not trained again"
    assert contents(output) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["sft", *CELLS])
def test_a_cell_by_hand_gives_the_same_numbers(whole: Path, lab: Path, tmp_path: Path, cell: str) -> None:
    folder = whole / "runs" / "qwen2.5-0.5b" / cell / "1"
    invoke = CliRunner().invoke
    run = invoke(app, ["run", str(folder / "recipe.toml"), "--output", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    model = sorted((tmp_path / "run").glob("[0-9]*/model"))[-1]
    evaluation = ["eval", str(model), "--benchmark", str(lab / "benchmark"), "--output", str(tmp_path / "eval")]
    assert invoke(app, evaluation).exit_code == 0
    table = json.loads((tmp_path / "eval" / "table.json").read_text(encoding="utf-8"))
    about = json.loads((tmp_path / "eval" / "eval.json").read_text(encoding="utf-8"))
    line = read(whole)[f"qwen2.5-0.5b/{cell}", 1]
    assert about["model"]["weights_sha256"] == line.weights
    assert table["overall"]["mean"] == line.average
    assert {l: one["mean"] for l, one in table["by_language"].items()} == line.languages


@pytest.mark.slow
def test_a_further_seed_trains_that_seed_alone(lab: Path, tmp_path: Path) -> None:
    run_here(lab, tmp_path, only=("dudi",), seeds=1)
    done = run_here(lab, tmp_path, only=("dudi",), seeds=2)
    assert done == [("qwen2.5-0.5b/sft", 1), ("qwen2.5-0.5b/dudi", 1)]
    assert run_here(lab, tmp_path, only=("teacher", "qwen2.5-1.5b/gkd"), seeds=2) == [("qwen2.5-0.5b/teacher", None)]
