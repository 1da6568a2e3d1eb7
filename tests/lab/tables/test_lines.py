"""Lines: whole or absent, one for each cell and seed, added to only where the settings are the same."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from kit import tables as kit_tables

from dudi.errors import DudiError
from dudi.lab.tables.cells import Job, hashed
from dudi.lab.tables.checks import check_lines, check_settings
from dudi.lab.tables.grid import read_grid
from dudi.lab.tables.lines import FILE, Line, add, overlaps, read

CELLS = read_grid().cells


def test_what_is_added_is_read(tmp_path: Path) -> None:
    one, other = kit_tables.line("a/dudi", 0, 10.123456789), kit_tables.line("a/teacher", None, None)
    add(tmp_path / "new", one)
    add(tmp_path / "new", other)
    assert read(tmp_path / "new") == {("a/dudi", 0): one, ("a/teacher", None): other}
    assert read(tmp_path / "nothing") == {}


def test_a_line_that_a_kill_cut_off_is_not_read_and_not_continued(tmp_path: Path) -> None:
    add(tmp_path, kit_tables.line("a/dudi", 0, 1.0))
    whole = (tmp_path / FILE).read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 2):
        (tmp_path / FILE).write_bytes(whole + whole[:cut])
        assert list(read(tmp_path)) == [("a/dudi", 0)]
        add(tmp_path, kit_tables.line("a/dudi", 1, 2.0))
        assert list(read(tmp_path)) == [("a/dudi", 0), ("a/dudi", 1)]
        assert (tmp_path / FILE).read_bytes().startswith(whole) and (tmp_path / FILE).read_bytes().count(b"\n") == 2


def test_two_lines_of_one_cell_and_seed_are_refused(tmp_path: Path) -> None:
    for score in (1.0, 2.0):
        add(tmp_path, kit_tables.line("a/dudi", 0, score))
    with pytest.raises(DudiError, match=r"two lines of a/dudi, seed 0; remove one"):
        read(tmp_path)


def test_scores_by_measure() -> None:
    line = replace(kit_tables.line("a/dudi", 0, 40.0), competencies={"nlr": 3.0}, average=12.0)
    assert [line.score(one) for one in ("average", "language.th", "competency.nlr", "language.xx")] == [12, 40, 3, None]
    assert line.score("overlap") == pytest.approx(40.0)
    weighted = replace(line, overlap=(replace(line.overlap[0], count=30.0, share=0.5), line.overlap[1]))
    assert weighted.score("overlap") == pytest.approx(100 * (30 * 0.5 + 10 * 0.4) / 40)
    assert replace(line, overlap=()).score("overlap") is None


def test_the_overlap_is_that_of_training_on_y_tilde(tmp_path: Path) -> None:
    told = {"overlap": 0.5, "count": 8.0, "by_language": {"th": {"overlap": 0.5, "count": 8.0}}}
    entries = [
        {"step": 1, "measure": {"y_tilde": told, "gold": {**told, "overlap": 0.9}}},
        {"step": 2, "signal": {}},
        {"step": 3, "measure": {"gold": told}},
        {"step": 3, "eval": {"loss": 1.0}, "measure": {"y_tilde": told}},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (found,) = overlaps(tmp_path / "m.jsonl")
    assert (found.step, found.share, found.count, found.languages) == (1, 0.5, 8.0, {"th": 0.5})


def test_nothing_is_added_to_a_cell_of_other_settings(tmp_path: Path) -> None:
    cell = CELLS["qwen2.5-0.5b/dudi"]
    settings = {"recipe": {"training": {"lr": 1e-3}}, "data": "d"}
    there = {"recipe": {"training": {"lr": 2e-3}}, "data": "d", "start_weights": "w"}
    job = Job(cell, 1, tmp_path, tmp_path, settings)
    mine = kit_tables.line(cell.name, 0, 1.0, key=hashed({"settings": settings, "seed": 0}), settings=settings)
    other = kit_tables.line(cell.name, 0, 1.0, key="k", settings=there)
    check_settings([job], {mine.name: mine}, tmp_path)
    check_settings([job], {}, tmp_path)
    with pytest.raises(DudiError) as error:
        check_settings([job], {other.name: other}, tmp_path)
    assert "qwen2.5-0.5b/dudi, seed 0, was made with other settings" in str(error.value)
    assert "(recipe.training.lr: 0.002 there, 0.001 here)" in str(error.value) and "another --output" in str(
        error.value
    )


def test_a_whole_line_that_has_no_end_is_read_and_kept(tmp_path: Path) -> None:
    """As an editor leaves it; a line that a kill cut off is no line."""
    for seed in (0, 1):
        add(tmp_path, kit_tables.line("a/dudi", seed, 1.0))
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-1])
    assert list(read(tmp_path)) == [("a/dudi", 0), ("a/dudi", 1)]
    add(tmp_path, kit_tables.line("a/dudi", 2, 1.0))
    assert list(read(tmp_path)) == [("a/dudi", 0), ("a/dudi", 1), ("a/dudi", 2)]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"average": 500.0}, "average: expected a number of at most 100, found 500"),
        ({"languages": {"th": float("nan")}}, "languages.th: expected a finite number"),
        ({"seed": -1}, "seed: expected a number of at least 0, found -1"),
        ({"foo": 1}, "foo: expected no key of this name, found 1"),
        ({"overlap": [{"step": 1, "count": 1.0, "share": 3.0, "languages": {}}]}, "overlap.0.share: expected a number"),
        (
            {"overlap": [{"step": 1, "count": 1.0, "share": 0.3, "languages": {"id": -1}}]},
            "overlap.0.languages.id: exp",
        ),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    line = {**asdict(kit_tables.line("a/dudi", 0, 1.0)), **changes}
    (tmp_path / FILE).write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(DudiError) as error:
        read(tmp_path)
    assert f"{FILE}: line 1: {fault}" in str(error.value)


DUDI, TEACHER = "qwen2.5-0.5b/dudi", "qwen2.5-0.5b/teacher"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (kit_tables.line("qwen2.5-0.5b/gdk", 0, 1.0), "unknown cell: 'qwen2.5-0.5b/gdk'; did you mean"),
        (kit_tables.line(DUDI, None, 1.0), "seed None: expected null as the seed of a teacher, and a number"),
        (kit_tables.line(TEACHER, 1, 1.0), "seed 1: expected null as the seed of a teacher"),
        (kit_tables.line(DUDI, 1, 1.0, environment={}), "expected a date in `environment` and the evaluation in"),
        (kit_tables.line(DUDI, 1, 1.0, seconds={}), "expected a date in `environment` and the evaluation in `seconds`"),
        (kit_tables.line(DUDI, 1, 1.0, languages={"xx": 1.0}), "unknown language: 'xx'"),
        (kit_tables.line(DUDI, 1, 1.0, key="k"), "its key is not that of its settings and its seed"),
        (kit_tables.line(DUDI, 1, 1.0, settings={"a": 1}), "other settings than seed 0 (a: None there, 1 here)"),
        (
            kit_tables.line("qwen2.5-0.5b/sft", 1, 1.0, settings={"benchmark": "b"}),
            "are of two benchmarks: one of them belongs",
        ),
    ],
)
def test_lines_that_do_not_go_together_are_refused(tmp_path: Path, line: Line, fault: str) -> None:
    lines = {one.name: one for one in (kit_tables.line(DUDI, 0, 1.0), kit_tables.line(TEACHER, None, 1.0))}
    moved = kit_tables.line(DUDI, 2, 1.0, settings={})
    check_lines(lines | {moved.name: replace(moved, settings={"start_weights": "w"})}, CELLS, tmp_path)
    with pytest.raises(DudiError) as error:
        check_lines(lines | {line.name: line}, CELLS, tmp_path)
    assert fault in str(error.value) and str(tmp_path / FILE) in str(error.value)
