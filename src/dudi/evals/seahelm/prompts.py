"""What SEA-HELM asks: its tasks by language, and the prompts that its own loaders make. No torch."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.evals.bench import Benchmark
from dudi.evals.seahelm.checkout import Checkout
from dudi.files import write_text
from dudi.records import Description, Item, Task, Turn
from dudi.strict import numbered, parsed, read_each

LANGUAGES = ("id", "vi", "th", "ta", "tl", "ms", "my")
"""In which single tasks are asked: those of the paper. Sets name their languages themselves."""


@dataclass(frozen=True)
class Judge:
    """A model that scores answers."""

    name: str
    type: str


@dataclass(frozen=True)
class Cell:
    """One task in one language, as SEA-HELM configures it."""

    language: str
    task: str
    competency: str
    metric: str
    """The key of its results that is averaged."""
    group: str | None
    data: str
    local: bool
    """Whether the data are in the checkout; else they are a data set of the hub."""
    max_tokens: int | None
    judges: tuple[Judge, ...]
    unmet: str | None
    """Why it cannot be scored here."""
    prompts_sha256: str | None = None
    rows: int = 0
    failed: str | None = None
    """Why there are no prompts."""

    @property
    def key(self) -> tuple[str, str]:
        """(language, task)."""
        return self.language, self.task

    @property
    def judged_by_llm(self) -> bool:
        """Whether another judge than MetricX scores it, which is not run from here."""
        return any(judge.type != "metricx" for judge in self.judges)


@dataclass(frozen=True)
class Plan:
    """All cells in the order of SEA-HELM's configuration, and the versions of what scores."""

    cells: tuple[Cell, ...]
    versions: dict[str, str]


def spec(names: Sequence[str], limit: int | None, output: Path, model: str = "plan", run: int = 0) -> dict[str, Any]:
    """What every command of the bridge is told."""
    return {
        "tasks": list(names),
        "languages": list(LANGUAGES),
        "limit": limit,
        "output": str(output),
        "model": model,
        "runs": [run],
    }


def read_plan(checkout: Checkout, names: Sequence[str], log: Path) -> Plan:
    """The cells of sets, tasks and groups. Raises `DudiError` for a name that the checkout does not know."""
    cells, versions = [], {}
    with tempfile.TemporaryDirectory(prefix="dudi-seahelm-") as scratch:  # SEA-HELM writes a configuration each time
        for event in checkout.call("plan", spec(names, None, Path(scratch)), log):
            if event["event"] == "packages":
                versions = event["versions"]
            else:
                cells.append(parsed(Cell, json.dumps(_without(event)), str(log)))
    if not cells:
        raise DudiError(f"--tasks {', '.join(names)}: SEA-HELM {checkout.version} has no such task in {LANGUAGES}")
    return Plan(tuple(cells), versions)


def _without(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "event"}


def with_prompts(
    plan: Plan, checkout: Checkout, names: Sequence[str], limit: int | None, folder: Path, say: Callable[[str], None]
) -> Plan:
    """The plan with every cell's prompts in `folder`; those that are there already are not made again."""
    known = {cell.key: cell for cell in _read(folder / "cells.jsonl")}
    there = {
        cell.key: replace(cell, prompts_sha256=old.prompts_sha256, rows=old.rows)
        for cell in plan.cells
        if (old := known.get(cell.key)) and old.prompts_sha256 and _file(folder, cell).is_file()
    }
    missing = [cell for cell in plan.cells if cell.key not in there and not cell.judged_by_llm]
    if missing:
        say(f"prompts of {len(missing)} tasks, from SEA-HELM's own loaders")
        there |= _make(missing, checkout, names, limit, folder)
    cells = tuple(there.get(cell.key, cell) for cell in plan.cells)
    others = [cell for key, cell in known.items() if key not in {one.key for one in cells}]
    lines = [json.dumps(asdict(cell), ensure_ascii=False) + "\n" for cell in (*cells, *others)]
    write_text(folder / "cells.jsonl", "".join(lines))
    return Plan(cells, plan.versions)


def _make(
    missing: Sequence[Cell], checkout: Checkout, names: Sequence[str], limit: int | None, folder: Path
) -> dict[tuple[str, str], Cell]:
    made = {cell.key: replace(cell, failed="SEA-HELM made no prompts") for cell in missing}
    with tempfile.TemporaryDirectory(prefix="dudi-seahelm-") as scratch:
        told = {**spec(names, limit, Path(scratch)), "prompts": str(folder), "cells": [cell.key for cell in missing]}
        for event in checkout.call("prompts", told, folder.parent / "logs" / "prompts.log"):
            key = event["language"], event["task"]
            if event["event"] == "failed":
                made[key] = replace(made[key], failed=f"no prompts: {event['why']}")
            else:
                made[key] = replace(made[key], failed=None, prompts_sha256=event["sha256"], rows=event["rows"])
    return made


def _read(file: Path) -> list[Cell]:
    """What prompts there are; none by a damaged file, and then they are made again."""
    try:
        return read_each(Cell, file) if file.is_file() else []
    except DudiError:
        return []


def _file(folder: Path, cell: Cell) -> Path:
    return folder / cell.language / f"{cell.task}.jsonl"


def items(folder: Path, cell: Cell) -> list[Item]:
    """A cell's prompts as items; ids are language/task/row."""
    file = _file(folder, cell)
    rows = read_each(list[Turn], file)
    made = json.dumps([json.loads(line) for _, line in numbered(file)], ensure_ascii=False, sort_keys=True)
    if hashlib.sha256(made.encode()).hexdigest() != cell.prompts_sha256:  # as `bridge.digest`
        raise DudiError(f"{file}: not the {cell.rows} prompts that were made; delete the file")
    name = "/".join(cell.key)
    return [
        Item(id=f"{name}/{number}", task=cell.task, language=cell.language, messages=tuple(turns))
        for number, turns in enumerate(rows)
    ]


def benchmark(cell: Cell, asked: Sequence[Item]) -> Benchmark:
    """A cell as the benchmark that our sampler answers."""
    assert cell.max_tokens is not None
    task = Task(competency=cell.competency, metric=cell.metric, max_new_tokens=cell.max_tokens)
    about = Description(
        name="seahelm", version=1, competencies=(cell.competency,), averaged=(cell.language,), tasks={cell.task: task}
    )
    return Benchmark(about, tuple(asked), {}, cell.prompts_sha256 or "")
