"""A run that was stopped and resumed is the straight run, bit for bit: weights, optimizer, moving average, metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.stops import StopAt, Stopped
from transformers import TrainerCallback

from dudi import rollouts
from dudi.errors import DudiError
from dudi.rollouts.local import LocalEngine
from dudi.run.pipeline import resume_stage, run
from dudi.training import checkpoints
from dudi.training.trainer import DistillationTrainer

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "dft": {"name": "dft"},
    "spin": {"name": "spin"},
    "spin-online": {"name": "spin", "variant": "online"},
    "sdft": {"name": "sdft", "ema_rate": 0.3},
    "seqkd": {"name": "seqkd", "variant": "jsd"},
    "gkd-coin": {"name": "gkd"},
    "gkd-sum": {"name": "gkd", "variant": "sum"},
    "dudi": {"name": "dudi"},
}


SLOW = pytest.mark.slow


def made(folder: Path, method: str, evals: int = 0, **training: Any) -> DistillationTrainer:
    """Eleven rows in batches of four, two epochs: steps 1 to 6, where 3 and 6 have three rows. Float32, sampled.

    Checkpoints at 2 and 4, metrics at 3 and 6: both checkpoints lie within an interval of the metrics.
    """
    student = kit.model(1, rows=kit.VOCAB + 6, dtype=torch.float32)
    defaults = {"batch": 4, "micro_batch": 2, "epochs": 2.0, "save_every": 2, "log_every": 3, "overlap_every": 2}
    rows = kit.short_rows(11 + evals)
    t = kit.trainer(
        folder,
        METHODS[method],
        student=student,
        examples=rows[:11],
        evals=rows[11:],
        forced=False,
        **{**defaults, **training},
    )
    assert t.steps_per_epoch == 3
    return t


def optimizer_state(t: DistillationTrainer) -> dict[str, torch.Tensor]:
    """Every tensor of the optimizer, by parameter and name; and the learning rate."""
    state = t.optimizer.state_dict()
    found = {f"{k}/{name}": torch.as_tensor(v) for k, entry in state["state"].items() for name, v in entry.items()}
    return found | {"lr": torch.tensor([g["lr"] for g in state["param_groups"]], dtype=torch.float64)}


def assert_same_state(a: DistillationTrainer, b: DistillationTrainer) -> None:
    assert a.state.global_step == b.state.global_step
    assert runs.identical(dict(a.model.named_parameters()), dict(b.model.named_parameters()))
    assert len(optimizer_state(a)) > 10
    assert runs.identical(optimizer_state(a), optimizer_state(b))
    if a.ema is not None:
        assert b.ema is not None and runs.identical(a.ema.state(), b.ema.state())
    assert (a.job.folder / "metrics.jsonl").read_bytes() == (b.job.folder / "metrics.jsonl").read_bytes()


def stop_and_resume(make: Callable[[], DistillationTrainer], steps: int) -> DistillationTrainer:
    first = make()
    first.add_callback(StopAt(steps))
    with pytest.raises(Stopped):
        resume_stage(first)
    second = make()
    resume_stage(second)
    return second


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name in ("spin-online", "sdft", "gkd-coin", "dudi") else SLOW) for name in METHODS],
)
def test_stopped_and_resumed_is_the_straight_run(method: str, tmp_path: Path) -> None:
    """Stopped after step 5: from the checkpoint of step 4, in the middle of an epoch and of a metrics interval."""
    straight = made(tmp_path / "straight", method)
    resume_stage(straight)
    assert straight.state.global_step == 6
    lines = [json.loads(line) for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    if method == "gkd-coin":
        sides = [straight.job.method.active(0, k)[0].name for k in range(6)]
        assert set(sides[:4]) == set(sides[4:]) | set(sides[:4]) and len(set(sides)) == 2
    resumed = stop_and_resume(lambda: made(tmp_path / "stopped", method), 5)
    assert_same_state(straight, resumed)
    assert [c.name for c in checkpoints.complete(tmp_path / "stopped")] == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize(
    ("method", "cache", "again"),
    [
        ("dudi", "disk", "memory"),
        pytest.param("dudi", "memory", "memory", marks=SLOW),
        pytest.param("dudi", "disk", "disk", marks=SLOW),
        pytest.param("spin", "memory", "disk", marks=SLOW),
        pytest.param("seqkd", "disk", "disk", marks=SLOW),
        pytest.param("gkd-sum", "memory", "memory", marks=SLOW),
    ],
)
def test_stopped_and_resumed_with_a_cache(method: str, cache: str, again: str, tmp_path: Path) -> None:
    """Kept, made anew, or kept elsewhere from now on: the same bits."""
    training = {"eval_every": 3, "log_every": 2}
    straight = made(tmp_path / "straight", method, evals=3, cache=cache, **training)
    resume_stage(straight)
    kinds = iter((cache, again))
    resumed = stop_and_resume(
        lambda: made(tmp_path / "stopped", method, evals=3, cache=next(kinds), **training), steps=5
    )
    assert_same_state(straight, resumed)


@pytest.mark.parametrize("steps", [1, pytest.param(3, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_stopped_anywhere(steps: int, tmp_path: Path) -> None:
    """Before any checkpoint; at the end of an epoch, after its metrics were written; right at a checkpoint."""
    straight = made(tmp_path / "straight", "sdft")
    resume_stage(straight)
    assert_same_state(straight, stop_and_resume(lambda: made(tmp_path / "stopped", "sdft"), steps))


@pytest.mark.slow
def test_resumed_twice_with_evaluations_between(tmp_path: Path) -> None:
    """Evaluation lines are not lost and not written twice."""
    straight = made(tmp_path / "straight", "dudi", evals=3, eval_every=2, log_every=2)
    resume_stage(straight)
    for steps in (3, 5):
        again = made(tmp_path / "stopped", "dudi", evals=3, eval_every=2, log_every=2)
        again.add_callback(StopAt(steps))
        with pytest.raises(Stopped):
            resume_stage(again)
    last = made(tmp_path / "stopped", "dudi", evals=3, eval_every=2, log_every=2)
    resume_stage(last)
    assert_same_state(straight, last)
    lines = [json.loads(line) for line in (tmp_path / "stopped/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "eval" in line) for line in lines] == [(s, e) for s in (2, 4, 6) for e in (False, True)]


def test_saving_and_evaluating_change_nothing(tmp_path: Path) -> None:
    """A run that saves and evaluates at other steps has the same weights and the same training metrics."""
    often = made(tmp_path / "often", "dudi", evals=3, save_every=1, eval_every=1, log_every=2)
    never = made(tmp_path / "never", "dudi", save_every=100, log_every=2)
    for t in (often, never):
        resume_stage(t)
    assert runs.identical(dict(often.model.named_parameters()), dict(never.model.named_parameters()))
    assert runs.identical(optimizer_state(often), optimizer_state(never))
    assert runs.metrics(tmp_path / "often") == runs.metrics(tmp_path / "never")


@pytest.mark.parametrize("end", [{"max_steps": 5}, {"epochs": 1.5}])
def test_resumed_after_the_last_step(end: dict[str, Any], tmp_path: Path) -> None:
    """Everything was trained and saved, only the result was not written: no step is done once more."""
    straight = made(tmp_path / "straight", "sft", **end)
    resume_stage(straight)
    last = straight.state.global_step
    assert last == 5 and last % straight.steps_per_epoch, "the end lies within an epoch"
    before = (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    again = made(tmp_path / "straight", "sft", **end)
    resume_stage(again)
    assert again.state.global_step == last
    assert runs.identical(dict(straight.model.named_parameters()), dict(again.model.named_parameters()))
    assert (tmp_path / "straight" / "metrics.jsonl").read_bytes() == before


def test_the_average_that_is_resumed_is_the_saved_one(tmp_path: Path) -> None:
    """SDFT's teacher comes from the checkpoint: from the student it would be another one."""
    t = made(tmp_path, "sdft")
    t.add_callback(StopAt(4))
    with pytest.raises(Stopped):
        resume_stage(t)
    assert t.ema is not None
    fresh = made(tmp_path, "sdft")
    assert fresh.ema is not None
    assert not runs.identical(fresh.ema.state(), t.ema.state())
    fresh.restore(tmp_path / "checkpoint-4")
    assert runs.identical(fresh.ema.state(), t.ema.state())
    student = dict(t.model.named_parameters())
    assert not runs.identical(student, t.ema.state())


