"""What is declared before any ranking: grid, findings, rule; each against the paper's own numbers and the recipes."""

from __future__ import annotations

import re
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest

from dudi.lab.tables import paper
from dudi.lab.tables.findings import AVERAGE, Finding, Gap, read_findings, value
from dudi.lab.tables.grid import LARGER, OTHER, Pair, pairs, read_grid
from dudi.recipe.read import load_recipe, shipped_recipes
from dudi.report.stats import LOOKS, smallest_effect

GRID, FINDINGS = read_grid(), read_findings()
QUOTED = {name: one for name in shipped_recipes() if (one := load_recipe(name).paper) is not None}


# ── the grid ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_row_that_a_recipe_quotes_stands_in_its_table() -> None:
    for name, quoted in QUOTED.items():
        for number in quoted.table.split(", "):
            assert name in GRID.tables[f"table{number}"].rows, (name, number)
    rows = {row for table in GRID.tables.values() for row in table.rows if not row.endswith("/teacher")}
    assert rows == set(QUOTED), "and no other row is there"


def test_every_cell_is_a_recipe_and_readings_change_their_method() -> None:
    for name, cell in GRID.cells.items():
        if cell.recipe is not None:
            method = load_recipe(cell.recipe, cell.changes).to_method()
            same = method == load_recipe(cell.recipe).to_method()
            assert same is (name not in GRID.readings), name
    assert len(GRID.readings) == 4
    online = load_recipe(GRID.readings["qwen2.5-0.5b/spin-online"].of, GRID.readings["qwen2.5-0.5b/spin-online"].set)
    assert online.to_method().iterations == 1


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (
            {"student-small": "qwen2", "student-llama": "llama", "student-large": "qwen2", "teacher!": "qwen3"},
            {
                GRID.pair: ("student-small", "teacher!"),
                LARGER: ("student-large", "teacher!"),
                OTHER: ("student-llama", "teacher!"),
            },
        ),
        (
            {"t!": "qwen3", "small": "qwen3", "large": "qwen3", "gemma": "gemma3", "t-gemma!": "gemma3"},
            {GRID.pair: ("small", "t!"), LARGER: ("large", "t!"), OTHER: ("gemma", "t-gemma!")},
        ),
        ({"t!": "qwen3", "small": "qwen3"}, {GRID.pair: ("small", "t!")}),
        ({"t!": "qwen3"}, {}),
    ],
)
def test_pairs_follow_from_the_plan(families: dict[str, str], expected: dict[str, tuple[str, str]]) -> None:
    models = {name: {"family": family, "teacher": name.endswith("!")} for name, family in families.items()}
    assert pairs(models, GRID.pair) == {pair: Pair(*names) for pair, names in expected.items()}


# ── the paper's numbers ──────────────────────────────────────────────────────────────────────────────────────────────
def test_table_8_has_the_averages_of_tables_2_and_3() -> None:
    rows = GRID.tables["table8"].rows
    assert all(len(paper.by_competency(GRID.cells[row])) == 8 for row in rows)
    for row in rows:
        cell = GRID.cells[row]
        assert paper.by_competency(cell)[paper.AVERAGE] == paper.by_language(cell)[paper.AVERAGE], row
    for row in rows:
        languages = {l: v for l, v in paper.by_language(GRID.cells[row]).items() if l != paper.AVERAGE}
        assert fmean(languages.values()) == pytest.approx(paper.by_language(GRID.cells[row])[paper.AVERAGE], abs=0.1), (
            row
        )


def printed(cell: str, measure: str) -> float | None:
    """The paper's number; None where it prints none (Figures 5 and 7 have none)."""
    found = paper.by_language(GRID.cells[cell])
    kind, _, part = measure.partition(".")
    if kind == "competency":
        assert part == "nlr"
        return paper.by_competency(GRID.cells[cell])["nlr"]
    return found.get(part if kind == "language" else measure)


@pytest.mark.parametrize("name", FINDINGS.findings)
def test_the_paper_s_own_numbers_replicate_each_finding(name: str) -> None:
    finding = FINDINGS.findings[name]
    assert set(finding.cells) <= set(GRID.cells)
    told = [value(gap.weighted, printed) for gap in finding.gaps]
    assert all(one is None for one in told) or all(one > 0 for one in told if one is not None), (name, told)
    without = {gap.measure for gap, one in zip(finding.gaps, told, strict=True) if one is None}
    assert without <= {"overlap"}
    for need in finding.needs:
        met = value(need.weighted, printed)
        assert met is not None and met > need.above, "the paper's models meet what is asked of the lab's"


def test_fifteen_findings_with_one_rule() -> None:
    assert list(FINDINGS.findings) == [f"F{number}" for number in range(1, 16)]
    assert FINDINGS.rule.looks == LOOKS
    wanted = [smallest_effect(FINDINGS.rule.deviation, look, 15) for look in LOOKS]
    assert FINDINGS.rule.smallest == pytest.approx(wanted, abs=0.05)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", FINDINGS.declared)


def test_an_order_is_a_slope_in_points_a_place() -> None:
    order = Gap(order=("dudi", "gkd", "sft"))
    scores = {"qwen2.5-0.5b/dudi": 9.0, "qwen2.5-0.5b/gkd": 7.0, "qwen2.5-0.5b/sft": 5.0}
    assert value(order.weighted, lambda cell, _: scores[cell]) == pytest.approx(2.0)
    assert value(order.weighted, lambda cell, _: 4.0) == pytest.approx(0.0)
    assert sum(term.weight for term in order.weighted) == pytest.approx(0.0)
    for (one, other), gap in zip(
        pairwise(scores), (Gap(over="dudi", under="gkd"), Gap(over="gkd", under="sft")), strict=True
    ):
        assert value(gap.weighted, lambda cell, _: scores[cell]) == scores[one] - scores[other]
    assert value(order.weighted, lambda cell, _: None if cell.endswith("gkd") else 1.0) is None


@pytest.mark.parametrize(
    "fields", [{}, {"over": "dudi"}, {"over": "a", "under": "b", "order": ("a", "b")}, {"order": ("a",)}]
)
def test_a_gap_is_of_one_kind(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected `over` and `under`, or `order`, or `terms`"):
        Gap(**fields)


def test_the_weights_of_terms_cancel_but_for_a_share_of_the_teacher() -> None:
    def total(finding: Finding) -> list[float]:
        return [sum(term.weight for term in gap.weighted) for gap in finding.gaps]

    for name, finding in FINDINGS.findings.items():
        assert total(finding) == pytest.approx([-0.5 if name == "F15" else 0.0] * len(finding.gaps), abs=1e-9), name
    assert AVERAGE in {term.measure for gap in FINDINGS.findings["F1"].gaps for term in gap.weighted}


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (Gap(over="dudi", under="gkd"), "DuDi − GKD"),
        (Gap(over="llama3.2-1b/dudi", under="sft", measure="overlap"), "llama3.2-1b: DuDi in overlap − SFT in overlap"),
        (Gap(order=("dudi", "dudi-verbalizer-none")), "points a place, DuDi > DuDi verbalizer none"),
        (
            Gap(terms=(("teacher", "competency.nlr", 0.5), ("sft", "language.my", -1.0))),
            "0.5 teacher in nlr − SFT in my",
        ),
    ],
)
def test_a_gap_is_named_as_the_tables_name_its_cells(gap: Gap, words: str) -> None:
    assert gap.says == words
