"""The real SEA-HELM, asked and scoring: known answers, its own totals, its own notebook, a student of the lab."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kit.lab import lab_student

from dudi.evals.answers import Answer
from dudi.evals.bench import Benchmark
from dudi.evals.seahelm.checkout import Checkout
from dudi.evals.seahelm.drive import Drive
from dudi.evals.seahelm.prompts import read_plan
from dudi.evals.seahelm.write import write_scores
from dudi.records import AskedModel, Decoding, Item

pytestmark = pytest.mark.seahelm
ROWS = 48
"""Of each task: enough for every label to occur in all of them."""
V12 = "6844e6c"


@dataclass
class Script:
    """Answers right in a share of the rows that depends on task and language."""

    checkout: Checkout
    data: dict[tuple[str, str], str]
    asked: list[str] = field(default_factory=list)
    stop_after: int | None = None

    def too_long(self, items: Sequence[Item], benchmark: Benchmark) -> list[str]:
        return []

    def answer(
        self, items: Sequence[Item], benchmark: Benchmark, seed: int, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        language, task = items[0].language, items[0].task
        self.asked.append(f"{seed}/{language}/{task}")
        labels = self.labels(language, task, len(items))
        wrong = {label: next((l for l in sorted(set(labels)) if l != label), "?") for label in set(labels)}
        right = self.right(language, task, seed, len(items))
        return [Answer(label if ok else wrong[label], 3, True) for label, ok in zip(labels, right, strict=True)]

    def labels(self, language: str, task: str, rows: int) -> list[str]:
        kind = task.rpartition("_")[2]
        lines = Path(self.checkout.folder, self.data[language, task]).read_text(encoding="utf-8").splitlines()
        found = []
        for line in lines[:rows]:
            row = json.loads(line)
            found.append(str(row["label"] if "label" in row else row[f"{kind}_label"]))
        return found

    @staticmethod
    def right(language: str, task: str, run: int, rows: int) -> list[bool]:
        step = 2 + (sum(map(ord, language + task)) + run) % 5
        return [(k + run) % step != 0 for k in range(rows)]

    def known(self, language: str, task: str, run: int, rows: int) -> float:
        """The score that SEA-HELM has to find: balanced accuracy with chance taken off."""
        labels = self.labels(language, task, rows)
        every = Counter(labels)
        hits = Counter(l for l, ok in zip(labels, self.right(language, task, run, rows), strict=True) if ok)
        balanced = math.fsum(hits[l] / every[l] for l in every) / len(every)
        chance = 1 / len(every)
        return 100 * max((balanced - chance) / (1 - chance), 0)


def drive_of(checkout: Checkout, names: Sequence[str], out: Path, runs: int, weights: str, said: list[str]) -> Drive:
    return Drive(
        model=AskedModel("students/model", weights, "files", None),
        checkout=checkout,
        names=tuple(names),
        runs=tuple(range(runs)),
        limit=ROWS,
        decoding=Decoding(0.7, tuple(range(runs)), 64, ROWS, "float32", None, None, {}),
        versions={"dudi": "1"},
        output=out,
        say=said.append,
    )


def names_of(checkout: Checkout) -> list[str]:
    """Sets that a checkout has the data of. Before v1.2 Global MMLU Lite is 43 tasks, weighted by rows: two of them."""
    if checkout.commit.startswith(V12):
        return ["global_mmlu_lite", "paraphrase", "sea_safeguard"]
    subjects = [f"global_mmlu_lite_{name}" for name in ("business_ethics", "virology")]
    return [*subjects, "paraphrase", "safeguard_general_prompt"]


def test_known_answers_have_their_known_scores_and_nothing_is_done_twice(checkout: Checkout, tmp_path: Path) -> None:
    names, said, runs = names_of(checkout), [], 2
    plan = read_plan(checkout, names, tmp_path / "plan.log")
    script = Script(checkout, {cell.key: cell.data for cell in plan.cells}, stop_after=9)
    drive = drive_of(checkout, names, tmp_path / "out", runs, "a" * 64, said)
    with pytest.raises(KeyboardInterrupt):  # killed while it answers
        drive.run(lambda: script, False)
    script.stop_after = None
    scored = drive.run(lambda: script, False)
    assert len(script.asked) == len(set(script.asked)) == runs * len(plan.cells)

    for run, results in scored.runs.items():
        assert {task.key for task in results.tasks} == {cell.key for cell in plan.cells}
        for task in results.tasks:
            assert task.score == pytest.approx(script.known(*task.key, run, len(task.rows)), abs=1e-9), task.key
    found = [round(task.score or 0, 6) for task in scored.runs[0].tasks]
    assert len(set(found)) > 5 and max(found) - min(found) > 20  # they do differ

    tables = write_scores(drive.folder, scored, False)
    own = [json.loads(results.file.read_text(encoding="utf-8")) for results in scored.runs.values()]
    mean = tables["per_run"]
    assert mean.refused == ()
    assert mean.overall.mean == pytest.approx(sum(one["total"] for one in own) / runs, abs=1e-9)
    for language, average in mean.by_language.items():
        assert average.mean == pytest.approx(sum(one[language]["total"] for one in own) / runs, abs=1e-9)
        for competency, cell in mean.by_competency[language].items():
            theirs = sum(one[language][competency]["total"] for one in own) / runs
            assert cell.mean == pytest.approx(theirs, abs=1e-9)

    before = {file: file.stat().st_mtime_ns for file in drive.folder.rglob("run_*/*/*") if file.is_file()}
    said.clear()
    again = drive.run(lambda: pytest.fail("asked again"), False)
    assert said == [f"run {run}: scored already" for run in range(runs)]
    assert again.runs == scored.runs
    assert {file: file.stat().st_mtime_ns for file in before} == before

    _half_scored(drive, said)
    same = notebook(checkout, drive)
    board = tables["leaderboard"]
    assert board.overall.mean == pytest.approx(same["mean"], abs=1e-9)
    for language, average in board.by_language.items():
        assert average.mean == pytest.approx(same[language]["mean"], abs=1e-9)


def _half_scored(drive: Drive, said: list[str]) -> None:
    """Killed while SEA-HELM scores: what it has scored is not scored again."""
    (drive.folder / "scored" / "run_0.json").unlink()
    kept = sorted((drive.folder / "scored" / "run_0").rglob("*.json"))
    for file in kept[:3]:
        file.unlink()
    said.clear()
    drive.run(lambda: pytest.fail("asked again"), False)
    assert len([line for line in said if line.endswith(": scored")]) == 3
    assert f"{len(kept) - 3} of them are scored already" in said[0]


def notebook(checkout: Checkout, drive: Drive) -> dict[str, Any]:
    """What the functions of SEA-HELM's own notebook make of these folders, in SEA-HELM's Python."""
    cells = json.loads((checkout.folder / "helpers/results_aggregation.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells[:4])
    call = f"""
