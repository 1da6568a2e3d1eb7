"""Which cells and seeds the command asks for, and what it prints from lines alone; nothing is trained here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from kit import tables as kit_tables
from rich.console import Console
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.lab.tables import command as module
from dudi.lab.tables.command import Asked, choose, tables, with_starts
from dudi.lab.tables.findings import read_findings
from dudi.lab.tables.grid import read_grid
from dudi.lab.tables.lines import Line, Name, add

GRID, FINDINGS = read_grid(), read_findings()
FIRST = f"{GRID.pair}/"


class Asks:
    """What would be trained."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.missing = folder, list[Name]()
        monkeypatch.setattr(module, "train", self._train)
        monkeypatch.setattr(module, "models_of", lambda lab, weights: kit_tables.PLAN)
        monkeypatch.setattr(module, "write_page", self._page)
        self.shown: list[int] = []

    def _train(self, asked: Asked, grid: Any, wanted: list[Name], here: Any, lines: dict[Name, Line], *_: Any) -> None:
        self.missing.extend(name for name in wanted if name not in lines)

    def _page(self, output: Path, *rest: Any) -> Path:
        self.shown = list(rest[-1])
        return output / "findings.md"

    def __call__(self, *only: str, **changes: Any) -> tuple[list[Name], str]:
        self.missing.clear()
        console = Console(file=io.StringIO(), width=300)
        tables(Asked(output=self.folder, only=only, **changes), console)
        return list(self.missing), console.file.getvalue()  # type: ignore[attr-defined]

    def have(self, lines: dict[Name, Line]) -> None:
        for line in lines.values():
            add(self.folder, line)


@pytest.fixture
def asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asks:
    return Asks(tmp_path, monkeypatch)


def test_everything_by_seed_with_each_teacher_once(asks: Asks) -> None:
    missing, said = asks(seeds=2)
    cells = [cell for cell in GRID.cells.values() if cell.pair in (GRID.pair, "llama3.2-1b")]
    trained = [cell.name for cell in cells if cell.recipe is not None]
    assert len(missing) == len(set(missing)) == 2 * len(trained) + 2
    assert {name for name, seed in missing if seed is None} == {FIRST + "teacher", "llama3.2-1b/teacher"}
    seeds = [seed for _, seed in missing if seed is not None]
    assert seeds == sorted(seeds), "a seed is whole before the next one begins"
    assert "left out, since the lab has no models for them: qwen2.5-1.5b, qwen3-0.6b" in said


def test_a_table_a_finding_or_a_cell_brings_its_cold_starts(asks: Asks) -> None:
    assert asks("gkd", seeds=1)[0] == [(FIRST + "sft", 0), (FIRST + "gkd", 0)]
    assert asks("gkd-cold-start-dft", seeds=1, first=7)[0] == [(FIRST + "dft", 7), (FIRST + "gkd-cold-start-dft", 7)]
    assert asks("dudi-no-cold-start", seeds=1)[0] == [(FIRST + "dudi-no-cold-start", 0)]
    f6 = {name for name, _ in asks("F6", seeds=1)[0]}
    assert f6 == {FIRST + "sft", FIRST + "dudi", FIRST + "dudi-without-sequence"}
    f1 = {cell.name for cell in choose(["F1"], GRID, FINDINGS)}
    assert set(GRID.readings) < f1 and len(f1) == 7 + 4, "with the readings of its cells"
    for name in ("table7", "F12", "F13"):
        chosen = with_starts(choose([name], GRID, FINDINGS), GRID)
        assert len(chosen) == len({cell.name for cell in chosen}) > 1


def test_only_what_has_no_line_is_asked_for(asks: Asks) -> None:
    asks.have(kit_tables.grid_lines(4))
    assert asks(seeds=4)[0] == []
    further = asks("table2", seeds=5)[0]
    assert {seed for _, seed in further} == {4}
    assert {name for name, _ in further} == {row for row in GRID.tables["table2"].rows if not row.endswith("teacher")}


def test_the_extension_is_of_what_four_seeds_left_open(asks: Asks) -> None:
    asks.have(kit_tables.grid_lines(4))
    missing, _ = asks(extend=True)
    assert {seed for _, seed in missing} == {4, 5, 6, 7}
    names = {name.removeprefix(FIRST) for name, _ in missing}
    assert {"dudi", "dudi-jsd", "dudi-forward-kl", "sft"} <= names, "F9 is open"
    assert not {"dudi-without-on-policy", "dudi-without-off-policy", "dudi-without-sequence"} & names, "these are not"


def test_seeds_for_development_are_shown_alone(asks: Asks) -> None:
    asks.have({name: line for name, line in kit_tables.grid_lines(4).items() if name[0] == FIRST + "sft"})
    add(asks.folder, kit_tables.line(FIRST + "sft", 100, 1.0))
    asks("sft", seeds=2)
    assert asks.shown == [0, 1, 2, 3], "all that there are"
    asks("sft", seeds=2, first=100)
    assert asks.shown == [100]


