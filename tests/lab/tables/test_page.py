"""The page: every number from lines, our tables with the paper's, marks, verdicts; the same in Markdown and HTML."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
from kit import tables as kit_tables

from dudi.lab.tables import page as module
from dudi.lab.tables.findings import read_findings
from dudi.lab.tables.grid import read_grid
from dudi.lab.tables.lines import Line, Name
from dudi.lab.tables.write import write_page

GRID, FINDINGS = read_grid(), read_findings()
HERE = ("qwen2.5-0.5b", "qwen2.5-1.5b")


@pytest.fixture(autouse=True)
def rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation takes seconds, and has tests of its own."""
    monkeypatch.setattr(module, "false_positive_rate", lambda n, m: (0.072, 0.002))


@pytest.fixture
def lines() -> dict[Name, Line]:
    """Of Tables 2 and 3, DuDi ahead; four seeds. Without curves, which take time to draw."""
    found = {}
    rows = [row for row in (*GRID.tables["table2"].rows, *GRID.tables["table3"].rows) if row.split("/")[0] in HERE]
    for place, row in enumerate(rows):
        for seed in [None] if row.endswith("teacher") else range(4):
            base = 60.0 if row.endswith("dudi") else 20.0 + place
            line = kit_tables.line(row, seed, base + 0.25 * (seed or 0), overlap=())
            found[line.name] = line
    return found


def table_of(text: str, title: str, caption: str) -> dict[str, list[str]]:
    """A table of a section: first cell -> the others."""
    section = next(part for part in text.split("\n## ") if part.startswith(title))
    rows = section.split(f"{caption}:\n\n")[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {row[0]: row[1:] for row in cells if not row[0].startswith("---")}


def test_our_table_and_the_paper_s_below_it(lines: dict[Name, Line], tmp_path: Path) -> None:
    text = write_page(tmp_path, GRID, FINDINGS, lines, HERE, range(4)).read_text(encoding="utf-8")
    ours, theirs = (table_of(text, "Table 2", caption) for caption in ("The lab", "The paper (SEA-HELM)"))
    assert ours["method"] == ["id", "vi", "th", "ta", "tl", "ms", "my", "average", "without translation", "seeds"]
    scores = [line.average or 0 for name, line in lines.items() if name[0] == "qwen2.5-0.5b/gkd"]
    assert ours["GKD"] == [f"{statistics.fmean(scores):.1f} ± {statistics.stdev(scores):.1f}"] * 9 + ["4"]
    assert ours["DuDi"] == ["60.4 ± 0.3⋄"] * 9 + ["4"], "above DFT, the paper's second best"
    assert ours["teacher"] == ["20.0"] * 9 + ["1"]
    assert theirs["DuDi"] == ["11.7", "14.4", "12.8", "6.5", "6.1", "14.8", "4.6", "10.1"]
    assert theirs["teacher"][-1] == "27.7"
    assert list(ours) == list(theirs), "the same rows in the same order"
    section = text.split("\n## Table 2")[1].split("\n## ")[0]
    assert "below in 7.2 % of studies with 4 seeds" in section and "no exact p is below 0.029" in section
    taus = re.findall(r"tau of our order with the paper's, (\S+): (\S+) \((\d) rows\)", section)
    assert taus == [("qwen2.5-0.5b", "+0.14", "7")]
    assert "qwen2.5-1.5b: DuDi" in text and "⋄" in table_of(text, "Table 3", "The lab")["qwen2.5-1.5b: DuDi"][0]
    assert "llama" not in text.split("\n## Table 3")[1].split("\n## ")[0], "no row without a line"


def test_ablations_are_set_against_dudi(lines: dict[Name, Line], tmp_path: Path) -> None:
    for seed in range(4):
        line = kit_tables.line("qwen2.5-0.5b/dudi-without-off-policy", seed, 45.0)
        lines[line.name] = line
    text = write_page(tmp_path, GRID, FINDINGS, lines, HERE, range(4)).read_text(encoding="utf-8")
    ours, theirs = (table_of(text, "Table 4", caption) for caption in ("The lab", "The paper (SEA-HELM)"))
    assert ours["method"] == ["average", "without translation", "difference", "in percent", "seeds"]
    assert ours["DuDi without off policy"] == ["45.0 ± 0.0", "45.0 ± 0.0", "−15.4", "−25.5 %", "4"]
    assert theirs["DuDi without off policy"] == ["7.6", "−2.5", "−24.8 %"], "of the printed averages"
    assert ours["DuDi"][2:] == ["-", "-", "4"]


def test_verdicts_are_those_of_the_rule(lines: dict[Name, Line], tmp_path: Path) -> None:
    text = write_page(tmp_path, GRID, FINDINGS, lines, HERE, range(4)).read_text(encoding="utf-8")
    rows = table_of(text, "Verdicts", "Findings")
    assert list(rows) == ["", *FINDINGS.findings]
    assert rows["F1"][2] == "replicates" and rows["F1"][3].startswith("▲ +") and rows["F1"][5] == "4"
    assert rows["F3"][2:] == ["not run yet", "-", "-", "-"]
    assert "F3: not run yet, because 0 of 4 seeds are there." in text
    assert "F2: left out, since the lab has no such pair: llama3.2-1b, qwen3-0.6b." in text
    cost = table_of(text, "Cost", "Seconds")
    assert cost["DuDi"] == ["60", "30", "90"]


def test_without_a_line_all_is_said_to_be_missing(tmp_path: Path) -> None:
    text = write_page(tmp_path, GRID, FINDINGS, {}, HERE, range(4)).read_text(encoding="utf-8")
    assert text.count("No line of it yet.") == len(GRID.tables) and "replicates" not in text


def test_curves_and_the_page_in_html(lines: dict[Name, Line], tmp_path: Path) -> None:
    for cell in ("qwen2.5-0.5b/dudi", "qwen2.5-0.5b/gkd"):
        for seed in range(4):
            lines[cell, seed] = kit_tables.line(cell, seed, lines[cell, seed].average)
    text = write_page(tmp_path, GRID, FINDINGS, lines, HERE, range(4)).read_text(encoding="utf-8")
    overlap = table_of(text, "Figure 5", "In percent, over all logged steps")
    assert overlap["method"] == ["all", "id", "th"] and overlap["DuDi"] == ["60.4"] * 3
    assert (tmp_path / "figures" / "figure5.png").stat().st_size > 5000 and (tmp_path / "figures" / "heat.png").exists()
    assert "figures/figure5.png" in text and "figures/figure5-th.png" in text
    page = (tmp_path / "findings.html").read_text(encoding="utf-8")
    assert "60.4 ± 0.3⋄" in page and page.count("data:image/png;base64,") == 7, "two figures of three curves, the map"
    assert "http://" not in page.replace("http://www.w3.org", "")
