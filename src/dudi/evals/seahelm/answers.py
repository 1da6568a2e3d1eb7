"""A student's answers to SEA-HELM's prompts: a file for each run, task and language, written whole, never asked twice.

answers/run_<run>/<language>/<task>.json      `Answered`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from dudi.errors import DudiError
from dudi.evals.answers import Answer
from dudi.evals.bench import Benchmark
from dudi.evals.respond import Responder
from dudi.evals.seahelm.prompts import Cell, benchmark, items
from dudi.files import write_text
from dudi.records import Item
from dudi.strict import read_one


@dataclass(frozen=True)
class Answered:
    """A cell's answers in the order of its prompts, or why it was refused as a whole."""

    prompts_sha256: str
    refused: str | None
    answers: tuple[Answer, ...] | None


class Asker(Protocol):
    """Who answers: a loaded model, or a server."""

    def too_long(self, items: Sequence[Item], benchmark: Benchmark) -> list[str]:
        """What cannot be asked, a line for each item."""
        ...

    def answer(
        self, items: Sequence[Item], benchmark: Benchmark, seed: int, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """One answer for each item, in order."""
        ...


@dataclass(frozen=True)
class Ours:
    """The trainer's own sampler."""

    responder: Responder

    def too_long(self, items: Sequence[Item], benchmark: Benchmark) -> list[str]:
        """What the template refuses or the model's positions do not hold."""
        return self.responder.refusals(items, benchmark)

    def answer(
        self, items: Sequence[Item], benchmark: Benchmark, seed: int, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """One answer for each item, in order."""
        return self.responder.answer(items, benchmark, seed, done)


def file_of(folder: Path, run: int, cell: Cell) -> Path:
    """Where a cell's answers lie."""
    return folder / f"run_{run}" / cell.language / f"{cell.task}.json"


def read_answered(folder: Path, run: int, cell: Cell) -> Answered | None:
    """What a cell was answered; None where it was not, or where its prompts were others."""
    file = file_of(folder, run, cell)
    if not file.is_file():
        return None
    try:
        found = read_one(Answered, file)
    except DudiError:  # of another version: asked again
        return None
    fits = found.answers is None or len(found.answers) == cell.rows
    return found if fits and found.prompts_sha256 == cell.prompts_sha256 else None


def ask(
    cells: Sequence[Cell],
    runs: Sequence[int],
    prompts: Path,
    folder: Path,
    asker: Callable[[], Asker],
    say: Callable[[str], None],
    done: Callable[[int], None],
) -> None:
    """Ask every cell that was not asked, run by run. asker: called once there is something to ask."""
    for run in runs:
        for cell in cells:
            if cell.prompts_sha256 is None or cell.max_tokens is None or read_answered(folder, run, cell) is not None:
                continue
            asked = items(prompts, cell)
            found = _answered(cell, asked, asker(), run, done)
            text = json.dumps(asdict(found), ensure_ascii=False) + "\n"
            write_text(file_of(folder, run, cell), text)
            what = found.refused or f"{len(asked)} answers"
            say(f"run {run}, {cell.language}, {cell.task}: {what}")


def _answered(cell: Cell, asked: Sequence[Item], asker: Asker, run: int, done: Callable[[int], None]) -> Answered:
    bench = benchmark(cell, asked)
    assert cell.prompts_sha256 is not None
    refused = asker.too_long(asked, bench)
    if not refused:
        answers = asker.answer(asked, bench, run, done)
        refused = [one.error for one in answers if one.error is not None]
        if not refused:
            return Answered(cell.prompts_sha256, None, tuple(answers))
    why = f"refused: {len(refused)} of {len(asked)} prompts cannot be asked: {refused[0]}"
    return Answered(cell.prompts_sha256, why, None)