def test_a_clone_prints_from_lines_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself, with the models that ship."""
    for line in kit_tables.grid_lines(2).values():
        if line.cell in (FIRST + "sft", FIRST + "gkd"):
            add(tmp_path, line)
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("nothing is missing"))
    done = CliRunner().invoke(app, ["lab", "tables", "--only", "gkd", "--seeds", "2", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f"findings: {tmp_path / 'findings.md'}" in done.output.replace("\n", "")
    assert "| GKD | " in (tmp_path / "findings.md").read_text(encoding="utf-8")


def test_a_page_of_the_lines_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is missing, nothing is trained; it says of pairs without lines what the command itself says of them."""
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("it only prints"))
    for name, line in kit_tables.grid_lines(3).items():
        if name[0].startswith(FIRST) and name != (FIRST + "dudi", 2):
            add(tmp_path / "lines", line)
    report = ["report", "--tables", str(tmp_path / "lines")]
    done = CliRunner().invoke(app, [*report, "--output", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    assert f"report: {tmp_path / 'page' / 'findings.html'}" in done.output.replace("\n", "")
    text = (tmp_path / "page" / "findings.md").read_text(encoding="utf-8")
    assert "seeds 0 to 2" in text and "F2: left out, since the lab has no such pair: qwen3-0.6b." in text
    assert "F2: not run yet, because 0 of 4 seeds are there" in text, (
        "and not judged on the pairs that happen to be there"
    )
    with pytest.raises(DudiError, match="only --output goes with it"):
        CliRunner().invoke(app, [*report, "--baseline", "SFT"], catch_exceptions=False)
    with pytest.raises(DudiError, match=r"no cells.jsonl of `dudi lab tables` with a trained cell"):
        CliRunner().invoke(app, ["report", "--tables", str(tmp_path / "none")], catch_exceptions=False)


def test_a_lab_that_is_none_is_one_line(tmp_path: Path) -> None:
    for given in ({"lab": tmp_path}, {"weights": tmp_path}):
        with pytest.raises(DudiError, match=r"cannot be read .* expected a lab of `dudi lab build` or `export`"):
            tables(Asked(output=tmp_path / "o", **given), Console(file=io.StringIO()))
    assert not (tmp_path / "o").exists()


def test_the_extension_comes_after_the_first_look_and_has_its_own_seeds(asks: Asks) -> None:
    with pytest.raises(DudiError, match=r"no finding with its first four seeds; run without --extend first"):
        asks(extend=True)
    asks.have(kit_tables.grid_lines(4))
    for given in ({"first": 3}, {"seeds": 3}):
        with pytest.raises(DudiError, match=r"--extend has seeds of its own, 4 to 7; leave out --seeds and --first"):
            asks(extend=True, **given)


def test_a_pair_that_the_lab_lacks_is_no_empty_page(asks: Asks) -> None:
    with pytest.raises(DudiError, match=r"the lab has no models for qwen3-0.6b; it has them for qwen2.5-0.5b, llama"):
        asks("qwen3-0.6b/dudi")
    with pytest.raises(DudiError, match=r"did you mean 'gkd'\?") as error:
        asks("gkdd")
    assert "dudi-jsd," in str(error.value) and "qwen2.5-0.5b/" not in str(error.value), "cells by their short names"


@pytest.mark.parametrize(
    ("change", "decided"),
    [
        ("seed=7", "seed of a cell is decided by --seeds and --first"),
        (" output = elsewhere", "output of a cell is decided by --runs"),
        ("models.student=other", "models.student of a cell is decided by --lab or --weights"),
        ('models={teacher="other"}', "models.student of a cell"),
        ("data.source=rows", "data.source of a cell is decided by --lab"),
        ("data.rows_per_language.th=3", "data.rows_per_language of a cell is decided by --lab"),
        ("cold_start.checkpoint=old", "cold_start.checkpoint of a cell is decided by the cell that it starts from"),
        ("cold_start={}", "cold_start.checkpoint of a cell"),
    ],
)
def test_what_the_grid_sets_for_each_cell_cannot_be_set_for_all(asks: Asks, change: str, decided: str) -> None:
    with pytest.raises(DudiError, match=decided):
        asks("sft", changes=(change,))
    assert not asks.missing


def test_settings_are_compared_even_where_no_line_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a page of other settings than those that were asked for."""
    for line in kit_tables.grid_lines(1).values():
        add(tmp_path / "lines", line)
    lab = kit_tables.write_lab(tmp_path / "lab")
    for given in (("data.eval_rows_per_language=0",), ("nonsense",)):
        with pytest.raises(DudiError, match=r"made with other settings|expected key=value"):
            tables(Asked(output=tmp_path / "lines", only=("sft",), seeds=1, lab=lab, changes=given), Console())
    assert not (tmp_path / "lines" / "findings.md").exists()


def test_a_page_of_development_seeds_where_there_are_no_others(tmp_path: Path) -> None:
    add(tmp_path, kit_tables.line(FIRST + "sft", 100, 30.0))
    add(tmp_path, kit_tables.line(FIRST + "sft", 101, 31.0))
    assert "seeds 100 to 101" in module.report_lines(tmp_path).with_name("findings.md").read_text(encoding="utf-8")
    with pytest.raises(DudiError, match=r"name its --output, a folder"):
        module.report_lines(tmp_path / "cells.jsonl")


@pytest.mark.parametrize("blocked", ["findings.md", "findings.html", "figures", "figures/heat.png"])
def test_a_page_that_cannot_be_written_is_one_line_and_no_half_page(tmp_path: Path, blocked: str) -> None:
    add(tmp_path, kit_tables.line(FIRST + "sft", 0, 30.0))
    there = tmp_path / "page" / blocked
    if blocked == "figures":
        there.parent.mkdir()
        there.write_text("a file")
    else:
        there.mkdir(parents=True)
    with pytest.raises(DudiError, match=rf"{blocked}.*; name another --output"):
        module.report_lines(tmp_path, tmp_path / "page")
    assert [file for file in (tmp_path / "page").rglob("*") if file.is_file()] == ([there] if there.is_file() else [])
