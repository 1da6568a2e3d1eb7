"""What a run shows, and what it says of the machine before it starts."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from rich.console import Console

from dudi.errors import DudiError
from dudi.files import read_lines
from dudi.recipe.schema import Training
from dudi.run import machine, progress
from dudi.run.machine import advice, deterministic
from dudi.run.notes import notes
from dudi.run.pipeline import resume_stage
from dudi.run.progress import Watcher
from dudi.training.monitors import Course
from dudi.training.trainer import DistillationTrainer


class Clock:
    """A clock that goes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def watched(to_come: Callable[[int], dict[str, int]], steps: int = 4) -> tuple[Watcher, io.StringIO]:
    text = io.StringIO()
    made = Watcher(Console(file=text, width=80))
    made.begin(Course("stage 1 of 1: x", Path(), 0, steps, lambda: "", to_come))
    return made, text


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "signal": {f"signal_{k}": {"loss": 1.0} for k in range(6)}}


def test_the_time_left_counts_evaluation_and_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 10 s; an evaluation of 30 s and a saving of 5 s after steps 2 and 4, and the result's saving."""
    clock = Clock(monkeypatch)
    made, text = watched(lambda step: {"evaluation": 2 - (step - 1) // 2, "saving": 3 - (step - 1) // 2})
    left = []
    for step in range(1, 5):
        clock.now += 10
        made.step(step, {"student": 10.0})
        made.log(line(step))
        left.append(text.getvalue().splitlines()[-1].rpartition("  ")[2])
        if step % 2 == 0:
            for phase, seconds in (("evaluation", 30.0), ("saving", 5.0)):
                clock.now += seconds
                made.outside(phase, seconds)
    made.end(4)
    assert left == [
        "30 s + evaluation + saving left",
        "20 s + evaluation + saving left",
        "50 s left",  # 10 for the step, 30 for the evaluation, twice 5 for what is saved
        "40 s left",  # never nothing while something is to come
    ]
    assert "4 steps (student 40 s, evaluation 60 s, saving 10 s)" in text.getvalue()
    assert all(len(one) > 100 for one in text.getvalue().splitlines() if "signal_5" in one), "no line is wrapped"


def test_losses_on_rows_held_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made, text = watched(lambda step: {})
    made.log({"step": 2, "eval": {"loss": 0.5, "signal": {"off_policy": {"loss": 0.25}}}})
    assert text.getvalue() == "  step 2/4  held out: loss 0.5000  off_policy 0.2500\n"


def test_long_steps_are_lines_though_no_interval_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    made, text = watched(lambda step: {}, steps=100)
    for step in range(1, 11):
        clock.now += 25
        made.step(step, {})
    assert [one.split("  ")[1] for one in text.getvalue().splitlines()] == ["step 3/100", "step 6/100", "step 9/100"]


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_bfloat16_is_named_where_the_cpu_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = runs.recipe(tmp_path, {"name": "sft"}, models={"precision": "auto"})
    monkeypatch.setattr(machine, "_cpu_flags", lambda: {"fpu", "amx_bf16"})
    monkeypatch.setattr(machine, "_ratio", lambda: 2.71)
    (found,) = advice(recipe)
    assert "2.7 x faster in bfloat16 (amx_bf16): models.precision =" in found
    monkeypatch.setattr(machine, "_ratio", lambda: 1.2)
    assert advice(recipe) == []
    monkeypatch.setattr(machine, "_ratio", lambda: pytest.fail("no need"))
    assert advice(runs.recipe(tmp_path, {"name": "sft"}, models={"precision": "float32"})) == []
    monkeypatch.setattr(machine, "_cpu_flags", lambda: {"fpu"})
    assert advice(recipe) == []


def test_the_ratio_is_measured_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    assert 0 < machine._ratio() < 1000
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("load", "set_", "said"), [(99.0, False, True), (0.0, False, False), (99.0, True, False)])
def test_threads_on_busy_cores(load: float, set_: bool, said: bool, tmp_path: Path, monkeypatch: Any) -> None:
    recipe = runs.recipe(tmp_path, {"name": "sft"})
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1") if set_ else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert any("OMP_WAIT_POLICY=PASSIVE" in one for one in advice(recipe)) is said


def test_deterministic_operations_and_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with deterministic([Training(), Training(deterministic=True)]):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic([Training()]):
        assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(machine.WORKSPACE, raising=False)
    with (
        pytest.raises(DudiError, match="needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"),
        deterministic([Training(deterministic=True)]),
    ):
        pytest.fail("not begun")
    monkeypatch.setenv(machine.WORKSPACE, ":4096:8")
    with deterministic([Training(deterministic=True)]):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_answers_longer_than_those_of_training_are_said_once(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, {"name": "dudi"})
    (line_,) = notes(recipe)
    assert "generation.max_new_tokens = 512 tokens; in training its answers have at most limits.rollout = 8" in line_
    assert notes(runs.recipe(tmp_path, {"name": "dudi"}, generation={"max_new_tokens": 8})) == []
    assert notes(runs.recipe(tmp_path, {"name": "sft"}, cold_start={"method": {"name": "none"}})) == []


def test_an_evaluation_that_was_left_over_after_the_last_step_is_made_and_shown(tmp_path: Path) -> None:
    rows = kit.short_rows(10)

    def made() -> DistillationTrainer:
        return kit.trainer(tmp_path, {"name": "sft"}, examples=rows[:8], evals=rows[8:], batch=4, micro_batch=2)

    stopped = made()
    stopped.stop.due = lambda: stopped.phases.now == "evaluation"  # type: ignore[method-assign]
    with pytest.raises(DudiError, match=r"stopped by a signal .* after step 2"):
        resume_stage(stopped)
    resumed, text = made(), io.StringIO()
    resumed.monitors += (Watcher(Console(file=text, width=120)),)
    resume_stage(resumed)
    assert "step 2/2  held out: loss" in text.getvalue()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl") if "eval" in line] == [2]
