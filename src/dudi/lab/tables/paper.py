"""What the paper prints: as the shipped recipes quote it, and what none of them does (paper.toml)."""

from __future__ import annotations

import tomllib
from functools import cache
from typing import Any

from dudi.lab.tables.grid import HERE, TEACHER, Cell
from dudi.recipe.read import load_recipe

AVERAGE = "average"


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((HERE / "paper.toml").read_text(encoding="utf-8"))


@cache
def by_language(cell: Cell, table: str = "") -> dict[str, float]:
    """A cell's scores by language, and the average; empty for a reading, which the paper does not have. table: the
    one whose rows are meant, where the paper prints a cell more than once and not alike."""
    own = _table()["tables"].get(table, {}).get(cell.name)
    if own is not None:
        return dict(own)
    if cell.name.endswith(f"/{TEACHER}"):
        return dict(_table()["teachers"][cell.pair])
    paper = None if cell.recipe is None or cell.changes else load_recipe(cell.recipe).paper
    return {} if paper is None else {**paper.languages, AVERAGE: paper.average}


def by_competency(cell: Cell) -> dict[str, float]:
    """A cell's scores in Table 8, and the average; empty where it is not there."""
    values = _table()["table8"].get(cell.name, ())
    return dict(zip((*_table()["competencies"], AVERAGE), values, strict=True)) if values else {}
