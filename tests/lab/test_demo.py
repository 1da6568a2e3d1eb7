"""`dudi demo`: a plan of ordinary commands, what runs when, what goes on after a stop, what is said of a failure."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.lab import demo as lab_demo
from dudi.lab.demo import NAMES, Runner, Step, demo, plan
from dudi.lab.rows import TRAINED
from dudi.recipe.read import load_recipe
from dudi.recipe.stages import plan as stages

TRAININGS = ("sft", "sft-continued", "gkd", "dudi")


def options(step: Step, name: str) -> list[str]:
    """The values of an option in a command."""
    return [b for a, b in zip(step.arguments, step.arguments[1:], strict=False) if a == name]


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def steps(tmp_path: Path) -> dict[str, Step]:
    return plan(tmp_path, (3,), "student-gemma", ("training.max_steps=3",), tmp_path / "weights")


def test_steps_come_after_what_they_need(steps: dict[str, Step]) -> None:
    order = list(TopologicalSorter({name: step.after for name, step in steps.items()}).static_order())  # no circle
    assert set(order) == set(steps), "every step that is waited for is one"
    assert order[0] == "lab" and order[-1] == "report"
    assert set(steps["report"].after) == set(steps) - {"report"}
    assert {name for name in steps if name.startswith("eval-")} == {f"eval-{name}" for name in NAMES}
    assert all(step.weight > 0 for step in steps.values())


def test_what_a_step_reads_is_written_by_a_step_before_it(steps: dict[str, Step], tmp_path: Path) -> None:
    """Every path below the demo's folder that a command names, but its own output, belongs to a step that is done."""
    writes = {"lab": tmp_path / "lab", "report": tmp_path / "report"}
    writes |= {name: tmp_path / name for name in TRAININGS}
    writes |= {f"eval-{name}": tmp_path / "eval" / name for name in NAMES}

    def before(name: str) -> set[str]:
        return {name}.union(*(before(one) for one in steps[name].after))

    for name, step in steps.items():
        assert step.done.is_relative_to(writes[name])
        text = " ".join(step.arguments)
        for other, folder in writes.items():
            if f"{folder}/" in text or f"{folder} " in text + " ":
                assert other in before(name), (name, other)


def parses(arguments: Sequence[str]) -> None:
    """Raises what the command line's parser raises."""
    command: Any = typer.main.get_command(app)
    names = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[names.pop(0)]
    command.make_context(command.name, names)


def test_every_command_is_one_that_can_be_typed(steps: dict[str, Step]) -> None:
    for step in steps.values():
        parses(step.arguments)
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        parses((*steps["lab"].arguments, "--wait"))


def test_without_weights_of_ones_own_the_shipped_ones_are_laid_out(tmp_path: Path) -> None:
    assert plan(tmp_path, (0,), "student-small", (), None)["lab"].arguments == (
        *("lab", "export", str(tmp_path / "lab")),
        *("--share", "0.3333"),
    )


@pytest.mark.parametrize("name", TRAININGS)
def test_recipes_load_with_what_the_plan_sets(steps: dict[str, Step], tmp_path: Path, name: str) -> None:
    step = steps[name]
    recipe = load_recipe(step.arguments[1], options(step, "--set"))
    lab = tmp_path / "lab"
    assert step.arguments[:2] == ("run", f"lab/{name}")
    assert (recipe.seed, recipe.training.max_steps) == (3, 3)
    assert recipe.models.teacher == str(lab / "teacher") and recipe.data.source == str(lab / "data")
    assert recipe.data.languages == TRAINED
    cold = str(tmp_path / "sft" / "1-sft" / "model")
    assert recipe.models.student == (cold if name == "sft-continued" else str(lab / "student-gemma"))
    if name in ("gkd", "dudi"):
        assert recipe.cold_start is not None and recipe.cold_start.checkpoint == cold
    (stage,) = stages(recipe)  # DuDi's cold start is the SFT run: it is not trained again
    assert step.done.parent / f"1-{stage.name}" / "model" == Path(_evaluated(steps, name))


def _evaluated(steps: dict[str, Step], name: str) -> str:
    return steps[f"eval-{name}"].arguments[1]


def test_sft_continued_and_gkd_take_as_many_steps_as_dudi_at_its_rate() -> None:
    dudi = load_recipe("lab/dudi")
    for one in (load_recipe("lab/sft-continued"), load_recipe("lab/gkd")):
        assert one.training == dudi.training and one.data == dudi.data and one.limits == dudi.limits


