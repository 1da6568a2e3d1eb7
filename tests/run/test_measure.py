"""`dudi plan --measure` takes steps of the run itself, scales them to all of it, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import kit
import numpy as np
import pytest
import torch
from kit import runs
from kit.command import Dudi

from dudi.errors import DudiError
from dudi.recipe.stages import Train
from dudi.recipe.stages import plan as stages_of
from dudi.run.folder import check_folder, whole_or_absent
from dudi.run.plan import measure, stopwatch
from dudi.run.plan.devices import CPU, DEVICES, Device, of_this_machine
from dudi.run.plan.margin import OFF, RUNS, ends, of_mean
from dudi.run.plan.memory import PHASES
from dudi.run.plan.plan import Plan, plan
from dudi.run.plan.scaled import generation, training
from dudi.run.plan.show import parts
from dudi.run.plan.stopwatch import Call, Clocks, Laps
from dudi.run.plan.windows import sides
from dudi.run.prepare import Prepared, prepare
from dudi.training.monitors import Course
from dudi.training.trainer import DistillationTrainer

DUDI = {"name": "dudi"}


def trainings(prepared: Prepared) -> Iterator[Train]:
    return (stage for stage in stages_of(prepared.recipe) if isinstance(stage, Train))


def seconds(wall: float) -> Any:
    """As many by the clock, and half as many of the CPU."""
    return np.array([wall, wall / 2])


# ── which steps ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("method", [DUDI, {"name": "gkd", "lam": 0.4}], ids=str)
def test_the_steps_are_those_of_the_run(tmp_path: Path, method: dict[str, Any]) -> None:
    prepared = prepare(runs.recipe(tmp_path, method, training={"epochs": 8.0}, seed=3))
    *_, stage = trainings(prepared)
    made = kit.trainer(tmp_path / "t", method, examples=prepared.data.train, epochs=8.0, batch=4, seed=3)
    every = [(step, *made.batch_rows(step), stage.method.active(3, step)) for step in range(24)]
    found = sides(prepared, stage)
    assert len(found) == (1 if method == DUDI else 2) and sum(side.steps for side in found) == 24
    assert sum(side.tokens for side in found) == 8 * sum(len(r.x) + len(r.y) for r in prepared.train.rows)
    for side in found:
        signals = side.measured[0].signals
        same = [one for one in every if one[3] == signals]
        assert side.steps == len(same)
        for step in side.measured:
            assert (step.number, step.epoch, step.rows, step.signals) in same
        warm, longest, *drawn = side.measured
        sizes = {number: sum(len(r.x) + len(r.y) for r in rows) for number, _, rows, _ in same}
        assert longest.tokens == max(sizes.values()) == sizes[longest.number]
        assert len({step.number for step in drawn}) == 3 and all(step.drawn for step in drawn)
        assert not warm.drawn and not longest.drawn
    assert sides(prepared, stage) == found


def test_of_few_steps_all_are_taken(tmp_path: Path) -> None:
    prepared = prepare(runs.recipe(tmp_path, {"name": "sft"}, training={"max_steps": 2}))
    (side,) = sides(prepared, next(trainings(prepared)))
    assert {step.number for step in side.measured if step.drawn} == {0, 1} and side.steps == 2


def test_an_excerpt_has_the_rows_of_its_steps_and_changes_nothing_that_a_step_depends_on(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, DUDI, number=60, training={"batch": 2}, data={"eval_rows_per_language": 1})
    prepared = prepare(recipe)
    windows = {stage.name: sides(prepared, stage) for stage in trainings(prepared)}
    small = measure.excerpt(prepared, windows)
    wanted = {row.index for found in windows.values() for side in found for s in side.measured for row in s.rows}
    assert {row.index for row in small.train.rows} == wanted and len(wanted) < len(prepared.train.rows)
    held = [{row.index for row in rows} for rows in (small.eval.rows, prepared.eval.rows)]
    assert len(held[0]) == 2 and held[0] < held[1]
    for now, then in zip(trainings(small), trainings(prepared), strict=True):
        assert now.training.max_steps == 5
        same = {"max_steps", "save_every", "eval_every", "report_to"}
        assert now.training.model_dump(exclude=same) == then.training.model_dump(exclude=same)
    assert small.recipe.limits == recipe.limits and small.recipe.method == recipe.method


# ── from them to all ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_step_phases_grow_with_tokens_and_the_rest_with_how_often_it_happens(tmp_path: Path) -> None:
    table = {"max_steps": 21, "eval_every": 10, "save_every": 5}
    recipe = runs.recipe(tmp_path, {"name": "sft"}, training=table, number=60, data={"eval_rows_per_language": 1})
    prepared = prepare(recipe)
    (stage,) = trainings(prepared)
    (side,) = sides(prepared, stage)
    small = measure.excerpt(prepared, {stage.name: (side,)})
    laps = Laps(Clocks(lambda _: None))
    rates = (9.0, 9.0, 1.0, 2.0, 3.0)  # seconds a token; the first two do not count
    for step, rate in zip(side.measured, rates, strict=True):
        lap = {"student": rate * step.tokens, "backward": 2 * rate * step.tokens, "optimizer": 4.0, "other": 0.5}
        laps.steps.append({name: seconds(value) for name, value in lap.items()})
    laps.saved = seconds(6.0)
    outside = {"loading": 3.0, "saving": 10.0, "evaluation": 8.0, "caching": 2.0}
    in_laps = float(sum(stopwatch.total(lap)[0] for lap in laps.steps))
    spent = {**{name: seconds(value) for name, value in outside.items()}, "": seconds(in_laps + 23.0 + 7.0)}
    found = training(stage, (side,), prepared, small, laps, spent)

    def size(rows: Any) -> int:
        return sum(len(row.x) + len(row.y) for row in rows)

    drawn = [step.tokens for step in side.measured[2:]]
    rate = sum(n * r for n, r in zip(drawn, rates[2:], strict=True)) / sum(drawn)
    both = size(prepared.train.rows) + size(prepared.eval.rows)
    wanted = {
        "student": rate * side.tokens,
        "backward": 2 * rate * side.tokens,
        "optimizer": 4.0 * 21,
        "other": 0.5 * 21 + 7.0,
        "loading": 3.0,
        "saving": 4.0 + 5 * 6.0,  # the result, and checkpoints after 5, 10, 15, 20 and 21 steps
        "evaluation": 3 * 8.0 * size(prepared.eval.rows) / size(small.eval.rows),  # after 10, 20 and 21 steps
        "caching": 2.0 * both / (size(small.train.rows) + size(small.eval.rows)),
    }
    assert found.seconds == pytest.approx(wanted)
    assert found.total == pytest.approx(seconds(sum(wanted.values())))
    deviation = 3 * side.tokens  # of 1, 2 and 3 seconds a token, three times
    apart = 4.302653 * deviation * (1 / 3 - 1 / 21) ** 0.5  # Student's t, two degrees of freedom
    assert found.apart == pytest.approx(seconds(apart))
    assert found.high / found.total == pytest.approx(found.total / found.low)
    assert np.log(found.high / found.total) == pytest.approx(np.hypot(OFF, found.apart / found.total))
    assert (found.timed, found.steps) == (3, 21)


def test_sides_of_a_coin_are_scaled_by_their_own_steps(tmp_path: Path) -> None:
    prepared = prepare(runs.recipe(tmp_path, {"name": "gkd", "lam": 0.4}, training={"epochs": 8.0}, seed=3))
    *_, stage = trainings(prepared)
    found = sides(prepared, stage)
    small = measure.excerpt(prepared, {stage.name: found})
    laps = Laps(Clocks(lambda _: None))
    for number, side in enumerate(found):
        laps.steps += [{"student": seconds((number + 1) * step.tokens)} for step in side.measured]
    made = training(stage, found, prepared, small, laps, {"": sum((l["student"] for l in laps.steps), seconds(0))})
    assert made.seconds == pytest.approx({"student": found[0].tokens + 2 * found[1].tokens})
    assert made.apart == pytest.approx(np.zeros(2), abs=1e-9), "each side's steps are alike"


def test_a_range_holds_the_runs_that_were_measured_however_alike_their_steps_were() -> None:
    """A range of the drawn steps alone held one of these six."""
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:small|large), \w+ \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) \|", page, re.M)
    found = [tuple(map(float, row)) for row in rows]
    assert tuple((expected, took) for expected, _, _, took in found) == RUNS and len(RUNS) == 6
    assert 0.2 < OFF < 0.25
    for expected, low, high, took in found:
        alike, apart = (ends(seconds(expected), half) for half in (np.zeros(2), seconds((high - low) / 2)))
        assert alike[0][0] < took < alike[1][0]
        assert apart[0][0] < alike[0][0] and alike[1][0] < apart[1][0], "what steps tell comes on top"


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    """Three of forty, drawn again and again; all of them tell it exactly, one alone tells next to nothing."""
    drawn = np.random.default_rng(0)
    everything = drawn.lognormal(0.0, 0.4, (40, 2))
    covered = []
    for _ in range(400):
        few = everything[drawn.permutation(40)[:3]]
        covered.append(abs(few.mean(axis=0) - everything.mean(axis=0)) <= of_mean(few, 40))
    assert ((np.mean(covered, axis=0) > 0.9) & (np.mean(covered, axis=0) < 0.99)).all()
    assert not of_mean(everything, 40).any()
    assert (of_mean(everything[:1], 40) == everything[0]).all()


def test_a_generation_is_scaled_by_its_full_batches(tmp_path: Path) -> None:
    prepared = prepare(runs.recipe(tmp_path, {"name": "seqkd"}))  # 11 rows in batches of 4
    took = (9.0, 4.0, 6.0, 1.0)
    calls = [Call(n, 8 * n, 8 * n, seconds(s)) for n, s in zip((4, 4, 4, 1), took, strict=True)]
    found = generation("s", prepared, calls, {"loading": seconds(2.0), "": seconds(2.0 + 20.0 + 1.0)})
    assert found.seconds == pytest.approx({"loading": 2.0, "generation": 11 * 5 / 4, "other": 1.0})
    assert found.apart == pytest.approx(seconds(12.7062 * 11 * 2**0.5 / 4 * (1 / 2 - 1 / 3) ** 0.5))
    assert (found.timed, found.steps) == (2, 3)
    (alone,) = (generation("s", prepared, calls[:1], {"": seconds(9.0)}),)
    assert alone.seconds["generation"] == pytest.approx(11 * 9 / 4)


def test_laps_hold_what_their_phases_took_and_nothing_from_between(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [0.0]
    monkeypatch.setattr(stopwatch, "now", lambda: seconds(at[0]))
    clocks = Clocks(lambda _: None)
    laps = Laps(clocks)

    def spend(name: str, amount: float) -> None:
        with clocks(name):
            at[0] += amount

    laps.begin(cast(Course, None))
    at[0] += 1
    with clocks.outside("caching"):
        at[0] += 50
    laps.outside("caching", 50.0)
    for amount in (2.0, 3.0):
        spend("student", amount)
        at[0] += 0.25
        spend("backward", 2 * amount)
        laps.step(1, {"student": 0.0, "backward": 0.0})
        with clocks.outside("saving"):
            at[0] += 7
        laps.outside("saving", 7.0)
    found = [{name: float(spent[0]) for name, spent in lap.items()} for lap in laps.steps]
    assert found == [
        {"student": 2.0, "backward": 4.0, "other": 0.25},
        {"student": 3.0, "backward": 6.0, "other": 0.25},
    ]
    assert laps.saved.tolist() == [14.0, 7.0] and clocks.spent["caching"].tolist() == [50.0, 25.0]


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_by_steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, list[int]]]]:
    """By title of a training: (epoch, rows) of each step that is taken."""
    found: dict[str, list[tuple[int, list[int]]]] = {}
    real = DistillationTrainer.training_step

    def noting(self: DistillationTrainer, *arguments: Any) -> torch.Tensor:
        epoch, rows, _ = self.window_rows(self.state.global_step)
        found.setdefault(self.title, []).append((epoch, [row.index for row in rows]))
        return real(self, *arguments)

    monkeypatch.setattr(DistillationTrainer, "training_step", noting)
    return found


def check(planned: Plan) -> None:
    """What holds for every measurement."""
    assert planned.measured is not None
    for one in (planned.measured, *planned.measured.stages):
        assert (one.low <= one.total + 1e-9).all() and (one.total <= one.high + 1e-9).all() and (one.low > 0).all()
    assert planned.hours == pytest.approx(float(planned.measured.total[0]) / 3600)
    own = next(item.bytes for item in planned.stages[0].memory.items)
    for stage, one in zip(planned.stages, planned.measured.stages, strict=True):
        assert one.stage == stage.memory.stage and one.peak > 0.8 * own and one.steps == stage.time.steps


@pytest.mark.slow
def test_it_takes_the_steps_that_the_run_takes_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = runs.recipe(tmp_path, DUDI, training={"cache": "memory"}, data={"eval_rows_per_language": 1}, number=40)
    prepared = prepare(recipe)
    wanted = [[s for side in sides(prepared, stage) for s in side.measured] for stage in trainings(prepared)]
    before, taken = runs.digests(tmp_path), read_by_steps(monkeypatch)
    planned = plan(recipe, CPU, measure=True)
    assert [*taken.values()] == [[(s.epoch, [row.index for row in s.rows]) for s in steps] for steps in wanted]
    assert runs.digests(tmp_path) == before and not [*tmp_path.glob(".*")]
    check(planned)
    assert planned.measured is not None
    names = {*PHASES, "loading", "evaluation", "saving", "other"}
    cold, own = planned.measured.stages
    assert {*cold.seconds} == names and cold.rollouts is None
    assert {*own.seconds} == {*names, "caching"}
    assert own.rollouts is not None and 0 < own.rollouts[0] <= own.rollouts[1] == 8
    heads = [part.columns[0].header for part in parts(planned) if not isinstance(part, str)]
    assert heads.index("measured") == heads.index("time") + 1
    json.dumps(planned.table())


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"name": "seqkd"}, {"name": "spin", "iterations": 2}, {"name": "sdft"}], ids=str)
def test_every_kind_of_stage_is_measured(tmp_path: Path, method: dict[str, Any]) -> None:
    planned = plan(runs.recipe(tmp_path, method, number=20), CPU, measure=True)
    check(planned)
    assert [stage.memory.stage for stage in planned.stages] == [one.stage for one in planned.measured.stages]  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_command_measures_and_a_run_may_begin_beside_its_plan(dudi: Dudi) -> None:
    file = dudi.out / "plan.json"
    assert dudi("plan", str(dudi.file), "--measure", "--json", str(file)) == 0, dudi.err
    text = " ".join(dudi.text.split())
    assert "measured cold-start dudi" in text and "peak, measured" in text and "measured here: " in text
    assert [*dudi.out.iterdir()] == [file]
    check_folder(dudi.out)
    before = file.read_bytes()
    with pytest.raises(DudiError, match="broken"), whole_or_absent(dudi.out, new=True):
        (dudi.out / "recipe.toml").touch()
        raise DudiError("broken")
    assert [*dudi.out.iterdir()] == [file] and file.read_bytes() == before


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--device", "h200"), "--measure: steps are run on the device of this machine, cpu; found --device h200:"),
        (("--device", "h200", "--gpus", "2"), "--measure: one device is measured, found --gpus 2: leave one"),
    ],
)
def test_another_machine_is_refused(dudi: Dudi, options: tuple[str, ...], line: str) -> None:
    assert dudi.refused("plan", str(dudi.file), "--measure", *options).startswith(line)


def test_a_launcher_and_other_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Device(CPU, "this CPU", 1e9, 1e9, 1e9, 1e9)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(DudiError, match="--measure: one process measures, found WORLD_SIZE"):
        measure.check_here(here, 1)
    monkeypatch.delenv("WORLD_SIZE")
    measure.check_here(here, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("dudi.run.plan.devices._present", lambda: ("NVIDIA L4", 24e9))
    assert of_this_machine() == "l4"
    measure.check_here(DEVICES["l4"], 1)
    for device in (here, DEVICES["h200"]):
        with pytest.raises(DudiError, match=f"device of this machine, l4; found --device {device.name}"):
            measure.check_here(device, 1)
    monkeypatch.setattr("dudi.run.plan.devices._present", lambda: ("Radeon 9", 24e9))
    measure.check_here(DEVICES["l4"], 1)  # named as the likest
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DudiError, match="found 2 GPUs: choose one, CUDA_VISIBLE_DEVICES=0"):
        measure.check_here(DEVICES["l4"], 1)


@pytest.mark.slow
def test_what_goes_wrong_in_a_stage_is_one_line_and_leaves_nothing(dudi: Dudi) -> None:
    made = kit.model(2, hidden=64, rows=kit.VOCAB + 20, dtype=torch.float32)
    with torch.no_grad():
        made.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    broken = kit.save(dudi.folder / "broken", made, kit.tokenizer())
    before = set(dudi.folder.rglob("*"))
    assert dudi("plan", str(dudi.file), "--measure", "--set", f"models.teacher='{broken}'") == 2
    line = dudi.err.splitlines()[-1]  # after what takes long, on a machine where it does
    assert line.startswith("dudi: measuring of stage 'dudi': teacher: the model's logits are not finite")
    assert set(dudi.folder.rglob("*")) == before


def test_a_run_that_does_not_fit_is_not_measured(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(DEVICES["l4"], name=CPU, memory=1e6)
    monkeypatch.setattr("dudi.run.plan.plan.choose", lambda name: small)
    assert dudi("plan", str(dudi.file), "--measure") == 1
    assert dudi.err.endswith("nothing was measured: the run does not fit\n") and "does not fit: stage" in dudi.text
