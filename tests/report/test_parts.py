"""Parts of the report by themselves: warnings, training seeds, numbers and long texts as text, smoothing."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from kit import reports

from dudi.records import Item
from dudi.report.blocks import number, percent, signed
from dudi.report.figures import smoothed
from dudi.report.results import training_seeds
from dudi.report.runs import read_runs
from dudi.report.samples import PROMPT, end_of
from dudi.report.side_by_side import _rule, shown
from dudi.report.training import run_warnings
from dudi.report.write import make_report, write_report


def test_runs_of_several_training_seeds_are_named(tmp_path: Path) -> None:
    runs = read_runs([reports.run(tmp_path / n, seed=s) for n, s in (("a", 0), ("b", 1))])
    assert training_seeds(runs) == [(("a", "b"), (0, 1))]
    other = read_runs([tmp_path / "a", reports.run(tmp_path / "c", name="x")])
    assert training_seeds(other) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cut": 0.9}, "y_tilde 90\u00a0% (EOS rate 10\u00a0%)"),
        (
            {"losses": (1.0, float("nan"), float("nan"), 1.0, 1.0)},
            "signal off_policy is not a finite number at step 20, 2 times",
        ),
    ],
)
def test_what_should_worry_is_said(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    page = write_report([reports.run(tmp_path / "r", **change)], output=tmp_path / "out")
    assert any(
        expected in line for line in make_report(read_runs([tmp_path / "r"]), (), None, None).numbers["warnings"]
    )
    assert "To look at first" in page.read_text(encoding="utf-8")


def test_rows_that_limits_leave_out_are_said_first(tmp_path: Path) -> None:
    folder = reports.run(tmp_path / "r")
    lengths = json.loads((folder / "lengths.json").read_text(encoding="utf-8"))
    first, other = list(lengths)[:2]
    lengths[first] |= {"rows": 62, "left_out": 38}
    lengths[other] |= {"rows": 90, "left_out": 10}
    (folder / "lengths.json").write_text(json.dumps(lengths))
    (line,) = run_warnings(read_runs([folder])[0])
    assert line == f"r: rows are left out, as x is longer than limits.prompt: {first} 38\u00a0% (38 of 100)."
    assert line in write_report([folder]).read_text(encoding="utf-8")


def test_a_run_that_goes_on_can_be_looked_at(tmp_path: Path) -> None:
    folder = reports.run(tmp_path / "r")
    (folder / "summary.json").unlink()
    with (folder / "1-dudi" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 60, "lo')
    (one,) = read_runs([folder])
    assert one.stages[0].steps == 50 and run_warnings(one) == [
        "r: the run is not finished; the figures end at step 50."
    ]
    shutil.rmtree(folder / "1-dudi")
    assert "no training step" in write_report([folder]).read_text(encoding="utf-8")


def test_the_end_of_a_prompt_begins_with_a_letter() -> None:
    """Not with the vowel sign or tone mark of one that is left out."""
    assert end_of("short") == "short"
    for word in ("ကျေးဇူးပြု၍", "தமிழ்நாட்டின்", "กรุณาตอบเป็นภาษาไทยนี้"):
        for length in range(PROMPT, PROMPT + len(word)):
            found = end_of((word * PROMPT)[: length + 1]).removeprefix("… ")
            assert not unicodedata.category(found[0]).startswith("M") and PROMPT - 8 < len(found) <= PROMPT


def test_nothing_worries_in_a_sound_run(run: Path) -> None:
    assert run_warnings(read_runs([run])[0]) == []


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (signed(-0.04), "0.0"),
        (signed(0.04), "0.0"),
        (signed(-1.26), "−1.3"),
        (signed(2), "+2.0"),
        (signed(None), "-"),
        (number(-3), "−3.0"),
        (number(None), "-"),
        (percent(0.5), "50\u00a0%"),
        (percent(None), "-"),
    ],
)
def test_numbers_as_text(found: str, expected: str) -> None:
    assert found == expected


def test_long_texts_are_cut_between_letters() -> None:
    cut = shown("กำ้" * 400, 100)
    assert cut.startswith("กำ้") and "more characters" in cut
    assert shown("กิ" * 3, 3) == "กิ … (4 more characters)"
    assert shown(" a\tb\x1f ") == "a b⟨1F⟩"


def test_smoothing_keeps_a_line_and_leaves_gaps() -> None:
    line = [float(n) for n in range(40)]
    assert smoothed(line)[2:-2] == pytest.approx(line[2:-2])
    assert smoothed([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    gap = [*line[:20], float("nan"), *line[21:]]
    assert [n for n, v in enumerate(smoothed(gap)) if v != v] == [20]


def test_constraints_are_shown_as_they_are_written() -> None:
    wanted = {"words": {"at_least": 2, "at_most": 5}, "occurs": {"nasi": 1}, "includes": ["a", "b"], "title": True}
    line = {"id": "1", "task": "t", "language": "id", "messages": [{"role": "user", "content": "?"}], "targets": ["x"]}
    rule = _rule(Item.model_validate_json(json.dumps({**line, "constraints": wanted, "response_language": "ms"})))
    assert rule == "words: at_least 2, at_most 5; occurs: nasi 1; includes: a, b; title; in Malay (ms)"
