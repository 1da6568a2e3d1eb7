"""Finished cells as JSON lines: all that tables, figures and verdicts are made of. Lines are added, never changed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.evals.respond import fingerprint
from dudi.files import read_lines
from dudi.lab.tables.cells import Job, hashed
from dudi.lab.tables.findings import AVERAGE, OVERLAP
from dudi.lab.tables.work import COST, seconds_of
from dudi.languages import ENGLISH, LANGUAGES
from dudi.records import Table
from dudi.signals import Response
from dudi.strict import read_each, read_one
from dudi.training.monitors import METRICS

FILE = "cells.jsonl"
Name = tuple[str, int | None]
"""Cell and seed."""


@dataclass(frozen=True)
class Overlap:
    """Of one logged step, over `count` rollout tokens: the share of the 16 likeliest that student and teacher have in
    common; and by language."""

    step: int
    count: float
    share: float
    languages: dict[str, float]


@dataclass(frozen=True)
class Line:
    """One cell under one seed, done. Scores are those of `dudi eval`, unrounded; None: refused."""

    cell: str
    seed: int | None
    key: str
    average: float | None
    without_translation: float | None
    languages: dict[str, float | None]
    languages_without_translation: dict[str, float | None]
    competencies: dict[str, float | None]
    overlap: tuple[Overlap, ...]
    weights: str
    """SHA-256 of what was evaluated."""
    seconds: dict[str, float]
    """Of training, by stage, and of the evaluation."""
    settings: dict[str, Any]
    environment: dict[str, str]

    @property
    def codes(self) -> list[str]:
        """The languages in the paper's order, and English, which no average has, after them."""
        return sorted(self.languages, key=lambda l: (l == ENGLISH, [*LANGUAGES].index(l)))

    @property
    def name(self) -> Name:
        """One line each."""
        return self.cell, self.seed

    def score(self, measure: str) -> float | None:
        """As findings.toml names measures; the overlap in percent, over all rollout tokens. None: there is none."""
        kind, _, part = measure.partition(".")
        if kind == OVERLAP:
            tokens = sum(one.count for one in self.overlap)
            return 100 * sum(one.count * one.share for one in self.overlap) / tokens if tokens else None
        if kind == AVERAGE:
            return self.average
        return {"language": self.languages, "competency": self.competencies}[kind].get(part)

    @property
    def scores(self) -> tuple[Any, ...]:
        """All of them: 3,700 answers, of which two trainings have the same only where they are the same."""
        return (
            *(self.average, self.without_translation, self.languages, self.languages_without_translation),
            self.competencies,
        )

    @property
    def content(self) -> dict[str, Any]:
        """All but what differs from run to run: times, date, machine."""
        return {name: value for name, value in asdict(self).items() if name not in ("seconds", "environment")}


def read(folder: Path) -> dict[Name, Line]:
    """The lines of a folder by cell and seed. Raises `DudiError` where two are of the same."""
    file = folder / FILE
    found: dict[Name, Line] = {}
    for line in read_each(Line, file, growing=True) if file.exists() else []:
        if line.name in found:
            raise DudiError(f"{file}: two lines of {line.cell}, seed {line.seed}; remove one")
        found[line.name] = line
    return found


def add(folder: Path, line: Line) -> None:
    """One line, on the disk when this returns; what a kill left of a line before it is cut away."""
    file = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(line), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
    with file.open("ab+") as opened:
        opened.seek(0)
        whole = opened.read().rfind(b"\n") + 1
        opened.truncate(whole)
        opened.write(text.encode())
        opened.flush()
        os.fsync(opened.fileno())


def line_of(job: Job) -> Line:
    """What a finished job has in its folder."""
    settings = dict(job.settings)
    if job.start is not None and job.recipe is not None and job.recipe.cold_start.checkpoint is not None:
        settings["start_weights"] = fingerprint(Path(job.recipe.cold_start.checkpoint))["weights_sha256"]
    table = read_one(Table, job.folder / "eval" / "table.json")
    about = json.loads((job.folder / "eval" / "eval.json").read_text(encoding="utf-8"))
    cost = json.loads((job.folder / COST).read_text(encoding="utf-8"))
    packages = ("dudi", "torch", "transformers", "numpy")
    return Line(
        cell=job.cell.name,
        seed=job.seed,
        key=job.key,
        average=table.overall.mean,
        without_translation=table.overall_without_translation.mean,
        languages={l: one.mean for l, one in table.by_language.items()},
        languages_without_translation={l: one.mean for l, one in table.by_language_without_translation.items()},
        competencies={c: one.mean for c, one in table.competency_overall.items()},
        overlap=() if job.recipe is None else overlaps(job.model.parent / METRICS),
        weights=about["model"]["weights_sha256"],
        seconds={**({} if job.recipe is None else seconds_of(job.folder / "run")), "evaluation": cost["evaluation"]},
        settings=settings,
        environment={
            "date": str(date.today()),
            "machine": platform.machine(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    )


def overlaps(metrics: Path) -> tuple[Overlap, ...]:
    """The curve of a training with an on-policy token signal; nothing for others."""
    found = []
    for entry in read_lines(metrics):
        told = entry.get("measure", {}).get(Response.Y_TILDE.value)
        if told and "eval" not in entry:
            by_language = {l: one["overlap"] for l, one in told["by_language"].items()}
            found.append(Overlap(entry["step"], told["count"], told["overlap"], by_language))
    return tuple(found)


def check_settings(jobs: Sequence[Job], lines: Mapping[Name, Line], folder: Path) -> None:
    """Raises `DudiError` where a cell that is to be added to has lines of other settings, with what is different."""
    for job in jobs:
        for line in lines.values():
            if line.cell == job.cell.name and line.key != hashed({"settings": job.settings, "seed": line.seed}):
                raise DudiError(
                    f"{folder / FILE}: {line.cell}, seed {line.seed}, was made with other settings"
                    f" ({_difference(job.settings, line.settings)}): nothing is added to it; use another --output"
                )


def _difference(ours: Any, theirs: Any, place: str = "") -> str:
    """The first key in which two settings differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in [*ours, *(key for key in theirs if key not in ours and key != "start_weights")]:
            if ours.get(key) != theirs.get(key):
                return _difference(ours.get(key), theirs.get(key), f"{place}.{key}".lstrip("."))
    return f"{place or 'seed'}: {theirs!r:.60} there, {ours!r:.60} here"