# ── which checkpoint ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def straight_sft(tmp_path_factory: pytest.TempPathFactory) -> DistillationTrainer:
    t = made(tmp_path_factory.mktemp("straight"), "sft")
    resume_stage(t)
    return t


def stopped_at_5(folder: Path, **training: Any) -> Path:
    t = made(folder, "sft", **training)
    t.add_callback(StopAt(5))
    with pytest.raises(Stopped):
        resume_stage(t)
    assert [c.name for c in checkpoints.complete(folder)] == ["checkpoint-2", "checkpoint-4"]
    return folder


@pytest.mark.parametrize(
    "file",
    [
        "optimizer.pt",
        "complete.json",
        *(pytest.param(name, marks=SLOW) for name in ("model.safetensors", "trainer_state.json", "dudi.json")),
    ],
)
def test_truncated_file_falls_back_to_the_older_checkpoint(
    file: str, straight_sft: DistillationTrainer, tmp_path: Path
) -> None:
    folder = stopped_at_5(tmp_path)
    damaged = folder / "checkpoint-4" / file
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert [c.name for c in checkpoints.complete(folder)] == ["checkpoint-2"]
    t = made(folder, "sft")
    started: list[int] = []
    t.add_callback(_Started(started))
    resume_stage(t)
    assert started == [2]
    assert_same_state(straight_sft, t)
    assert [c.name for c in checkpoints.complete(folder)] == ["checkpoint-4", "checkpoint-6"]


