"""A student asked and scored through SEA-HELM: nothing twice, nothing shared, nothing cut. SEA-HELM is the kit's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kit.evals import save_model
from kit.seahelm import OurSeaHelm, run
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.evals.answers import Answer
from dudi.evals.bench import Benchmark
from dudi.evals.seahelm import command
from dudi.evals.seahelm.checkout import open_checkout
from dudi.evals.seahelm.drive import Drive
from dudi.lock import locked
from dudi.records import AskedModel, Decoding, Item

TASKS = {("id", "sentiment"): 4, ("th", "sentiment"): 6, ("id", "nli"): 4}


class Asker:
    """Answers A, and stops after so many tasks."""

    def __init__(self, stop_after: int | None = None, long: str = "") -> None:
        self.asked: list[str] = []
        self.stop_after, self.long = stop_after, long

    def too_long(self, items: Sequence[Item], benchmark: Benchmark) -> list[str]:
        return ["item x is too long"] * 2 if items[0].task == self.long else []

    def answer(
        self, items: Sequence[Item], benchmark: Benchmark, seed: int, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(f"{seed}/{items[0].language}/{items[0].task}")
        if done:
            done(len(items))
        return [Answer("A", 1, True)] * len(items)


def drive(
    sea: Any, out: Path, weights: str = "a" * 64, temperature: float = 0.5, said: list[str] | None = None
) -> Drive:
    return Drive(
        AskedModel("runs/model", weights, "f", None), sea, ("seahelm",), (0, 1), None,
        Decoding(temperature, (0, 1), 64, None, "float32", None, None, {}), {"dudi": "1"}, out,
        (said if said is not None else []).append,
    )  # fmt: skip


# ── nothing twice ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_killed_while_it_answers_it_asks_only_what_is_left(tmp_path: Path) -> None:
    sea, first, second = OurSeaHelm(TASKS), Asker(stop_after=4), Asker()
    with pytest.raises(KeyboardInterrupt):
        drive(sea, tmp_path).run(lambda: first, False)
    drive(sea, tmp_path).run(lambda: second, False)
    assert len(first.asked) == 4 and len(second.asked) == 2
    assert sorted({*first.asked, *second.asked}) == sorted(f"{r}/{l}/{t}" for r in (0, 1) for l, t in TASKS)
    assert sea.calls.count("prompts") == 1


def test_killed_while_sea_helm_scores_it_scores_only_what_is_left(tmp_path: Path) -> None:
    sea, asker = OurSeaHelm(TASKS, stop_after=4), Asker()
    with pytest.raises(KeyboardInterrupt):
        drive(sea, tmp_path).run(lambda: asker, False)
    sea.stop_after = None
    drive(sea, tmp_path).run(lambda: pytest.fail("asked again"), False)
    assert len(sea.scored) == len(set(sea.scored)) == 6
    said: list[str] = []
    before = sea.calls.copy()
    again = drive(sea, tmp_path, said=said).run(lambda: pytest.fail("asked again"), False)
    assert sea.calls == [*before, "plan"] and said == ["run 0: scored already", "run 1: scored already"]
    assert again.runs[1].tasks[0].score == 100 and len(again.answers) == 6


def test_answers_that_were_changed_are_scored_anew(tmp_path: Path) -> None:
    sea = OurSeaHelm(TASKS)
    one = drive(sea, tmp_path)
    one.run(Asker, False)
    file = one.folder / "answers/run_1/th/sentiment.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"A"', '"B"'), encoding="utf-8")
    sea.scored.clear()
    one.run(lambda: pytest.fail("asked again"), False)
    assert sea.scored == ["1/th/sentiment"]


DAMAGED = {
    "scored/run_1.json": [],
    "scored/run_0/th/sentiment.json": ["0/th/sentiment"],
    "prompts/cells.jsonl": [],
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("by", ["cut", "emptied", "other"])
def test_a_damaged_record_costs_its_own_work_and_no_more(tmp_path: Path, name: str, by: str) -> None:
    sea = OurSeaHelm(TASKS)
    one = drive(sea, tmp_path)
    first = one.run(Asker, False)
    file = one.folder / name
    text = file.read_text(encoding="utf-8")
    file.write_text({"cut": text[: len(text) // 2], "emptied": "", "other": "[3]\n"}[by], encoding="utf-8")
    sea.scored.clear()
    again = one.run(lambda: pytest.fail("asked again"), False)
    assert sea.scored == DAMAGED[name]
    assert [run.tasks for run in again.runs.values()] == [run.tasks for run in first.runs.values()]
    assert again.expected == first.expected


def test_prompts_that_were_changed_are_not_asked(tmp_path: Path) -> None:
    sea = OurSeaHelm(TASKS)
    one = drive(sea, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        one.run(lambda: Asker(stop_after=0), False)
    file = one.folder / "prompts/id/sentiment.jsonl"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("A?", "B?", 1), encoding="utf-8")
    with pytest.raises(DudiError, match=r"sentiment\.jsonl: not the 4 prompts that were made; delete the file"):
        one.run(Asker, False)
    file.unlink()
    one.run(Asker, False)
    assert file.read_text(encoding="utf-8") == text


def test_what_failed_is_tried_again_and_is_missing_until_then(tmp_path: Path) -> None:
    sea = OurSeaHelm(TASKS, broken=frozenset({"nli"}))
    scored = drive(sea, tmp_path).run(Asker, False)
    assert [task.task for task in scored.runs[0].tasks if task.missing] == ["nli"]
    sea.broken = frozenset()
    sea.scored.clear()
    scored = drive(sea, tmp_path).run(lambda: pytest.fail("asked again"), False)
    assert sea.scored == ["0/id/nli", "1/id/nli"] and all(not task.missing for task in scored.runs[0].tasks)


def test_data_that_are_not_reached_leave_the_other_tasks_alone(tmp_path: Path) -> None:
    sea = OurSeaHelm(TASKS, unreachable=frozenset({"nli"}))
    scored = drive(sea, tmp_path).run(Asker, False)
    assert {task.key for task in scored.runs[0].tasks} == {("id", "sentiment"), ("th", "sentiment")}
    (why,) = (one.why for one in scored.expected if one.task == "nli")
    assert why == "no prompts: ConnectionError: the hub cannot be reached"
    sea.unreachable = frozenset()
    assert len(drive(sea, tmp_path).run(Asker, False).runs[0].tasks) == 3


# ── nothing shared, nothing cut ──────────────────────────────────────────────────────────────────────────────────────
def test_two_students_with_one_folder_name_share_no_answers(tmp_path: Path) -> None:
    sea, one, two = OurSeaHelm(TASKS), Asker(), Asker()
    drive(sea, tmp_path, "a" * 64).run(lambda: one, False)
    drive(sea, tmp_path, "b" * 64).run(lambda: two, False)
    assert one.asked == two.asked and len(one.asked) == 6
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["a" * 16, "b" * 16]


def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    sea = OurSeaHelm(TASKS)
    drive(sea, tmp_path).run(Asker, False)
    for other, said in (
        (drive(sea, tmp_path, temperature=0.9), "decoding.temperature is 0.5 there, and 0.9 here"),
        (drive(OurSeaHelm(TASKS, commit="41cbb6a" + "0" * 33), tmp_path), "checkout is '6844e6c' there"),
    ):
        with pytest.raises(DudiError, match=said):
            other.run(Asker, False)
    about = drive(sea, tmp_path).folder / "about.json"
    whole = about.read_text(encoding="utf-8")
    for spoilt, said in (("[]", "expected a table"), (whole[:20], "not valid JSON"), ('{"model": 3}', "model.weights")):
        about.write_text(spoilt, encoding="utf-8")
        with pytest.raises(DudiError, match=said):
            drive(sea, tmp_path).run(Asker, False)
    again = Asker()
    drive(sea, tmp_path, temperature=0.9).run(lambda: again, True)
    assert len(again.asked) == 6


def test_a_task_with_a_prompt_that_is_too_long_is_refused_as_a_whole(tmp_path: Path) -> None:
    sea, asker = OurSeaHelm(TASKS), Asker(long="nli")
    scored = drive(sea, tmp_path).run(lambda: asker, False)
    (lost,) = (one for one in scored.expected if one.why)
    assert lost.task == "nli" and lost.rows == 4
    assert lost.why == "refused: 2 of 4 prompts cannot be asked: item x is too long"
    assert not any(name.endswith("nli") for name in asker.asked + sea.scored)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def sea(monkeypatch: pytest.MonkeyPatch) -> OurSeaHelm:
    found = OurSeaHelm(TASKS)
    monkeypatch.setattr(command, "open_checkout", lambda folder, python: found)
    return found


def test_our_sampler_answers_and_compare_reads_it(sea: OurSeaHelm, tmp_path: Path) -> None:
    models = [save_model(tmp_path / str(seed) / "model", seed) for seed in (1, 2)]
    out = tmp_path / "out"
    for model in models:
        shown = run(model, "--with", "seahelm", "--tasks", "paraphrase", "--output", out)
        assert "run 0, th, sentiment: 6 answers" in shown and "| average |" in shown
    folders = sorted(out.iterdir())
    assert len(folders) == 2
    with locked(folders[0]), pytest.raises(DudiError, match=f"{folders[0].name}' is in use by process"):
        for model in models:  # the other one is nobody's
            run(model, "--with", "seahelm", "--tasks", "paraphrase", "--output", out, "--overwrite")
    answers = json.loads((folders[0] / "answers/run_0/th/sentiment.json").read_text(encoding="utf-8"))["answers"]
    assert len(answers) == 6 and all(0 < one["tokens"] <= 3 for one in answers)
    rows = (folders[0] / "per_run/responses-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(row)["tokens"] for row in rows[-6:]) == sum(one["tokens"] for one in answers)
    compared = CliRunner().invoke(app, ["compare", *(f"m{n}={f / 'per_run'}" for n, f in enumerate(folders))])
    assert compared.exit_code == 0 and "m1 minus m0" in compared.output, compared.output


def test_prompts_that_exceed_the_models_positions_are_counted(sea: OurSeaHelm, tmp_path: Path) -> None:
    sea.prompt = "kata " * 40
    model = save_model(tmp_path / "model")
    config = Path(model, "config.json")
    table = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 32}
    config.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(DudiError, match=r"nothing to score: refused: 4 of 4 prompts cannot be asked: .*model's 32"):
        run(model, "--with", "seahelm", "--output", tmp_path / "out")


def test_a_student_without_a_task_is_compared_with_one_that_has_it(sea: OurSeaHelm, tmp_path: Path) -> None:
    models = [save_model(tmp_path / str(seed) / "model", seed) for seed in (1, 2)]
    run(models[0], "--with", "seahelm", "--output", tmp_path / "out")
    sea.broken = frozenset({"nli"})
    shown = run(models[1], "--with", "seahelm", "--output", tmp_path / "out")
    assert "nli, id: SEA-HELM failed to score it" in shown
    found = [f"{n}={folder / 'per_run'}" for n, folder in enumerate(sorted((tmp_path / "out").iterdir()))]
    compared = CliRunner().invoke(app, ["compare", *found])
    assert compared.exit_code == 0 and "nli, id" in compared.output, compared.exception


# ── checkouts ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A git repository with SEA-HELM's files, but nothing in them."""
    found = tmp_path / "SEA-HELM"
    for name in ("src/seahelm_evaluation.py", "seahelm_tasks/task_config.yaml", "seahelm_tasks/constants.yaml"):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text("", encoding="utf-8")
    pins = '[project]\ndependencies = ["omegaconf==2.4.0.dev3", "scikit-learn==1.8.0"]\n'
    (found / "pyproject.toml").write_text(pins, encoding="utf-8")
    git = ["git", "-C", str(found), "-c", "user.name=n", "-c", "user.email=e"]
    for line in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "m"]):
        subprocess.run([*git, *line], check=True)
    return found


