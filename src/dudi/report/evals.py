"""An output folder of `dudi eval`, read: settings, averages, and every response with its value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dudi.errors import DudiError
from dudi.records import About, GradedAnswer, Table, TaskScore
from dudi.strict import read_each, read_one

FILES = ("eval.json", "table.json", "scores.jsonl")


@dataclass(frozen=True)
class Evaluation:
    """One model on one benchmark, under the name that it is shown by."""

    name: str
    folder: Path
    about: About
    table: Table
    tasks: dict[str, TaskScore]
    """Task -> one of its scores, for competency and metric."""
    responses: dict[int, tuple[GradedAnswer, ...]]
    """Decoding seed -> one response for each item; the same items in the same order under every seed."""

    @property
    def items(self) -> tuple[GradedAnswer, ...]:
        """The responses of the first seed."""
        return self.responses[self.table.seeds[0]]

    def mark(self, task: str) -> str | None:
        """What the values of a task's answers are called, 0..100; None: they are right or wrong."""
        return self.about.marks[self.tasks[task].metric]

    @property
    def decoding(self) -> str:
        """How its answers were drawn, in words."""
        seeds, temperature = self.table.seeds, self.about.decoding.temperature
        if temperature == 0:
            return "greedy"
        listed = ", ".join(map(str, seeds))
        return f"temperature {temperature:g}, decoding seed{'s' if len(seeds) > 1 else ''} {listed}"


def find_evals(runs: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """(name, folder) of the evaluations below run folders: eval/, eval/<name>/, <stage>/model.eval/<benchmark>/."""
    found: list[tuple[str, Path]] = []
    for label, folder in runs:
        here = [("", folder / "eval")]
        here += [(inner.name, inner) for inner in sorted(folder.glob("eval/*"))]
        here += [(inner.parents[1].name, inner) for inner in sorted(folder.glob("*/model.eval/*"))]
        for name, inner in here:
            if (inner / "eval.json").is_file():
                parts = ([label] if len(runs) > 1 or not name else []) + ([name] if name else [])
                found.append(("/".join(parts), inner))
    return found


def parse_evals(given: Sequence[str]) -> list[tuple[str, Path]]:
    """NAME=FOLDER arguments, in their order."""
    found = []
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not name.strip() or not folder:
            raise DudiError(f"--eval {text!r}: expected NAME=FOLDER, such as DuDi=run/eval/dudi")
        found.append((name.strip(), Path(folder)))
    return found


def read_evals(named: Sequence[tuple[str, Path]]) -> tuple[Evaluation, ...]:
    """Evaluations that can stand in one table: names of their own, one benchmark, the same items."""
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            both = " and ".join(str(folder) for other, folder in named if other == name)
            raise DudiError(f"two evaluations are called {name!r} ({both}); name them with --eval NAME=FOLDER")
    found = tuple(read_eval(name, folder) for name, folder in named)
    for other in found[1:]:
        check_same(found[0], other)
    return found


def read_eval(name: str, folder: Path) -> Evaluation:
    """One output folder of `dudi eval`. Raises `DudiError` for one that is not finished, or does not fit together."""
    if not folder.is_dir():
        raise DudiError(f"evaluation {name!r}: no folder {str(folder)!r}")
    for file in FILES:
        if not (folder / file).is_file():
            raise DudiError(f"evaluation {name!r}: {str(folder)!r} is no finished evaluation: {file} is missing")
    table = read_one(Table, folder / "table.json")
    _check_table(table, folder / "table.json")
    responses = {}
    for seed in table.seeds:
        lines = folder / f"responses-{seed}.jsonl"
        responses[seed] = tuple(read_each(GradedAnswer, lines))
        if not responses[seed]:
            raise DudiError(f"{lines}: empty; evaluate again")
        if [r.id for r in responses[seed]] != [r.id for r in responses[table.seeds[0]]]:
            raise DudiError(f"{lines}: its items are not those of the first seed's file; evaluate again")
    ids = [r.id for r in responses[table.seeds[0]]]
    if len(set(ids)) < len(ids):
        twice = next(one for number, one in enumerate(ids) if one in ids[:number])
        raise DudiError(f"{folder}: item {twice!r} is answered twice under one seed; evaluate again")
    tasks = {score.task: score for score in read_each(TaskScore, folder / "scores.jsonl")}
    for line in responses[table.seeds[0]]:
        if line.task not in tasks or line.language not in table.languages:
            missing = f"task {line.task!r}" if line.task not in tasks else f"language {line.language!r}"
            raise DudiError(f"{folder}: item {line.id!r} is of {missing}, which the scores do not have; evaluate again")
    about = read_one(About, folder / "eval.json")
    for score in tasks.values():
        if score.metric not in about.marks:
            raise DudiError(f"{folder / 'eval.json'}: marks: {score.metric!r} is missing; evaluate again")
    return Evaluation(name, folder, about, table, tasks, responses)


def _check_table(table: Table, file: Path) -> None:
    for field in ("by_competency", "by_language", "by_language_without_translation"):
        for language in table.languages:
            if language not in getattr(table, field):
                raise DudiError(f"{file}: {field}: {language!r} is missing")
    for language in table.averaged:
        if language not in table.languages:
            raise DudiError(f"{file}: averaged: {language!r} is not among the languages")


def check_same(first: Evaluation, other: Evaluation) -> None:
    """Raises `DudiError` for evaluations of different benchmarks or items."""
    one, two = first.about.benchmark, other.about.benchmark
    if (one.name, one.version, one.sha256) != (two.name, two.version, two.sha256):
        what = [f"{b.name} version {b.version} ({b.sha256[:8]})" for b in (one, two)]
        raise DudiError(
            f"evaluations of different benchmarks do not go into one table: {first.name!r} is of {what[0]},"
            f" {other.name!r} of {what[1]}"
        )
    ours, theirs = ([r.id for r in each.items] for each in (first, other))
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise DudiError(
            f"evaluations {first.name!r} and {other.name!r} have the same items in another order; evaluate one again"
        )
    if ours != theirs:
        raise DudiError(
            f"evaluations {first.name!r} and {other.name!r} asked different items ({len(first.items)} and"
            f" {len(other.items)}); evaluate both with the same --limit"
        )
    tables = first.table, other.table
    if any(
        getattr(tables[0], field) != getattr(tables[1], field) for field in ("languages", "averaged", "competencies")
    ):
        raise DudiError(f"evaluations {first.name!r} and {other.name!r} average differently; evaluate one again")