class Pool1:
    starmap = staticmethod(lambda f, rows: [f(*row) for row in rows])
import json
configs, data = load_task_scores({str(drive.output)!r}, {drive.key!r}, {len(drive.runs)}, Pool1)
print(json.dumps(aggregate_scores(configs, data)[0]))
"""
    done = subprocess.run([checkout.python, "-"], input=code + call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_students_with_one_folder_name_share_no_answers(checkout: Checkout, tmp_path: Path) -> None:
    data = {cell.key: cell.data for cell in read_plan(checkout, ["paraphrase"], tmp_path / "plan.log").cells}
    asked = []
    for weights in ("a" * 64, "b" * 64):
        script = Script(checkout, data)
        drive_of(checkout, ["paraphrase"], tmp_path / "out", 1, weights, []).run(lambda s=script: s, False)
        asked.append(script.asked)
    assert asked[0] == asked[1] and len(asked[0]) == 2
    assert len([folder for folder in (tmp_path / "out").iterdir() if folder.is_dir()]) == 2


def test_a_student_of_the_lab_is_asked_through_our_sampler(checkout: Checkout, tmp_path: Path) -> None:
    """Killed after its first answers, and started again twice."""
    dudi, out = [sys.executable, "-m", "dudi"], tmp_path / "out"
    line = [*dudi, "eval", lab_student(tmp_path / "student-small"), "--with", "seahelm", "--checkout", checkout.folder]
    line += ["--python", checkout.python, "--tasks", "paraphrase", "--limit", "4", "--output", out]
    line = list(map(str, [*line, "--runs", "2", "--temperature", "0.7"]))
    killed = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list(out.glob("*/answers/*/*/*.json")):
        time.sleep(0.1)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    answered = {file: file.stat().st_mtime_ns for file in out.glob("*/answers/*/*/*.json")}
    first, again = (subprocess.run(line, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "## per_run" in first.stdout and first.stdout.count("4 answers") == 4 - len(answered) < 4
    assert {file: file.stat().st_mtime_ns for file in answered} == answered
    assert "answers" not in again.stdout.split("## per_run")[0] and again.stdout.count("scored already") == 2
    assert first.stdout.split("## per_run")[1] == again.stdout.split("## per_run")[1]
    (student,) = (folder for folder in out.iterdir() if folder.is_dir())
    results = next(student.glob("run_0/results/*.json"))
    read = subprocess.run(
        [*dudi, "eval", "--import", str(results), "--output", str(tmp_path / "read")], capture_output=True, text=True
    )
    assert read.returncode == 0 and "## per_run" in read.stdout, read.stderr
