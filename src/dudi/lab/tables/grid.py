"""Which cells stand in which table (grid.toml), and which models of the lab stand for which pair of the paper."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from dudi.strict import STRICT, Text

HERE = Path(__file__).parent
NAMES = {"sft": "SFT", "dft": "DFT", "spin": "SPIN", "sdft": "SDFT", "seqkd": "SeqKD", "gkd": "GKD", "dudi": "DuDi"}
TEACHER = "teacher"
"""The last part of the name of a cell that is not trained: the pair's teacher, asked."""
LARGER, OTHER = "qwen2.5-1.5b", "llama3.2-1b"
"""Pairs of the paper's Table 3: a larger student of the first one's class; a student of another class."""


class TableOf(BaseModel):
    """A table or figure of the paper: its rows, and what its columns are."""

    model_config = STRICT

    title: Text
    by: Literal["languages", "competencies", "average", "pairs", "overlap"]
    rows: tuple[Text, ...]
    second: str | None = None
    """What the paper's marks compare DuDi with."""
    order: bool = False
    """Its rows' order is compared with the paper's."""


class Reading(BaseModel):
    """A cell read in another way that the paper leaves open."""

    model_config = STRICT

    of: Text
    set: tuple[Text, ...]
    """As `dudi run --set`."""
    says: Text
    findings: tuple[Text, ...]
    """In which it takes the cell's place."""


class Grid(BaseModel):
    """grid.toml, every cell by its whole name."""

    model_config = STRICT

    pair: Text
    """Of the cells that are named without one."""
    tables: dict[str, TableOf]
    readings: dict[str, Reading]

    def whole(self, name: str) -> str:
        """A cell's name with its pair."""
        return name if "/" in name else f"{self.pair}/{name}"

    def short(self, cell: str) -> str:
        """The name of a cell as one types it: without the first pair."""
        return cell.removeprefix(f"{self.pair}/")

    def label(self, cell: str) -> str:
        """`DuDi`, `DuDi without sequence`; with the pair, where it is not the first."""
        pair, _, name = self.whole(cell).partition("/")
        first, _, rest = name.partition("-")
        text = " ".join([NAMES.get(first, first), rest.replace("-", " ")]).strip()
        return text if pair == self.pair else f"{pair}: {text}"

    @property
    def cells(self) -> dict[str, Cell]:
        """All cells by name: those of the tables, then the readings."""
        names = dict.fromkeys(name for table in self.tables.values() for name in table.rows)
        found = {name: Cell(name, None if name.endswith(f"/{TEACHER}") else name) for name in names}
        return found | {name: Cell(name, one.of, one.set) for name, one in self.readings.items()}


@dataclass(frozen=True)
class Cell:
    """One row of a table, which each seed trains anew. recipe: a shipped one's name; None: a teacher, only asked."""

    name: str
    recipe: str | None
    changes: tuple[str, ...] = ()
    """As `--set`."""

    @property
    def pair(self) -> str:
        """The paper's pair of teacher and student, by the folder of its recipes."""
        return self.name.partition("/")[0]


@cache
def read_grid() -> Grid:
    """grid.toml."""
    table = tomllib.loads((HERE / "grid.toml").read_text(encoding="utf-8"))
    plain = Grid.model_validate(tuples(table))
    tables = {
        name: one.model_copy(
            update={"rows": tuple(map(plain.whole, one.rows)), "second": one.second and plain.whole(one.second)}
        )
        for name, one in plain.tables.items()
    }
    readings = {
        plain.whole(name): one.model_copy(update={"of": plain.whole(one.of)}) for name, one in plain.readings.items()
    }
    return plain.model_copy(update={"tables": tables, "readings": readings})


def tuples(value: Any) -> Any:
    """Strict models want tuples where TOML has arrays."""
    if isinstance(value, Mapping):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Pair:
    """The lab's models that stand for a pair of the paper."""

    student: str
    teacher: str


def pairs(models: Mapping[str, Mapping[str, Any]], first: str) -> dict[str, Pair]:
    """The pairs that a lab has models for, by the paper's names.

    models: the plan of a lab's build, by name, as its manifest has it: each with its `family`, and whether it is a
    `teacher`. The plan's first student is the first pair's; another of its class is the larger one, one of another
    class the other one. A student's teacher is the one of its own class, or else the first.
    """
    teachers = {name: plan["family"] for name, plan in models.items() if plan["teacher"]}
    students = {name: plan["family"] for name, plan in models.items() if not plan["teacher"]}
    names = {first: next(iter(students), None)}
    family = students.get(str(names[first]))
    names[LARGER] = _first(name for name in students if students[name] == family and name != names[first])
    names[OTHER] = _first(name for name in students if students[name] != family)
    found = {}
    for pair, student in names.items():
        if student is not None and teachers:
            own = _first(name for name in teachers if teachers[name] == students[student])
            found[pair] = Pair(student, own or next(iter(teachers)))
    return found


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)
