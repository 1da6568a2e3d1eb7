"""`dudi plan --measure`: real steps of each stage, on this machine, scaled to the whole run.

A rehearsal on rows of the run's own steps: each stage loads its models, takes some of the very steps that the run will
take, evaluates a batch, saves, and hands its result to the next. What is in no step is counted as often as it happens.
All of it is written to a folder beside the run's, which is gone afterwards.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState

from dudi.errors import DudiError
from dudi.files import nearest
from dudi.recipe.schema import Training
from dudi.recipe.stages import COLD_START, Generate, Stage, Train
from dudi.recipe.stages import plan as stages_of
from dudi.rollouts import Engine
from dudi.run.machine import deterministic
from dudi.run.pipeline import Pipeline
from dudi.run.plan.devices import Device, of_this_machine
from dudi.run.plan.memory import PHASES
from dudi.run.plan.scaled import GENERATION, Measured, generation, training
from dudi.run.plan.stopwatch import NOTHING, Call, Clocks, Laps, Spent, Timed, now
from dudi.run.plan.windows import RealStep, Side, sides
from dudi.run.prepare import Prepared
from dudi.run.rehearsal import folder_beside, naming, silent
from dudi.signals import Signal
from dudi.training import faults, phases
from dudi.training.job import Job
from dudi.training.trainer import DistillationTrainer
from dudi.training.window import Row

FOLDER = ".measure-"


def check_here(planned: Device, gpus: int) -> None:
    """Raises `DudiError` where this machine, or this process, is not what is planned for."""
    present = torch.cuda.device_count()
    if gpus > 1:
        raise DudiError(f"--measure: one device is measured, found --gpus {gpus}: leave one of the two options out")
    if "WORLD_SIZE" in os.environ:
        raise DudiError(
            "--measure: one process measures, found WORLD_SIZE in the environment: start without a launcher"
        )
    if present > 1:
        raise DudiError(f"--measure: one device is measured, found {present} GPUs: choose one, CUDA_VISIBLE_DEVICES=0")
    mine = of_this_machine()
    if planned.is_cpu is torch.cuda.is_available() or mine not in (None, planned.name):
        raise DudiError(
            f"--measure: steps are run on the device of this machine, {mine or 'a GPU'}; found --device {planned.name}:"
            " leave one of the two options out"
        )


class SomeSteps(DistillationTrainer):
    """The trainer, on some of the steps of a run."""

    def __init__(self, steps: tuple[RealStep, ...], *arguments: Any) -> None:
        self.steps = steps
        super().__init__(*arguments)

    def batch_rows(self, step: int) -> tuple[int, list[Row]]:
        """Those of the real step in its place."""
        one = self.steps[step % len(self.steps)]
        return one.epoch, one.rows

    def signals(self, step: int) -> tuple[Signal, ...]:
        """What the real step reads."""
        return self.steps[step % len(self.steps)].signals


@dataclass(frozen=True)
class Measuring(Pipeline):
    """The stages of a run, whose trainings take some of their steps, and whose engine is timed."""

    windows: Mapping[str, tuple[Side, ...]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def _trainer(self, stage: Train, job: Job, title: str) -> DistillationTrainer:
        steps = tuple(step for side in self.windows[stage.name] for step in side.measured)
        return SomeSteps(steps, job, self.callbacks, self.monitors, title, self.stop, self.say, self.phases)

    def _engine(self) -> Engine:
        return Timed(super()._engine(), self.calls)


def measure(prepared: Prepared, base: int, say: Callable[[str], None] = silent) -> tuple[Measured, ...]:
    """Every stage of a run, measured. base: resident bytes of the process before it planned (0 on a GPU).

    Raises `DudiError` with the stage and its models for whatever goes wrong.
    """
    recipe = prepared.recipe
    windows = {stage.name: sides(prepared, stage) for stage in stages_of(recipe) if isinstance(stage, Train)}
    small = excerpt(prepared, windows)
    stages = stages_of(small.recipe)
    clocks = Clocks(say)
    laps = Laps(clocks)
    found: list[Measured] = []
    output = Path(recipe.output.format(name=recipe.name)).absolute()
    state = PartialState(cpu=not torch.cuda.is_available())
    phases.trim()
    more = psutil.Process().memory_info().rss - base if base else 0
    every = [stage.training for stage in stages if isinstance(stage, Train)]
    with deterministic(every), folder_beside(nearest(output.parent), FOLDER) as folder:
        pipeline = Measuring(
            small, stages, folder, state, (laps,), (), silent, faults.Stop(), clocks, trial=True, windows=windows
        )
        for stage, whole in zip(stages, stages_of(recipe), strict=True):
            laps.clear()
            pipeline.calls.clear()
            with naming("measuring", stage, recipe):
                spent = _spent(pipeline, stage, clocks)
            peaks = phases.read(pipeline._of(stage.name))["memory"]
            peak, phase = max((peaks[name] - more, name) for name in (*PHASES, GENERATION) if name in peaks)
            if isinstance(whole, Generate):
                one = generation(whole.name, prepared, pipeline.calls, spent)
            else:
                one = training(whole, windows[whole.name], prepared, small, laps, spent)
            found.append(replace(one, peak=peak, phase=phase, rollouts=_mean_lengths(pipeline.calls)))
            gc.collect()
    return tuple(found)


def _spent(pipeline: Pipeline, stage: Stage, clocks: Clocks) -> dict[str, Spent]:
    """A stage, run. What it took in all, under "", and outside of steps by phase."""
    before, began = dict(clocks.spent), now()
    pipeline.run(stage)
    found = {name: spent - before.get(name, NOTHING) for name, spent in clocks.spent.items() if name not in PHASES}
    return {**found, "": now() - began}


def _mean_lengths(calls: list[Call]) -> tuple[float, float] | None:
    """Mean tokens of what was sampled, and of its limits."""
    requests = sum(call.requests for call in calls)
    if not requests:
        return None
    return sum(call.tokens for call in calls) / requests, sum(call.limit for call in calls) / requests


def excerpt(prepared: Prepared, windows: Mapping[str, tuple[Side, ...]]) -> Prepared:
    """The recipe on the rows of some of its steps and on a batch of its evaluation rows."""
    recipe, evals = prepared.recipe, prepared.eval.rows
    steps = {name: [step for side in found for step in side.measured] for name, found in windows.items()}
    read = {row.index for found in steps.values() for step in found for row in step.rows}
    batch = min(recipe.training.batch, len(evals))
    held = {row.index for row in random.Random(recipe.seed).sample(evals, batch)}

    def short(training: Training, name: str | None) -> Training:
        small = {"max_steps": len(steps[name]) if name else 1, "save_every": 10**9, "eval_every": 0, "report_to": ()}
        return training.model_copy(update=small)

    own = next(name for name in windows if name != COLD_START)
    cold = recipe.cold_start
    cold_start = short(cold.training, COLD_START if COLD_START in windows else None)
    changes = {
        "training": short(recipe.training, own),
        "cold_start": cold.model_copy(update={"training": cold_start}),
    }
    return replace(
        prepared,
        recipe=recipe.model_copy(update=changes),
        train=replace(prepared.train, rows=tuple(row for row in prepared.train.rows if row.index in read)),
        eval=replace(prepared.eval, rows=tuple(row for row in evals if row.index in held)),
    )
