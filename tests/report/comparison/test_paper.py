"""The paper's rows beside a comparison: as the recipes quote them, and said to be of another benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import reports

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe
from dudi.report.comparison.paper import paper_section
from dudi.report.comparison.write import write_comparison


def test_table_2_is_what_the_recipes_say() -> None:
    (table, note) = paper_section("2", "made").blocks
    assert {"sft", "spin", "gkd", "seqkd", "sdft", "dudi"} <= set(table.head) and table.head[0] == "language"
    columns = {name: [row[at] for row in table.rows] for at, name in enumerate(table.head)}
    paper = load_recipe("qwen2.5-0.5b/dudi").paper
    assert paper is not None and columns["dudi"] == [*(f"{v:.1f}" for v in paper.languages.values()), "10.1"]
    assert "SEA-HELM" in note.text and "benchmark made" in note.text


def test_students_of_a_table_are_told_apart() -> None:
    table = paper_section("3", "made").blocks[0]
    assert {"qwen3-0.6b/dudi", "llama3.2-1b/dudi"} <= set(table.head)


def test_a_row_of_two_tables_is_in_both() -> None:
    heads = [paper_section(one, "made").blocks[0].head for one in ("6", "9")]
    assert all("dudi-no-cold-start" in head for head in heads)


def test_it_is_shown_and_written(tmp_path: Path) -> None:
    bench = reports.benchmark(tmp_path / "bench")
    given = [f"{name}={reports.simple(tmp_path / name, bench, share)}" for name, share in (("a", 0.5), ("b", 0.9))]
    shown = write_comparison(given, outputs=(tmp_path / "x.tex",), paper="2")
    assert "## The paper's table 2" in shown and "10.1" in (tmp_path / "x.tex").read_text(encoding="utf-8")
    with pytest.raises(DudiError, match=r"--paper '12': no recipe quotes such a table.*2, 3, 4, 5, 6, 7, 9"):
        write_comparison(given, outputs=(tmp_path / "y.md",), paper="12")
    assert not (tmp_path / "y.md").exists()
