"""A recipe, planned: what the run's own preparation says of the rows, then memory, time, disk. No weights are read,
unless real steps are measured (`dudi.run.plan.measure`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from dudi.errors import DudiError
from dudi.recipe.schema import LimitName, Recipe
from dudi.recipe.stages import COLD_START, Generate, Train
from dudi.recipe.stages import plan as stages_of
from dudi.run.caching import caches
from dudi.run.machine import quiet_library
from dudi.run.plan.devices import Device, choose
from dudi.run.plan.disk import Disk, disk
from dudi.run.plan.measure import check_here
from dudi.run.plan.measure import measure as measured_stages
from dudi.run.plan.memory import Machine, Memory, Training, generation
from dudi.run.plan.reading import Reading
from dudi.run.plan.scaled import Measurement
from dudi.run.plan.seconds import Clock, Time, generation_time
from dudi.run.plan.shapes import shapes
from dudi.run.plan.stopwatch import Clocks
from dudi.run.prepare import Prepared, prepare
from dudi.run.rehearsal import silent
from dudi.signals import Mode, judged, views
from dudi.text.trial import Lengths, Trial

SAMPLE = 100
"""Rows of a language whose z is measured, for a limit to propose."""
LIMITS: tuple[LimitName, ...] = ("prompt", "total", "teacher_prompt")


@dataclass(frozen=True)
class Stage:
    """A stage, planned. micro_batch: of the recipe, and the largest that fits; None for a generation."""

    memory: Memory
    time: Time
    parameters: int
    micro_batch: int | None = None
    largest: int | None = None


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it begins.

    lengths, said: as the run writes and says them; tokens: by language, of x and of y, in one pass over the rows;
    limits, proposed: by language and name, as they are and so that they leave out or cut at most 2 % of the rows.
    """

    recipe: Recipe
    device: Device
    gpus: int
    price: float | None
    lengths: dict[str, dict[str, Any]]
    said: tuple[str, ...]
    tokens: dict[str, tuple[int, int]]
    limits: dict[str, dict[str, int]]
    proposed: dict[str, dict[str, int]]
    stages: tuple[Stage, ...]
    disk: Disk
    faults: tuple[str, ...]
    measured: Measurement | None = None

    @property
    def hours(self) -> float:
        """Of the whole run, by the clock: as measured, or else as modelled."""
        if self.measured is not None:
            return float(self.measured.total[0]) / 3600
        return sum(stage.time.total for stage in self.stages) / 3600

    @property
    def device_hours(self) -> float:
        """Those that are paid for."""
        return self.hours * self.gpus

    @property
    def money(self) -> float | None:
        """At the price of a device for an hour."""
        return None if self.price is None else self.device_hours * self.price

    def table(self) -> dict[str, Any]:
        """All of it, for machines: bytes, seconds, hours."""
        return {
            "recipe": self.recipe.name,
            "device": asdict(self.device),
            "gpus": self.gpus,
            "fits": not self.faults,
            "faults": list(self.faults),
            "lengths": self.lengths,
            "said": list(self.said),
            "tokens": {l: {"x": x, "y": y} for l, (x, y) in self.tokens.items()},
            "limits": self.limits,
            "proposed": self.proposed,
            "stages": [
                {
                    "stage": stage.memory.stage,
                    "parameters": stage.parameters,
                    "memory": [asdict(item) for item in stage.memory.items],
                    "unknown": list(stage.memory.unknown),
                    "peak": stage.memory.peak,
                    "peak_phase": stage.memory.phase,
                    "micro_batch": stage.micro_batch,
                    "largest_micro_batch": stage.largest,
                    "steps": stage.time.steps,
                    "seconds": stage.time.seconds,
                }
                for stage in self.stages
            ],
            "hours": self.hours,
            "device_hours": self.device_hours,
            "money": self.money,
            "disk": asdict(self.disk),
            "measured": None if self.measured is None else self.measured.table(),
        }


def plan(
    recipe: Recipe,
    device: str | None = None,
    gpus: int = 1,
    price: float | None = None,
    measure: bool = False,
    say: Callable[[str], None] = silent,
) -> Plan:
    """Plan a run on so many devices of a kind (`dudi.run.plan.devices`). Raises `DudiError` as the run itself would.

    measure: run some real steps of each stage here, if the run fits; `say` hears of what takes long.
    """
    quiet_library()
    chosen, clocks = choose(device), Clocks(say)
    _check(chosen, gpus, price)
    if measure:
        check_here(chosen, gpus)
    if recipe.models.precision == "auto":  # as it will be there, and not as it would be here
        models = recipe.models.model_copy(update={"precision": "float32" if chosen.is_cpu else "bfloat16"})
        recipe = recipe.model_copy(update={"models": models})
    prepared = prepare(recipe, phases=clocks)
    recipe = prepared.recipe
    folder = Path(recipe.output.format(name=recipe.name))
    cached = caches(prepared, folder, gpus)
    base = psutil.Process().memory_info().rss if chosen.is_cpu else 0
    machine = Machine(chosen, gpus, shapes(recipe), stages_of(recipe), base)
    stages = tuple(_stage(prepared, stage, machine) for stage in machine.stages)
    room = disk(prepared, machine, folder)
    proposed, faults = _proposed(prepared), tuple(_faults(prepared, machine, stages, room))
    measured = Measurement(clocks.spent, measured_stages(prepared, base, say)) if measure and not faults else None
    return Plan(
        recipe=recipe,
        device=chosen,
        gpus=gpus,
        price=price,
        lengths=prepared.lengths(),
        said=(*prepared.said, *cached, *_served(recipe, machine)),
        tokens=_tokens(prepared),
        limits={
            l: {name: recipe.limits.of(name, l) for name in LIMITS if name in of_l} for l, of_l in proposed.items()
        },
        proposed=proposed,
        stages=stages,
        disk=room,
        faults=faults,
        measured=measured,
    )


