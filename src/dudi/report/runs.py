"""A run folder, read: recipe, versions, data, and what each stage logged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Recipe
from dudi.records import fifths
from dudi.strict import read_each, read_one

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


@dataclass(frozen=True)
class Stage:
    """One training of a run, as far as it has come."""

    name: str
    lines: tuple[Line, ...]
    """Of the training, in order of steps."""
    held: tuple[Line, ...]
    """Of the rows held out."""
    seconds: dict[str, float]
    timed_steps: int

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
    finished: bool


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
    numbered = []
    for inner in folder.iterdir():
        match = _STAGE.fullmatch(inner.name)
        if match and (inner / "metrics.jsonl").is_file():
            numbered.append((int(match[1]), match[2], inner))
    return Run(
        label=label,
        folder=folder,
        recipe=load_recipe(folder / "recipe.toml"),
        environment=read_one(Environment, folder / "environment.json"),
        lengths=read_one(dict[str, LengthsOf], folder / "lengths.json"),
        data=read_one(Data, folder / "data" / "report.json").languages,
        stages=tuple(s for s in (_read_stage(name, inner) for _, name, inner in sorted(numbered)) if s.lines),
        finished=(folder / "summary.json").is_file(),
    )


def _read_stage(name: str, folder: Path) -> Stage:
    lines = read_each(Line, folder / "metrics.jsonl", growing=True)
    seconds: dict[str, float] = {}
    times = folder / "times.jsonl"
    timed = read_each(dict[str, NonNegativeFloat], times, growing=True) if times.is_file() else []
    for line in timed:
        for phase, value in line.items():
            if phase != "step":
                seconds[phase] = seconds.get(phase, 0.0) + value
    return Stage(
        name=name,
        lines=tuple(line for line in lines if line.signal),
        held=tuple(line for line in lines if line.eval is not None),
        seconds=seconds,
        timed_steps=len(timed),
    )
