"""What `dudi compare` prints and writes: one page in several formats, and LaTeX that TeX can read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import reports
from kit.command import shown

from dudi.report.blocks import Page, Section, Table, Text, Value
from dudi.report.comparison.write import write_comparison
from dudi.report.latex import escaped, latex

Named = Callable[..., list[str]]


def rows_of(text: str) -> list[list[str]]:
    """The cells of a Markdown page's tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_command_prints_scores_and_differences(named: Named) -> None:
    text = shown("compare", *named(sft=4, dudi=4))
    assert text.startswith("# dudi against sft")
    rows = rows_of(text)
    assert ["language", "sft", "dudi"] in rows and ["competency", "sft", "dudi"] in rows
    assert [row[0] for row in rows if row[0].startswith("Thai")] == ["Thai (th)"] * 2
    (average,) = [row for row in rows if row[0] == "average" and len(row) == 6]
    assert re.fullmatch(r"▲ \+\d+\.\d \\\[\+\d+\.\d, \+\d+\.\d\\\]", average[2])
    assert average[4:] == ["0.029", "0.00"], "the least there can be, where every seed of one is above the other's"
    assert "the least there can be is 0.029 with 4 seeds against 4" in text
    assert "7.2 % of the time with 4 seeds against 4" in text
    assert "By language" not in text and "score by task" not in text


def test_the_files_hold_every_language_and_task(named: Named, tmp_path: Path) -> None:
    files = {end: tmp_path / f"deep/out{end}" for end in (".md", ".json", ".tex", ".html")}
    printed = shown("compare", *named(sft=2, dudi=2), *(w for file in files.values() for w in ("--output", str(file))))
    texts = {end: file.read_text(encoding="utf-8") for end, file in files.items()}
    assert texts[".md"].startswith(printed.rstrip("\n"))
    caption = "Thai (th): score by task"
    for end in (".md", ".tex", ".html"):
        assert caption in texts[end].replace("\\(", "(")
        for task in reports.TASKS:
            assert task in texts[end]
    assert len(rows_of(texts[".md"])) == texts[".tex"].count(" \\\\\n")
    numbers = json.loads(texts[".json"])
    assert [one["name"] for one in numbers["methods"]] == ["sft", "dudi"] and numbers["baseline"] == "sft"
    assert not list(tmp_path.glob("deep/.*")), "nothing half-written"
    again = tmp_path / "again.json"
    write_comparison(named(sft=2, dudi=2), None, [again])
    assert again.read_text(encoding="utf-8") == texts[".json"]


def test_folders_without_a_name_are_called_by_their_path(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    assert ["language", "sft-0", "dudi-0"] in rows_of(write_comparison(["sft-0", "dudi-0"]))


def test_a_folder_with_an_equals_sign_is_a_folder(made: Path, tmp_path: Path) -> None:
    given = {0: reports.answers(reports.read_benchmark(made / "bench"), {"default": 0.9})}
    folder = reports.evaluation(tmp_path / "lr=1e-3", made / "bench", given)
    assert str(folder) in write_comparison([str(made / "sft-0"), str(folder)])
    assert ["language", "sft", "x"] in rows_of(write_comparison([f"sft={made / 'sft-0'}", f"x={folder}"]))


# ── LaTeX ────────────────────────────────────────────────────────────────────────────────────────────────────────────
EVIL = 'a_b & 50% $x$ #1 {y} ~ ^ \\input{z} <|> "q" [1] − ± ▲\u202e\x00\n% c'


def test_nothing_of_a_name_means_anything_to_tex() -> None:
    text = escaped(EVIL)
    assert "\n" not in text and "\x00" not in text and "\u202e" not in text
    left = re.sub(r"\\(text\w+\{\}|[&%$#_{}])|\$(\\\w+|-)\$", "", text)
    assert not set(left) & set('&%$#_{}~^\\<>|"±−▲')
    assert escaped("Thai (th) ไทย மொழி") == "Thai (th) ไทย மொழி"


def test_a_table_is_a_table() -> None:
    rows = (("[x]", Value("1.0", "+0.5")), ("sum_1", Value("▲ −2.0", "[−3.0, +1.0]")))
    page = Page("t\nu", ("l",), (Section("s", "S", (Text("100 %\nof it"), Table(EVIL, ("", "A&B"), rows, 1))),))
    lines = latex(page).splitlines()
    body = lines[lines.index(r"\begin{table}") :]
    assert body[3:] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r" & A\&B \\",
        r"\midrule",
        r"{[x]} & 1.0 (+0.5) \\",
        r"\midrule",
        r"sum\_1 & $\uparrow$ $-$2.0 [$-$3.0, +1.0] \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    assert all(line.startswith("% ") for line in lines[: lines.index(r"\begin{table}")] if line)