def test_a_checkout_says_its_version_and_that_it_was_changed(folder: Path) -> None:
    clean = open_checkout(folder, None)
    assert len(clean.commit) == 40 and clean.version == clean.commit[:7]
    assert "dudi has been run with 6844e6c and 41cbb6a only" in clean.remark
    (folder / "src/seahelm_evaluation.py").write_text("pass\n", encoding="utf-8")
    assert open_checkout(folder, None).version == f"{clean.commit[:7]}+"


def test_a_python_without_its_packages_is_told_which_with_their_versions(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DudiError, match=r"lacks .*omegaconf.*-m pip install .*'omegaconf==2\.4\.0\.dev3'"):
        run("--with", "seahelm", "--prepare", "--checkout", folder, "--python", sys.executable)
    with pytest.raises(DudiError, match="--python '/no/python': No such file"):
        run("--with", "seahelm", "--prepare", "--checkout", folder, "--python", "/no/python")
    with pytest.raises(DudiError, match=r"expected events of dudi's script, found 'hello"):
        echo = tmp_path / "echo"
        echo.write_text("#!/bin/sh\necho hello\n", encoding="utf-8")
        echo.chmod(0o755)
        run("--with", "seahelm", "--prepare", "--checkout", folder, "--python", echo)


def test_folders_that_are_no_checkout_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DudiError, match="--with seahelm needs --checkout DIR: git clone"):
        run("m", "--with", "seahelm")
    with pytest.raises(DudiError, match=r"no checkout of SEA-HELM: src/seahelm_evaluation\.py is missing"):
        run("m", "--with", "seahelm", "--checkout", tmp_path)
    with pytest.raises(DudiError, match="no model folder"):
        run("m", "--with", "seahelm", "--checkout", folder)
    with pytest.raises(DudiError, match="--benchmark is no option of --with seahelm"):
        run("m", "--with", "seahelm", "--checkout", folder, "--benchmark", "b")


