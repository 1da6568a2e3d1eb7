"""A run folder, read: recipe, versions, data, and what each stage logged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Recipe
from dudi.records import fifths
from dudi.strict import read_each, read_one

T = TypeVar("T")
_STAGE = re.compile(r"(\d+)-(.+)")


class Record(BaseModel):
    """What the report reads of a JSON object that a run wrote; other keys of it are left alone."""

    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())


class SignalLoss(Record):
    """One signal's mean loss over the steps since the line before; count: tokens, or rows."""

    loss: float
    count: float
    weight: float


class RolloutCell(Record):
    """Responses sampled for one view; a cell whose prompts were all too long has no rows."""

    rows: float = 0
    length: float = 0
    share_cut: float = 0
    eos_rate: float = 0
    dropped: float = 0


class Rollouts(RolloutCell):
    """All languages together, and each."""

    by_language: dict[str, RolloutCell]


class Measured(Record):
    """Where student and teacher agree, in one view."""

    overlap: float
    overlap_mass: float
    entropy_student: float
    entropy_teacher: float
    count: float


class Held(Record):
    """The losses on the rows held out."""

    loss: float
    signal: dict[str, SignalLoss] = Field(default={})


class Line(Record):
    """One line of metrics.jsonl: of the training steps, or (`eval`) of the rows held out."""

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    signal: dict[str, SignalLoss] = Field(default={})
    rollout: dict[str, Rollouts] = Field(default={})
    measure: dict[str, Measured] = Field(default={})
    eval: Held | None = None


class LengthsOf(Record):
    """lengths.json, of one language."""

    rows: int
    left_out: int
    cut: int
    characters_per_token: float


class DataOf(Record):
    """data/report.json, of one language."""

    read: int
    duplicated: int
    filtered: dict[str, int]
    broken: dict[str, int]
    zawgyi: int
    undrawn: int
    eval: int
    kept: int


class Data(Record):
    """data/report.json."""

    languages: dict[str, DataOf]


class Environment(Record):
    """environment.json."""

    packages: dict[str, str]
    device: str
    processes: int


class Sample(Record):
    """One line of rollouts.jsonl: a response as text. prompt: the end of what the student read."""

    step: int
    view: str
    language: str
    l_z: str | None
    row: int
    prompt: str
    text: str
    finished: bool


class Phases(Record):
    """phases.json: seconds outside of steps, and bytes at the peak of every phase."""

    seconds: dict[str, NonNegativeFloat] = Field(default={})
    memory: dict[str, NonNegativeInt] = Field(default={})


class Device(Record):
    """What a run was planned for."""

    title: str


class PlannedStage(Record):
    """A stage in plan.json: modelled seconds by phase, and bytes at the peak."""

    stage: str
    steps: NonNegativeInt
    seconds: dict[str, NonNegativeFloat]
    peak: NonNegativeFloat


class Range(Record):
    """Seconds of a stage, as few and as many as the steps drawn make likely."""

    low: NonNegativeFloat
    expected: NonNegativeFloat
    high: NonNegativeFloat


class TriedStage(Record):
    """A stage in plan.json of which some steps were run (`dudi plan --measure`), scaled to all of it."""

    stage: str
    seconds: dict[str, float]
    wall: Range
    peak: NonNegativeInt


class Tried(Record):
    """All stages."""

    stages: tuple[TriedStage, ...]


class Planned(Record):
    """plan.json, where there is one: what `dudi plan` said of the run."""

    device: Device
    stages: tuple[PlannedStage, ...]
    measured: Tried | None = None


@dataclass(frozen=True)
class Timed:
    """What a stage took: a training, or the writing of answers, which has no steps."""

    name: str
    steps: int
    of_steps: dict[str, float]
    """Seconds by phase, summed over the steps."""
    outside: dict[str, float]
    """Seconds of phases outside of steps."""
    memory: dict[str, int]

    @property
    def seconds(self) -> dict[str, float]:
        """By phase; one that is in both (a loading within a step) is added up."""
        names = dict.fromkeys((*self.outside, *self.of_steps))
        return {name: self.outside.get(name, 0.0) + self.of_steps.get(name, 0.0) for name in names}