def test_the_report_gets_all_runs_and_all_evaluations_by_name(steps: dict[str, Step], tmp_path: Path) -> None:
    step = steps["report"]
    wanted = [f"{title}={tmp_path / 'eval' / name}" for name, title in NAMES.items()]
    assert options(step, "--eval") == wanted
    assert step.arguments[1 : 1 + len(TRAININGS)] == tuple(str(tmp_path / name) for name in TRAININGS)
    assert (options(step, "--baseline"), options(step, "--subject")) == (["SFT"], ["DuDi"])


def test_every_seed_is_a_whole_pipeline_in_a_folder_of_its_own(tmp_path: Path) -> None:
    steps = plan(tmp_path, (3, 4), "student-gemma", (), None)
    alone = plan(tmp_path, (3,), "student-gemma", (), None)
    assert len(steps) == len(alone) + 2 * len(TRAININGS) and list(steps)[-1] == "compare"
    for seed in (3, 4):
        for name in TRAININGS:
            step = steps[f"{name}-{seed}"]
            assert f"seed={seed}" in options(step, "--set")
            assert step.done == tmp_path / f"seed-{seed}" / name / "summary.json"
            text = " ".join(step.arguments)
            assert f"seed-{7 - seed}" not in text and step.after == (("lab",) if name == "sft" else (f"sft-{seed}",))
    compared = steps["compare"].arguments
    folders = [f"{NAMES[name]}={tmp_path / f'seed-{seed}' / 'eval' / name}" for name in TRAININGS for seed in (3, 4)]
    assert list(compared[1:9]) == folders and set(steps["compare"].after) == set(steps) - {"compare"}
    for step in steps.values():
        parses(step.arguments)


def test_a_training_that_was_begun_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "dudi").mkdir()
    found = plan(tmp_path, (0,), "student-small", (), None)
    assert {name for name in TRAININGS if "--resume" in found[name].arguments} == {"dudi"}


# ── the runner ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's last argument is Python code instead of a `dudi` command's."""
    real = subprocess.Popen

    def popen(command: list[str], **kwargs: Any) -> Any:
        assert command[1:3] == ["-m", "dudi"] and kwargs["env"]["OMP_NUM_THREADS"] == "1"
        return real([sys.executable, "-c", command[-1]], **kwargs)

    monkeypatch.setattr(lab_demo.subprocess, "Popen", popen)


def script(folder: Path, name: str, code: str = "pass", after: tuple[str, ...] = ()) -> Step:
    """Writes its name to `order`, runs `code`, writes its file."""
    done = folder / name
    lines = (
        "import os, sys, time",
        f"open({str(folder / 'order')!r}, 'a').write({name!r} + ' ')",
        code,
        f"open({str(done)!r}, 'w')",
    )
    return Step((name, "\n".join(lines)), done, after)


def runner(folder: Path, steps: Sequence[Step], jobs: int = 2) -> Runner:
    (folder / "logs").mkdir(exist_ok=True)
    console = Console(file=io.StringIO(), width=500)
    return Runner({step.arguments[0]: step for step in steps}, folder / "logs", console, jobs)


def order(folder: Path) -> list[str]:
    file = folder / "order"
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_steps_run_once_after_what_they_need(tmp_path: Path, scripts: None, jobs: int) -> None:
    steps = [
        script(tmp_path, "last", after=("b", "c")),
        script(tmp_path, "b", after=("a",)),
        script(tmp_path, "c", after=("a",)),
        script(tmp_path, "a"),
    ]
    made = runner(tmp_path, steps, jobs)
    made.run()
    found = order(tmp_path)
    assert found[0] == "a" and found[-1] == "last" and sorted(found) == ["a", "b", "c", "last"]
    shown = made.console.file.getvalue()  # type: ignore[attr-defined]
    assert all(f"{name}: done in " in shown for name in found)


def test_no_more_run_at_a_time_than_there_are_jobs(tmp_path: Path, scripts: None) -> None:
    count = (
        f"f = {str(tmp_path / 'run-')!r} + str(os.getpid()); open(f, 'w'); time.sleep(0.3);"
        f" n = len([x for x in os.listdir({str(tmp_path)!r}) if x.startswith('run-')]); os.remove(f);"
        f" open({str(tmp_path / 'most')!r}, 'a').write(str(n) + ' ')"
    )
    runner(tmp_path, [script(tmp_path, name, count) for name in "abcd"], 2).run()
    assert max(map(int, (tmp_path / "most").read_text().split())) <= 2


