"""docs/lab-tables.md: its commands parse, its options are those that there are, its table is what the script prints."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dudi.cli import app
from dudi.lab.tables.findings import read_findings

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "lab-tables.md").read_text(encoding="utf-8")


def command(names: list[str]) -> Any:
    found: Any = typer.main.get_command(app)
    for name in names:
        found = found.commands[name]
    return found


def test_every_command_of_the_page_can_be_typed() -> None:
    lines = re.findall(r"^dudi (lab tables.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        command(["lab", "tables"]).make_context("tables", shlex.split(line, comments=True)[2:])


def test_the_page_names_every_option() -> None:
    there = {option for one in command(["lab", "tables"]).params for option in one.opts if option.startswith("--")}
    assert there - {"--help"} == set(re.findall(r"`(--[a-z]+)", PAGE))


def test_the_page_says_the_rule_of_the_findings() -> None:
    rule = read_findings().rule
    assert f"level of {rule.levels[0]}" in PAGE and f"at {rule.levels[1]}, for what is open" in PAGE
    assert f"has to be {rule.smallest[0]}\npoints wide at the first look, and {rule.smallest[1]} at the second" in PAGE


@pytest.mark.slow
def test_the_table_is_what_the_script_prints() -> None:
    """To four standard errors, since other versions of NumPy may draw other numbers."""
    script, printed = runpy.run_path(str(ROOT / "scripts" / "verdicts.py")), io.StringIO()
    with contextlib.redirect_stdout(printed):
        script["main"]()
    found, shown = rows(printed.getvalue()), rows(PAGE.split("\n\n| " + script["HEAD"][0])[1].split("\n\n")[0])
    assert len(found) == 8 and list(found) == list(shown)
    for name, rates in found.items():
        for rate, other in zip(rates, shown[name], strict=True):
            assert abs(rate - other) <= 400 * sqrt(max(rate, 1) / 100 / script["STUDIES"]), name


def rows(table: str) -> dict[str, list[float]]:
    """First cell -> percentages."""
    cells = [[cell.strip(" %") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: [float(rate) for rate in rates] for name, *rates in cells}
