"""Finished cells as JSON lines: all that tables, figures and verdicts are made of. Lines are added, never changed."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dudi.errors import DudiError
from dudi.evals.respond import fingerprint
from dudi.files import read_lines
from dudi.lab.build import made_with
from dudi.lab.tables.cells import Job
from dudi.lab.tables.findings import AVERAGE, OVERLAP
from dudi.lab.tables.work import COST, seconds_of
from dudi.languages import ENGLISH, LANGUAGES
from dudi.records import Table
from dudi.signals import Response
from dudi.strict import STRICT, parsed, read_each, read_one, read_text
from dudi.training.monitors import METRICS

FILE = "cells.jsonl"
START = "start_weights"
"""In a line's settings beside what its key is of: another processor gives others."""
Name = tuple[str, int | None]
"""Cell and seed."""
Score = Annotated[float, Field(ge=-100, le=100)] | None
"""None: refused."""
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Overlap:
    """Of one logged step, over `count` rollout tokens: the share of the 16 likeliest that student and teacher have in
    common; and by language."""

    __pydantic_config__ = STRICT

    step: int
    count: Annotated[float, Field(ge=0)]
    share: Share
    languages: dict[str, Share]


@dataclass(frozen=True)
class Line:
    """One cell under one seed, done. Scores are those of `dudi eval`, unrounded."""

    __pydantic_config__ = STRICT

    cell: str
    seed: Annotated[int, Field(ge=0)] | None
    key: str
    average: Score
    without_translation: Score
    languages: dict[str, Score]
    languages_without_translation: dict[str, Score]
    competencies: dict[str, Score]
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
    """The lines of a folder by cell and seed. Raises `DudiError` where one is none, or two are of the same."""
    file = folder / FILE
    found: dict[Name, Line] = {}
    if not file.exists():
        return found
    last = _unended(read_text(file))
    for line in [*read_each(Line, file, growing=True), *([last] if last else [])]:
        if line.name in found:
            raise DudiError(f"{file}: two lines of {line.cell}, seed {line.seed}; remove one")
        found[line.name] = line
    return found


def _unended(text: str) -> Line | None:
    """What stands after the last line's end: a whole line, as editors leave one, or nothing that a kill left."""
    rest = text[text.rfind("\n") + 1 :]
    try:
        return parsed(Line, rest, FILE) if rest.strip() else None
    except DudiError:
        return None


def add(folder: Path, line: Line) -> None:
    """One line, on the disk when this returns; what a kill left of a line before it is cut away."""
    file = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(line), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
    with file.open("ab+") as opened:
        opened.seek(0)
        there = opened.read()
        if _unended(there.decode(errors="replace")):
            text = f"\n{text}"
        else:
            opened.truncate(there.rfind(b"\n") + 1)
        opened.write(text.encode())
        opened.flush()
        os.fsync(opened.fileno())


def line_of(job: Job) -> Line:
    """What a finished job has in its folder."""
    settings = dict(job.settings)
    if job.start is not None and job.recipe is not None and job.recipe.cold_start.checkpoint is not None:
        settings[START] = fingerprint(Path(job.recipe.cold_start.checkpoint))["weights_sha256"]
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
            "machine": made_with()["machine"],
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
