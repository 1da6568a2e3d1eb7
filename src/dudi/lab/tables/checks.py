"""Whether lines are what they say, go together, and may be added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dudi.errors import DudiError, unknown
from dudi.lab.tables.cells import Job, hashed
from dudi.lab.tables.grid import Cell
from dudi.lab.tables.lines import FILE, START, Line, Name
from dudi.languages import LANGUAGES


def check_lines(lines: Mapping[Name, Line], cells: Mapping[str, Cell], folder: Path) -> None:
    """Raises `DudiError` where a line is of no cell or not what its key says, or where lines do not go together: those
    of a cell have the same settings, and all of them the same benchmark."""
    of_cell: dict[str, Line] = {}
    of_benchmark: dict[Any, Line] = {}
    for line in lines.values():
        where = f"{folder / FILE}: {line.cell}, seed {line.seed}"
        if line.cell not in cells:
            raise DudiError(f"{folder / FILE}: {unknown(line.cell, cells, 'cell')}")
        fault = _fault(line, cells[line.cell])
        if fault:
            raise DudiError(f"{where}: {fault}; restore the line, or remove it to have the cell run again")
        of_benchmark.setdefault(line.settings.get("benchmark"), line)
        first = of_cell.setdefault(line.cell, line)
        ours, theirs = _keyed(line), _keyed(first)
        if ours != theirs:
            raise DudiError(
                f"{where}: made with other settings than seed {first.seed} ({_difference(ours, theirs)}): one of them"
                " belongs into another folder"
            )
    if len(of_benchmark) > 1:
        one, other = list(of_benchmark.values())[:2]
        raise DudiError(
            f"{folder / FILE}: {one.cell}, seed {one.seed}, and {other.cell}, seed {other.seed}, are of two benchmarks:"
            " one of them belongs into another folder"
        )


def _fault(line: Line, cell: Cell) -> str:
    """What is wrong with a line by itself; nothing ("") where it is whole."""
    if (line.seed is None) != (cell.recipe is None):
        return "expected null as the seed of a teacher, and a number for what is trained"
    if "date" not in line.environment or "evaluation" not in line.seconds:
        return "expected a date in `environment` and the evaluation in `seconds`"
    strange = [l for l in line.languages if l not in LANGUAGES]
    if strange:
        return unknown(strange[0], LANGUAGES, "language")
    if line.key != hashed({"settings": _keyed(line), "seed": line.seed}):
        return "its key is not that of its settings and its seed: it was changed by hand"
    return ""


def _keyed(line: Line) -> dict[str, Any]:
    """The settings that its key is of."""
    return {key: value for key, value in line.settings.items() if key != START}


def check_settings(jobs: Sequence[Job], lines: Mapping[Name, Line], folder: Path) -> None:
    """Raises `DudiError` where a wanted cell has lines of other settings, with what is different."""
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
        for key in [*ours, *(key for key in theirs if key not in ours and key != START)]:
            if ours.get(key) != theirs.get(key):
                return _difference(ours.get(key), theirs.get(key), f"{place}.{key}".lstrip("."))
    return f"{place or 'seed'}: {theirs!r:.60} there, {ours!r:.60} here"
