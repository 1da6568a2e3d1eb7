"""docs/compare.md shows what the command and the script print."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

import dudi
from dudi.report.comparison.write import write_comparison

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")


def test_the_example_is_what_the_command_prints(named: Callable[..., list[str]]) -> None:
    example = PAGE.split("$ dudi compare sft=")[1].split("```")[0].splitlines()[1:]
    printed = write_comparison(named(sft=4, dudi=4)).splitlines()
    assert len(example) > 12
    assert [line for line in example if line not in printed] == []


def test_the_rates_are_those_of_the_script() -> None:
    """To 0.3 points: three standard errors or so, since other versions of NumPy may draw other numbers."""
    script = runpy.run_path(str(ROOT / "scripts" / "false_positives.py"))
    lines = PAGE.split("| " + " | ".join(script["HEAD"]))[1].splitlines()[2:]
    rows = [[cell.strip(" %") for cell in line.strip("|").split("|")] for line in lines[: len(script["SEEDS"])]]
    assert [int(row[0]) for row in rows] == list(script["SEEDS"])
    for row in rows[:6]:
        expected = [float(cell.strip(" %")) for cell in script["row"](int(row[0]))]
        found = [float(cell) for cell in row]
        assert found[:3] == pytest.approx(expected[:3], abs=0.3) and found[3:] == expected[3:]


def test_the_numbers_in_the_text() -> None:
    sft, ours = [31.1, 32.3, 31.1, 30.0], [30.8, 31.2, 30.9, 30.8]
    interval = dudi.stats.t_interval([a - b for a, b in zip(ours, sft, strict=True)])
    assert [round(x, 1) for x in (interval.mean, interval.low, interval.high)] == [-0.2, -1.4, 1.0]
    assert round(dudi.stats.permutation_p(ours, sft), 3) == 0.657 and dudi.stats.eps_min(ours, sft) == 1
    assert [round(x, 3) for x in dudi.stats.false_positive_rate(4)] == [0.072, 0.002]
    corrected = dudi.stats.bonferroni(0.95, 21)
    assert round(corrected, 4) == 0.9976
    assert round(100 * dudi.stats.false_positive_rate(4, confidence=corrected)[0], 1) == 4.8
