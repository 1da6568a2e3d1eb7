"""Generation stages whose answers come from a server: many rows asked at a time, each kept as soon as it is answered.

What is left is what `dudi.training.stored` writes: the same batches of rows, whole or absent. Answers of a batch that
is not whole yet stand in `rows-<process>.jsonl` beside them, so that no row is asked twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dudi import processes
from dudi.errors import DudiError
from dudi.files import write_text
from dudi.recipe.schema import Limits
from dudi.rollouts import Request, Rollout
from dudi.strict import parsed
from dudi.training.stored import batch_file, line_of, request_of
from dudi.training.window import Row

ROUND = 16
"""So many rows for each request at a time are asked before all processes meet: few wait for the slowest then."""

PARTS = "rows-*.jsonl"


@dataclass(frozen=True)
class Asking:
    """How a server is asked. at_once: requests of this process; give_up: has waiting ones end; halted: whether the run
    is to stop, which leaves what is not asked yet."""

    ask: Callable[[Request], Rollout]
    at_once: int
    give_up: Callable[[], None]
    halted: Callable[[], bool]


@dataclass(frozen=True)
class _Line:
    index: int
    ids: tuple[int, ...]
    finished: bool


def generate_served(
    asking: Asking,
    rows: Sequence[Row],
    key: tuple[int | str, ...],
    limits: Limits,
    batch: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Answer x of every row, as `stored.generate` does; this process asks for every batch whose turn is its own."""
    rank, world = processes.place()
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    part = folder / f"rows-{rank}.jsonl"
    with processes.together():  # all have read before any writes
        kept = _kept(folder, _indices(batches[rank::world]))
    several = max(ROUND * asking.at_once // batch, 1) * world
    for first in range(0, len(batches), several):
        numbers = range(first, min(first + several, len(batches)))
        mine = [number for number in numbers if number % world == rank and not batch_file(folder, number).exists()]
        with processes.together():
            if mine:
                wanted = [row for number in mine for row in batches[number] if row.index not in kept]
                answers = kept | _ask(asking, [(row, request_of(row, key, limits)) for row in wanted], part)
                for number in mine:
                    if all(row.index in answers for row in batches[number]):
                        lines = [line_of(row, answers[row.index]) for row in batches[number]]
                        write_text(batch_file(folder, number), "".join(lines))
        if progress:
            progress(numbers[-1] + 1, len(batches))  # and ends here, where the run is to stop
        done = _indices([batches[number] for number in numbers])
        kept = {index: rollout for index, rollout in kept.items() if index not in done}
        if not kept:
            part.unlink(missing_ok=True)
    processes.gathered(None)  # all are done
    if processes.is_first():
        for left in folder.glob(PARTS):  # of more processes than there are now
            left.unlink()


def _indices(batches: Sequence[Sequence[Row]]) -> set[int]:
    return {row.index for batch in batches for row in batch}


def _ask(asking: Asking, requests: Sequence[tuple[Row, Request]], part: Path) -> dict[int, Rollout]:
    """The answers to some rows, by index, each also a line of a file; of a run that is to stop, those under way.

    Raises the first `DudiError` of any, when the others that were under way are kept.
    """
    found: dict[int, Rollout] = {}
    fault: DudiError | None = None
    part.parent.mkdir(parents=True, exist_ok=True)
    with _appended(part) as file, ThreadPoolExecutor(asking.at_once) as pool:
        waiting: dict[Future[Rollout], Row] = {pool.submit(asking.ask, request): row for row, request in requests}
        try:
            for future in as_completed(waiting):
                if future.cancelled():
                    continue
                if isinstance(error := future.exception(), DudiError):
                    fault = fault or error
                else:
                    row = waiting[future]
                    found[row.index] = future.result()
                    file.write(line_of(row, found[row.index]))
                    file.flush()
                if fault is not None or asking.halted():
                    _leave(waiting, asking)
        except BaseException:
            _leave(waiting, asking)
            raise
    if fault is not None and not asking.halted():
        raise fault
    return found


def _leave(waiting: Mapping[Future[Rollout], Row], asking: Asking) -> None:
    """Ask for nothing that is not asked yet, and for nothing again."""
    asking.give_up()
    for future in waiting:
        future.cancel()


def _kept(folder: Path, mine: Set[int]) -> dict[int, Rollout]:
    """The answers to some rows that an earlier start left without a whole batch, whichever process of it had them."""
    found: dict[int, Rollout] = {}
    for file in sorted(folder.glob(PARTS)):
        for number, text in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], 1):
            line = parsed(_Line, text, f"{file}: line {number}")
            if line.index in mine:
                found[line.index] = Rollout(line.ids, line.finished)
    return found


@contextmanager
def _appended(file: Path) -> Iterator[TextIO]:
    """A file to add lines to; one that a kill cut off is taken away first. Without a line there is no file."""
    if file.exists():
        text = file.read_bytes()
        os.truncate(file, text.rfind(b"\n") + 1)
    try:
        with file.open("a", encoding="utf-8") as opened:
            yield opened
    finally:
        if not file.stat().st_size:
            file.unlink()
