"""A folder of SEA-HELM scores as `dudi compare` and `dudi report` read it: one for each way to average. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dudi.evals.aggregate import aggregate
from dudi.evals.answers import Answer
from dudi.evals.seahelm.aggregate import (
    Averaging,
    Expected,
    Unit,
    leaderboard,
    paper7,
    per_run,
    scores,
    units,
)
from dudi.evals.seahelm.collect import METRICS, Results
from dudi.evals.tables import markdown
from dudi.files import write_text
from dudi.records import About, AskedBenchmark, AskedModel, Decoding, GradedAnswer, Table

Lengths = Mapping[tuple[int, str, str], Sequence[Answer]]
"""(run, language, task) -> our own answers, which know their lengths; empty for an import."""


WRITTEN = ("per_run", "paper7", "leaderboard.json")


@dataclass(frozen=True)
class Scored:
    """A model's runs, what was expected of them, and what eval.json says of it."""

    model: AskedModel
    commit: str | None
    """Of SEA-HELM, as far as it is known."""
    decoding: Decoding
    versions: Mapping[str, str]
    runs: Mapping[int, Results]
    expected: Sequence[Expected]
    answers: Lengths


def write_scores(folder: Path, scored: Scored, papers: bool) -> dict[str, Table]:
    """Write per_run/, paper7/ (if `papers`) and leaderboard.json, leaderboard.md; the tables by name."""
    found = [units(results, scored.expected) for results in scored.runs.values()]
    wanted = [per_run(found), *([paper7()] if papers else [])]
    tables = {one.name: _write(folder / one.name, scored, one, found) for one in wanted}
    order = scored.expected or _expected(list(scored.runs.values()))
    board = leaderboard(scored.model.path, list(scored.runs.values()), order)
    write_text(folder / "leaderboard.json", _json(board.as_dict()))
    tables["leaderboard"] = board
    return tables


def _expected(runs: Sequence[Results]) -> list[Expected]:
    """For an import: what any of its runs has."""
    found = {one.key: one for run in reversed(runs) for one in run.tasks}
    order = dict.fromkeys(one.key for run in runs for one in run.tasks)
    return [Expected(one.language, one.competency, one.task, one.group, None) for one in map(found.__getitem__, order)]


def _write(folder: Path, scored: Scored, wanted: Averaging, found: Sequence[Sequence[Unit]]) -> Table:
    model = scored.model.path
    lines = []
    for run, one in zip(scored.runs, found, strict=True):
        by_cell = {(unit.name, unit.language): unit for unit in one}
        kept = [by_cell[cell] for cell in wanted.cells if cell in by_cell]
        graded = [answer for unit in kept for answer in _graded(unit, run, scored)]
        write_text(folder / f"responses-{run}.jsonl", _jsonl([answer.as_dict() for answer in graded]))
        lines += scores(wanted, one, model, run)
    table = aggregate(lines, wanted)
    write_text(folder / "scores.jsonl", _jsonl([line.as_dict() for line in lines]))
    write_text(folder / "eval.json", _json(_about(scored, wanted, found).as_dict()))
    write_text(folder / "table.md", markdown(table, wanted))
    write_text(folder / "table.json", _json(table.as_dict()))
    return table


def _about(scored: Scored, wanted: Averaging, found: Sequence[Sequence[Unit]]) -> About:
    commit = scored.commit or "unknown"
    return About(
        model=scored.model,
        benchmark=AskedBenchmark(
            path=None,
            name=f"SEA-HELM-{commit[:7]}-{wanted.name}",
            version=1,
            sha256=_asked(wanted, found, scored.expected),
        ),
        decoding=scored.decoding,
        versions=dict(scored.versions),
        marks=dict(METRICS),
    )


def _asked(wanted: Averaging, found: Sequence[Sequence[Unit]], expected: Sequence[Expected]) -> str:
    """A digest of everything that was asked, by the prompts of the tasks, or of the rows where those are not known."""
    cells = set(wanted.cells)
    asked = {(one.language, one.task): one.prompts_sha256 for one in expected if (one.unit[2], one.language) in cells}
    for unit in found[0]:
        for task in unit.tasks if (unit.name, unit.language) in cells else ():
            asked[task.key] = asked.get(task.key) or "/".join(row.prompt for row in task.rows)
    lines = [f"{language}/{task}: {prompts}\n" for (language, task), prompts in sorted(asked.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _graded(unit: Unit, run: int, scored: Scored) -> list[GradedAnswer]:
    """A unit's rows, task by task; of a task that was refused, a line without an answer for each prompt."""
    tasks = {task.task: task for task in unit.tasks}
    place = unit.language, unit.competency, unit.name
    expected = {one.task: one for one in scored.expected if one.unit == place}
    found = []
    for name in sorted({*tasks, *expected}):
        there = tasks[name].rows if name in tasks else ()
        rows = there or (None,) * (expected[name].rows if name in expected else 0)
        own = scored.answers.get((run, unit.language, name), ())
        for number, row in enumerate(rows):
            answer = own[number] if number < len(own) else None
            why = tasks[name].missing if name in tasks else expected[name].why or "not scored"
            if why is None and (row is None or row.value is None):
                why = "not scored by SEA-HELM"
            found.append(
                GradedAnswer(
                    id=f"{unit.language}/{name}/{number}",
                    task=unit.name,
                    language=unit.language,
                    response=(row.response if row else None) or "",
                    tokens=answer.tokens if answer else None,
                    finished=answer.finished if answer else row.finished if row else None,
                    value=row.value if row and not why else None,
                    prediction=None,
                    in_language=None,
                    error=why,
                )
            )
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