class _Started(TrainerCallback):
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def test_missing_file_falls_back_too(straight_sft: DistillationTrainer, tmp_path: Path) -> None:
    folder = stopped_at_5(tmp_path)
    (folder / "checkpoint-4" / "scheduler.pt").unlink()
    t = made(folder, "sft")
    resume_stage(t)
    assert_same_state(straight_sft, t)


def test_staging_folder_left_behind_is_ignored(straight_sft: DistillationTrainer, tmp_path: Path) -> None:
    """Also one that holds a checkpoint of a later step with its list of files: it was never renamed into place."""
    folder = stopped_at_5(tmp_path)
    left = folder / checkpoints.STAGING / "checkpoint-5"
    left.parent.mkdir()
    (folder / "checkpoint-4").rename(left)
    assert checkpoints.is_complete(left)
    t = made(folder, "sft")
    started: list[int] = []
    t.add_callback(_Started(started))
    resume_stage(t)
    assert started == [2]
    assert_same_state(straight_sft, t)
    assert not (folder / checkpoints.STAGING).exists()


def test_a_line_cut_off_by_a_crash_is_written_again(straight_sft: DistillationTrainer, tmp_path: Path) -> None:
    """Metrics end within a line, as a kill leaves them; lines after the checkpoint's step are dropped with it."""
    folder = stopped_at_5(tmp_path)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "epoch": 1.7}\n{"step": 6, "lo')
    t = made(folder, "sft")
    resume_stage(t)
    assert_same_state(straight_sft, t)


def test_newest_is_by_step_not_by_time(straight_sft: DistillationTrainer, tmp_path: Path) -> None:
    folder = stopped_at_5(tmp_path)
    for path in [folder / "checkpoint-2", *(folder / "checkpoint-2").iterdir()]:
        os.utime(path, (4e9, 4e9))
    t = made(folder, "sft")
    started: list[int] = []
    t.add_callback(_Started(started))
    resume_stage(t)
    assert started == [4]
    assert_same_state(straight_sft, t)


# ── the whole pipeline ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of models and data, the straight run of SPIN: cold start, then two generations and trainings)."""
    folder = tmp_path_factory.mktemp("spin")
    return folder, run(spin_recipe(folder, "straight"), say=lambda *_: None)


def spin_recipe(folder: Path, output: str) -> Any:
    return runs.recipe(
        folder,
        {"name": "spin", "iterations": 2},
        output=output,
        training={"epochs": 1.0, "save_every": 2, "log_every": 2},
        data={"eval_rows_per_language": 0},
    )


def test_spin_stages(spin: tuple[Path, Path]) -> None:
    assert [s.name for s in runs.stages(spin[1])] == [
        "1-cold-start",
        "2-spin-1-responses",
        "3-spin-1",
        "4-spin-2-responses",
        "5-spin-2",
    ]


@pytest.mark.parametrize("stage", [pytest.param(name, marks=SLOW) for name in ("cold-start", "spin-1", "spin-2")])
def test_spin_stopped_in_a_training(stage: str, spin: tuple[Path, Path]) -> None:
    folder, straight = spin
    recipe = spin_recipe(folder, f"stopped-{stage}")

    def watch(t: DistillationTrainer, title: str) -> TrainerCallback:
        return StopAt(2 if title.endswith(f": {stage}") else -1)

    with pytest.raises(Stopped):
        kit.watched(recipe, watch)
    stopped = Path(recipe.output)
    assert not (runs.stages(stopped)[-1] / "model").exists() and not (stopped / "summary.json").exists()
    assert_resumed(straight, recipe)


@pytest.mark.parametrize("iteration", [1, pytest.param(2, marks=SLOW)])
def test_spin_stopped_in_a_generation(iteration: int, spin: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch of that iteration's responses fails; the first is kept and not sampled again."""
    folder, straight = spin
    recipe = spin_recipe(folder, f"generation-{iteration}")
    asked: list[tuple[Any, ...]] = []

    class Sampler(LocalEngine):
        def __call__(self, model: Any, requests: Any) -> Any:
            if requests and requests[0].key[0] == "opponent":
                asked.append(requests[0].key[:4])
            if requests and sum(key[3] == iteration - 1 for key in asked) == 2:
                raise Stopped
            return super().__call__(model, requests)

    with monkeypatch.context() as patch:
        patch.setitem(rollouts.ENGINES, "local", Sampler)
        with pytest.raises(Stopped):
            run(recipe, say=lambda *_: None)
    assert len(asked) == (2 if iteration == 1 else 5)
    here = runs.stages(Path(recipe.output))[-1]
    assert here.name == f"{2 * iteration}-spin-{iteration}-responses"
    kept = {f: f.stat().st_mtime_ns for f in here.rglob("*.jsonl")}
    assert len(kept) == 1
    assert_resumed(straight, recipe)
    assert {f: f.stat().st_mtime_ns for f in kept} == kept


def assert_resumed(straight: Path, recipe: Any) -> None:
    with pytest.raises(DudiError, match="occupied"):
        run(recipe, say=lambda *_: None)
    runs.assert_same_end(straight, run(recipe, resume=True, say=lambda *_: None))


def test_resuming_a_finished_run_changes_nothing(spin: tuple[Path, Path]) -> None:
    folder, straight = spin
    before = {f: f.read_bytes() for f in straight.rglob("*") if f.is_file() and f.name != "environment.json"}
    run(spin_recipe(folder, "straight"), resume=True, say=lambda *_: None)
    after = {f: f.read_bytes() for f in straight.rglob("*") if f.is_file() and f.name != "environment.json"}
    assert before == after
