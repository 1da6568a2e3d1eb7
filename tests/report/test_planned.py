"""What was planned for a run stands beside what it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit import reports

from dudi.errors import DudiError
from dudi.report.blocks import Page
from dudi.report.markdown import markdown
from dudi.report.planned import planned_section
from dudi.report.runs import read_runs
from dudi.report.write import write_report

GIB = 2**30


def planned(run: Path, measured: bool = True, **changes: Any) -> Path:
    """A run with a plan: of its only stage (2 steps timed; 1.0 s rollout, 3.0 s student, 3.5 s outside; 1.5 GiB), and
    of one that it has not come to."""
    stage = {"stage": "dudi", "steps": 2, "seconds": {"rollout": 2.0, "student": 3.0}, "peak": 1.25 * GIB}
    tried = {
        "stage": "dudi",
        "seconds": {"rollout": 1.5, "student": 2.75, "loading": 0.75, "other": 0.001},
        "wall": {"low": 4.0, "expected": 5.0, "high": 6.5},
        "peak": int(1.75 * GIB),
        "rollouts": [7.5, 8.0],
    }
    plan = {
        "device": {"title": "a small one", "memory": 1e9},
        "stages": [stage, {**stage, "stage": "later"}],
        "measured": {"stages": [tried, {**tried, "stage": "later"}]} if measured else None,
        **changes,
    }
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return run


def rows(text: str) -> list[str]:
    section = text.replace("\u00a0", " ").split("## Planned and actual")[1]
    return [line for line in section.splitlines() if line.startswith("| dudi")]


def test_a_plan_stands_beside_what_the_run_took(tmp_path: Path) -> None:
    page = write_report([planned(reports.run(tmp_path / "r"))])
    assert rows(page.with_name("report.md").read_text(encoding="utf-8")) == [
        "| dudi: reading |  |  | 2.00 |",
        "| dudi: loading |  | 0.75 | 0.50 |",
        "| dudi: saving |  |  | 1.00 |",
        "| dudi: rollout | 2.00 | 1.50 | 1.00 |",
        "| dudi: student | 3.00 | 2.75 | 3.00 |",
        "| dudi: other |  | 0.00 |  |",
        "| dudi: in all | 5.00 | 5.00 (4.00 to 6.50) | 7.50 (+50 %) |",
        "| dudi | 1.25 GiB | 1.75 GiB | 1.50 GiB (+20 %) |",
    ]
    text = page.read_text(encoding="utf-8")
    assert "planned for a small one" in text and "later" not in text
    numbers = json.loads(page.with_name("report.json").read_text(encoding="utf-8"))["runs"][0]["planned"]
    assert numbers["measured"]["stages"][0]["wall"] == {"low": 4.0, "expected": 5.0, "high": 6.5}


def test_a_plan_without_a_measurement_and_of_other_steps(tmp_path: Path) -> None:
    stage = {"stage": "dudi", "steps": 40, "seconds": {"rollout": 6.0, "student": 4.0}, "peak": 3.0 * GIB}
    section = planned_section(read_runs([planned(reports.run(tmp_path / "r"), measured=False, stages=[stage])]))
    assert section is not None
    assert rows(markdown(Page("", (), (section,))))[-2:] == [
        "| dudi: in all (2 of 40 steps) | 10.00 |  | 7.50 (-25 %) |",
        "| dudi | 3.00 GiB |  | 1.50 GiB (-50 %) |",
    ]


def test_without_a_plan_nothing_is_said_of_one(tmp_path: Path) -> None:
    assert planned_section(read_runs([reports.run(tmp_path / "r")])) is None


def test_a_plan_of_another_kind_is_one_line(tmp_path: Path) -> None:
    run = planned(reports.run(tmp_path / "r"), stages=[{"stage": "dudi"}])
    with pytest.raises(DudiError, match=r"plan\.json: stages\.0\.steps: ") as error:
        write_report([run])
    assert "\n" not in str(error.value) and not (run / "report").exists()