def test_packages_that_only_serve_are_stood_in_for_while_sea_helm_is_imported(tmp_path: Path) -> None:
    from dudi.evals.seahelm.checkout import BRIDGE

    code = f"""
import sys; sys.path.insert(0, {str(BRIDGE.parent)!r})
import importlib.util
import stand_ins
stand_ins.SERVING = ("vllm", "notthere")
sys.modules.pop("vllm", None)
with stand_ins.Absentees():
    from vllm import LLM, SamplingParams
    from vllm.v1.engine.exceptions import EngineDeadError
    import notthere, notthere.nn as nn
    fields = set(SamplingParams.__annotations__)
    class Module(nn.Module):
        @notthere.no_grad()
        def run(self): return 1
    kind: LLM | None = None
    def f(x: notthere.Tensor[int] = None): ...
    assert list(LLM) == [] and issubclass(EngineDeadError, Exception)
    import json.decoder
assert "vllm" not in sys.modules and importlib.util.find_spec("notthere") is None
try:
    raise ValueError
except EngineDeadError:
    print("caught")
except ValueError:
    print("passed by")
for use in (LLM, Module, nn.functional.relu):
    try:
        use()
    except ModuleNotFoundError as error:
        print(error.name)
try:
    import absolutely_missing
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n") == ["passed by", "vllm", "notthere", "notthere", "absolutely_missing", ""], (
        done.stderr
    )