def _check(device: Device, gpus: int, price: float | None) -> None:
    if gpus < 1:
        raise DudiError(f"--gpus: expected a number from 1 on, found {gpus}")
    if gpus > 1 and device.is_cpu:
        raise DudiError(f"--gpus: the CPU of this machine is one device, found {gpus}; name a GPU with --device")
    if price is not None and not 0 <= price < float("inf"):
        raise DudiError(f"--price: expected the price of a device for an hour, found {price:g}")


def _stage(prepared: Prepared, stage: Train | Generate, machine: Machine) -> Stage:
    if isinstance(stage, Generate):
        parameters = machine.shape(stage.writer).parameters
        if prepared.recipe.rollouts.server is not None:
            return Stage(Memory(stage.name, tuple(machine.process())), Time(stage.name, 0, {}), parameters)
        return Stage(generation(prepared, stage, machine), generation_time(prepared, stage, machine), parameters)
    training = Training(prepared, stage, machine)
    return Stage(
        training.memory(),
        Clock(prepared, stage, machine).time(),
        machine.shape(stage.start).trained,
        min(stage.training.micro_batch, Reading(prepared, stage, machine.gpus).rows),
        training.largest_micro_batch(stage.training.gradient_checkpointing),
    )


def _served(recipe: Recipe, machine: Machine) -> Iterator[str]:
    """What is done elsewhere."""
    for stage in machine.stages:
        if isinstance(stage, Generate) and recipe.rollouts.server is not None:
            yield f"{stage.name}: by rollouts.server, whose memory and time are not counted"


def _faults(prepared: Prepared, machine: Machine, stages: tuple[Stage, ...], room: Disk) -> Iterator[str]:
    """What does not fit, each in one line with what to change."""
    for stage, planned in zip(machine.stages, stages, strict=True):
        memory, usable = planned.memory, machine.device.usable
        if memory.peak > usable:
            yield (
                f"stage {memory.stage!r} needs {gb(memory.peak)} (phase {memory.phase}), {machine.device.title} has"
                f" {gb(usable)} for it: {_advice(prepared, stage, machine, planned)}"
            )
    if room.total > room.free:
        yield (
            f"the run writes up to {gb(room.total)}, and {room.folder!r} has {gb(room.free)} free: free disk space,"
            " choose another folder with --set output=FOLDER, or lower training.keep_checkpoints"
        )


def _advice(prepared: Prepared, stage: Train | Generate, machine: Machine, planned: Stage) -> str:
    """What would make a stage fit: the least that does."""
    if isinstance(stage, Train):
        table = "cold_start.training" if stage.name == COLD_START else "training"
        if planned.largest:
            return f"set {table}.micro_batch = {planned.largest}"
        if not stage.training.gradient_checkpointing:
            rows = Training(prepared, stage, machine).largest_micro_batch(checkpointing=True)
            if rows:
                return f"set {table}.gradient_checkpointing = true and {table}.micro_batch = {rows}"
    if planned.memory.phase == "rollout":
        return "lower training.batch, limits.prompt or limits.rollout, or take a device with more memory"
    if (
        isinstance(stage, Train)
        and stage.method.judged_by_larger
        and prepared.recipe.models.teacher_sharding != "shard"
    ):
        return 'take a device with more memory, or several and models.teacher_sharding = "shard"'
    return "take a device with more memory, or smaller models"


def _tokens(prepared: Prepared) -> dict[str, tuple[int, int]]:
    found = dict.fromkeys(prepared.languages, (0, 0))
    for row in prepared.train.rows:
        x, y = found[row.example.l]
        found[row.example.l] = x + len(row.x), y + len(row.y)
    return found


def _proposed(prepared: Prepared) -> dict[str, dict[str, int]]:
    """Limits by language that leave out or cut at most 2 % of the rows, from every row as it was tokenized; z is
    measured of some."""
    _, _, ids = prepared.tokens[0]
    signals = prepared.recipe.to_method().signals
    view = next((v for v in views(signals) if v.verbalizer is not Mode.NONE and v in judged(signals)), None)
    done = dict.fromkeys(prepared.languages, 0)
    trial = Trial(prepared.chat) if view is None else Trial(prepared.chat, prepared.verbalizer, view)
    for example, one in zip(prepared.data.train, ids, strict=True):
        if one.refused is not None:
            continue
        if view is not None and done[example.l] < SAMPLE:
            done[example.l] += 1
            trial.add(example)
        else:
            trial.lengths.setdefault(example.l, []).append(Lengths(len(one.x), len(one.y)))
    found = dict(zip(LIMITS, trial.limits(), strict=True))
    return {l: {name: by_language[l] for name, by_language in found.items() if l in by_language} for l in trial.lengths}


def gb(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