@dataclass(frozen=True)
class Stage:
    """One training of a run, as far as it has come."""

    name: str
    lines: tuple[Line, ...]
    """Of the training, in order of steps."""
    held: tuple[Line, ...]
    """Of the rows held out."""
    samples: tuple[Sample, ...]
    """A few rollouts as text, in order of steps."""

    @property
    def steps(self) -> int:
        """The last step logged."""
        return self.lines[-1].step

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of its signals, in the order of the method."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.signal))

    def late(self) -> tuple[Line, ...]:
        """The lines of the last fifth of the steps, at least one."""
        return tuple(fifths(((line.step, line) for line in self.lines), self.steps)[1])


@dataclass(frozen=True)
class Run:
    """A run folder."""

    label: str
    folder: Path
    recipe: Recipe
    environment: Environment
    lengths: dict[str, LengthsOf]
    data: dict[str, DataOf]
    stages: tuple[Stage, ...]
    timed: tuple[Timed, ...]
    finished: bool
    planned: Planned | None


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Run folders, each under the shortest end of its path that no other has. Raises `DudiError`."""
    full = [folder.expanduser().resolve() for folder in folders]
    for at, folder in enumerate(full):
        if folder in full[:at]:
            raise DudiError(f"run {str(folders[at])!r} is given twice")
    labels = _labels(full)
    return tuple(_read_run(given, label) for given, label in zip(folders, labels, strict=True))


def _labels(folders: Sequence[Path]) -> list[str]:
    depth = 1
    while True:
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
        depth += 1


def _read_run(folder: Path, label: str) -> Run:
    if not folder.is_dir():
        raise DudiError(f"no run folder {str(folder)!r}")
    for name in ("recipe.toml", "environment.json", "lengths.json", "data/report.json"):
        if not (folder / name).is_file():
            raise DudiError(f"{str(folder)!r} is not the folder of a run: {name} is missing")
    found = [(match, inner) for inner in folder.iterdir() if (match := _STAGE.fullmatch(inner.name))]
    numbered = sorted((int(match[1]), match[2], inner) for match, inner in found)
    return Run(
        label=label,
        folder=folder,
        recipe=load_recipe(folder / "recipe.toml"),
        environment=read_one(Environment, folder / "environment.json"),
        lengths=read_one(dict[str, LengthsOf], folder / "lengths.json"),
        data=read_one(Data, folder / "data" / "report.json").languages,
        stages=tuple(stage for _, name, inner in numbered if (stage := _read_stage(name, inner)).lines),
        timed=tuple(timed for _, name, inner in numbered if (timed := _read_times(name, inner)).seconds),
        finished=(folder / "summary.json").is_file(),
        planned=read_one(Planned, plan) if (plan := folder / "plan.json").is_file() else None,
    )


def _read_stage(name: str, folder: Path) -> Stage:
    lines = _read_growing(Line, folder / "metrics.jsonl")
    return Stage(
        name=name,
        lines=tuple(line for line in lines if line.signal),
        held=tuple(line for line in lines if line.eval is not None),
        samples=tuple(_read_growing(Sample, folder / "rollouts.jsonl")),
    )


def _read_times(name: str, folder: Path) -> Timed:
    seconds: dict[str, float] = {}
    timed = _read_growing(dict[str, NonNegativeFloat], folder / "times.jsonl")
    for line in timed:
        for phase, value in line.items():
            if phase != "step":
                seconds[phase] = seconds.get(phase, 0.0) + value
    file = folder / "phases.json"
    phases = read_one(Phases, file) if file.is_file() else Phases()
    return Timed(name, len(timed), seconds, phases.seconds, phases.memory)


def _read_growing(kind: type[T], file: Path) -> list[T]:
    """The lines of a file that a run is still writing, or has not begun."""
    return read_each(kind, file, growing=True) if file.is_file() else []