def test_a_step_that_is_done_is_not_done_again(tmp_path: Path, scripts: None) -> None:
    steps = [script(tmp_path, "a"), script(tmp_path, "b", after=("a",))]
    (tmp_path / "a").touch()
    runner(tmp_path, steps).run()
    assert order(tmp_path) == ["b"]
    runner(tmp_path, steps).run()
    assert order(tmp_path) == ["b"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_failure_is_one_line_with_the_log_and_ends_the_others(tmp_path: Path, scripts: None) -> None:
    pid = tmp_path / "pid"
    slow = script(tmp_path, "slow", f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    wait = f"\nwhile not os.path.exists({str(pid)!r}) or not open({str(pid)!r}).read(): time.sleep(0.05)\n"
    bad = script(tmp_path, "bad", f"{wait}print('one'); print('dudi: it broke', file=sys.stderr); sys.exit(2)")
    never = script(tmp_path, "never", after=("bad",))
    began = time.monotonic()
    with pytest.raises(DudiError) as error:
        runner(tmp_path, [slow, bad, never]).run()
    assert str(error.value) == f"demo: step 'bad' failed ({tmp_path / 'logs' / 'bad.log'}): dudi: it broke"
    assert time.monotonic() - began < 30
    assert not alive(int(pid.read_text())) and "never" not in order(tmp_path)
    assert not (tmp_path / "slow").exists(), "it is not taken for done next time"
    assert (tmp_path / "logs" / "bad.log").read_text().splitlines()[-1] == "dudi: it broke"


def test_a_step_that_leaves_nothing_has_failed(tmp_path: Path, scripts: None) -> None:
    with pytest.raises(DudiError, match=r"demo: step 'a' failed \(.*a\.log\): no output"):
        runner(tmp_path, [Step(("a", "pass"), tmp_path / "a")]).run()


def test_after_a_failure_is_mended_the_demo_goes_on(tmp_path: Path, scripts: None) -> None:
    first = script(tmp_path, "first")
    with pytest.raises(DudiError):
        runner(tmp_path, [first, script(tmp_path, "second", "sys.exit(1)", ("first",))]).run()
    runner(tmp_path, [first, script(tmp_path, "second", after=("first",))]).run()
    assert order(tmp_path) == ["first", "second", "second"]


def test_without_its_models_a_demo_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match="none: no finished lab build there; make one with `dudi lab build"):
        demo(tmp_path / "demo", (0,), weights=tmp_path / "none")
    with pytest.raises(DudiError, match="unknown student: 'student-smal'; did you mean 'student-small'"):
        demo(tmp_path / "demo", (0,), student="student-smal")
    assert not (tmp_path / "demo").exists()


def test_a_demo_with_other_settings_is_not_mixed_with_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "run", lambda self: None)
    console = Console(file=io.StringIO())
    demo(tmp_path / "d", (0,), console=console)
    demo(tmp_path / "d", (0,), console=console, jobs=1)
    others: list[dict[str, Any]] = [
        {"seeds": (1,)},
        {"seeds": (0, 1)},
        {"seeds": (0,), "student": "student-large"},
        {"seeds": (0,), "overrides": ("training.lr=1",)},
        {"seeds": (0,), "weights": tmp_path},
    ]
    for other in others:
        with pytest.raises(
            DudiError, match="holds a demo with other seeds, another student, weights or --set"
        ) as error:
            demo(tmp_path / "d", console=console, **other)
        assert str(error.value).startswith(f"{tmp_path / 'd'}: ")


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_the_whole_demo_ends_with_a_page(built: Path, tmp_path: Path) -> None:
    """On models that know nothing, with three steps of training."""
    sets = (
        "training.max_steps=3",
        "training.warmup_steps=1",
        "training.batch=8",
        "training.micro_batch=8",
        "data.eval_rows_per_language=1",
        "limits={prompt=600, verbalizer=500, total=1200, rollout=4, teacher_prompt=1900}",
    )
    command = ["demo", "--output", str(tmp_path / "demo"), "--student", "student-gemma", "--weights", str(built)]
    for one in sets:
        command += ["--set", one]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, (run.output, run.exception)
    out = tmp_path / "demo"
    page = (out / "report" / "report.html").read_text(encoding="utf-8")
    assert f"report: {out / 'report' / 'report.html'}" in run.output.replace("\n", "")
    assert all(title in page for title in NAMES.values())
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page
    for name in NAMES:
        table = json.loads((out / "eval" / name / "table.json").read_text(encoding="utf-8"))
        assert table["benchmark"] == "lab"
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != "demo.json"}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != "demo.json"}
