"""From lines to verdicts: by the rule alone, and only of what can be told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit import tables as kit_tables

from dudi.lab.tables.findings import read_findings
from dudi.lab.tables.grid import read_grid
from dudi.lab.tables.lines import Line, Name
from dudi.lab.tables.verdicts import NOT_RUN, NOT_TESTABLE, Verdict, verdicts
from dudi.report.stats.verdicts import CONTRADICTS, OPEN, REPLICATES

GRID, FINDINGS = read_grid(), read_findings()
FIRST = "qwen2.5-0.5b/"
lines = kit_tables.grid_lines


def judged(there: dict[Name, Line]) -> dict[str, Verdict]:
    return verdicts(there, GRID, FINDINGS, kit_tables.HERE)


def test_far_apart_methods_replicate_or_contradict() -> None:
    found = judged(lines(4))
    assert found["F1"].outcome == REPLICATES and found["F4"].outcome == CONTRADICTS
    assert found["F4"].judged is not None and found["F4"].judged.weakest.mean == pytest.approx(-8, abs=0.1)
    assert found["F9"].outcome == OPEN, "JSD and forward KL are the same here"
    assert found["F2"].outcome == REPLICATES and found["F2"].left_out == ("qwen3-0.6b",)
    assert len(found["F2"].gaps) == 2


def test_noise_is_not_separable_and_more_seeds_are_read_at_8_only() -> None:
    small = {name: line for name, line in lines(8, noise=30.0).items()}
    assert judged(small)["F1"].outcome == OPEN
    closer = lines(8, noise=3.0)
    four, seven = ({n: l for n, l in closer.items() if n[1] is None or n[1] < k} for k in (4, 7))
    assert judged(four)["F1"].outcome == judged(seven)["F1"].outcome == OPEN
    assert judged(seven)["F1"].judged == judged(four)["F1"].judged
    assert judged(closer)["F4"].judged != judged(seven)["F4"].judged


def test_what_is_not_there_yet_is_not_judged() -> None:
    there = {name: line for name, line in lines(4).items() if name != (FIRST + "dudi-jsd", 3)}
    found = judged(there)
    assert (found["F9"].outcome, found["F9"].because) == (NOT_RUN, "3 of 4 seeds are there")
    assert found["F1"].outcome == REPLICATES
    assert {one.outcome for one in judged({}).values()} == {NOT_RUN}
    assert len(found["F9"].gaps[0].values) == 3, "the gaps that there are, are shown"


def test_a_missing_score_is_not_testable() -> None:
    found = judged(
        lines(4, change=lambda line: replace(line, average=None) if line.name == (FIRST + "spin", 2) else line)
    )
    assert (found["F1"].outcome, found["F1"].because) == (
        NOT_TESTABLE,
        "a score is missing, or a training has no overlap",
    )
    assert found["F3"].outcome == REPLICATES


def test_f14_and_f15_need_a_world_in_which_they_mean_something() -> None:
    found = judged(lines(4))
    assert found["F14"].outcome == NOT_TESTABLE and "in Burmese" in found["F14"].because
    assert found["F15"].because == "the student has more than 5 points in NLR after SFT"

    def as_in_the_paper(line: Line) -> Line:
        nlr = 20.0 if line.seed is None else 1.0 + 0.01 * line.seed
        my = 25.0 if line.seed is None else (line.languages["my"] or 0) / 2
        return replace(line, competencies={"nlr": nlr}, languages={**line.languages, "my": my})

    found = judged(lines(4, change=as_in_the_paper))
    assert found["F15"].outcome == found["F14"].outcome == REPLICATES


def test_a_reading_takes_its_cell_s_place() -> None:
    there = lines(4)
    gkd = FIRST + "gkd-sum"
    for seed in range(4):
        there[gkd, seed] = replace(there[gkd, seed], average=60.0 + 0.01 * seed)
    found = judged(there)
    assert found["F1"].outcome == REPLICATES and found["F1"].readings is not None
    assert found["F1"].readings[gkd] == CONTRADICTS and found["F1"].readings[FIRST + "spin-online"] == REPLICATES
    del there[gkd, 0]
    assert (judged(there)["F1"].readings or {})[gkd] == NOT_RUN


def test_the_overlap_orders_the_verbalizers_by_itself() -> None:
    order = ["dudi", "dudi-verbalizer-none", "dudi-verbalizer-mix", "dudi-verbalizer-english"]

    def change(line: Line) -> Line:
        name = line.cell.partition("/")[2]
        share = 0.6 - 0.1 * (order.index(name) if name in order else 4) + 0.001 * (line.seed or 0)
        return replace(line, overlap=(replace(line.overlap[0], share=share),))

    found = judged(lines(4, change=change))
    assert found["F11"].outcome == REPLICATES
    assert found["F11"].judged is not None and found["F11"].judged.weakest.mean == pytest.approx(10.0), (
        "percent a place"
    )
