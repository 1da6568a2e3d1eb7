"""Trackers: what they are told, under which names; that a stopped training goes on in the same run; that they are asked
for before anything begins, and imported only then."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kit.additions.recorder import Recorder
from kit.command import Dudi
from kit.runs import assert_same_end, recipe

import dudi as package
from dudi.errors import DudiError
from dudi.files import read_lines
from dudi.recipe.schema import Recipe
from dudi.run.pipeline import run
from dudi.training.monitors import Monitor
from dudi.training.trackers import TRACKERS

DUDI = {"name": "dudi"}
STEPS = {"max_steps": 4, "log_every": 2, "overlap_every": 2, "save_every": 1}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    monkeypatch.setitem(TRACKERS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.setattr(Recorder, "fail", set())
    yield Recorder


def tracked(folder: Path, *names: str, output: str = "run", cold: str = "none") -> Recipe:
    """Twenty-four rows, one a language held out, an evaluation at step 2 and at the end."""
    tables: dict[str, Any] = {
        "training": {**STEPS, "eval_every": 2, "report_to": names},
        "cold_start": {"method": {"name": cold}},
        "data": {"eval_rows_per_language": 1},
    }
    return recipe(folder, DUDI, output=output, number=24, **tables)


def at(line: Mapping[str, Any], name: str) -> float:
    """A number of a line of metrics.jsonl by its name, as docs/tracking.md explains names."""
    kind, *parts = name.split("/")
    if kind == "train":
        return float(line[parts[0]])
    *path, quantity = parts
    place: Any = line[kind]
    for part in path:
        place = place[part] if part in place else place["by_language"][part]
    return float(place[quantity])


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_number_of_the_metrics_is_told_by_its_name(tmp_path: Path, told: type[Recorder]) -> None:
    folder = run(tracked(tmp_path, "recorder", cold="sft"), say=lambda _: None)
    assert [one.title for one in told.told] == ["run/1-cold-start", "run/2-dudi"]
    assert [(one.run, one.finished) for one in told.told] == [(None, True)] * 2
    for one, stage in zip(told.told, ("1-cold-start", "2-dudi"), strict=True):
        lines = read_lines(folder / stage / "metrics.jsonl")
        assert [step for step, *_ in one.lines] == [line["step"] for line in lines]
        for (_, values, _), line in zip(one.lines, lines, strict=True):
            seconds = {name for name in values if name.startswith("seconds/")}
            assert all(values[name] >= 0 for name in seconds)
            assert {name: value for name, value in values.items() if name not in seconds} == {
                name: at(line, name) for name in set(values) - seconds
            }
            assert len(values) - len(seconds) == numbers(line), "each number once"
            assert ("seconds/student" in seconds) is ("eval" not in line)
    names = {name for _, values, _ in told.told[1].lines for name in values}
    assert {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "signal/off_policy/loss",
        "signal/off_policy/id/loss",
        "signal/sequence/margin",
        "rollout/y_tilde/length",
        "rollout/y_tilde/th/share_cut",
        "measure/y/overlap",
        "eval/loss",
        "eval/signal/on_policy/id/loss",
    } <= names


def numbers(value: Any) -> int:
    """How many numbers a line holds, beside its step and the weights, which never change."""
    if isinstance(value, dict):
        return sum(numbers(inner) for key, inner in value.items() if key not in ("step", "weight"))
    return 1


def test_rollouts_and_settings(tmp_path: Path, told: type[Recorder]) -> None:
    folder = run(tracked(tmp_path, "recorder"), say=lambda _: None)
    (last,) = told.told
    texts = [line for *_, lines in last.lines for line in lines]
    assert texts == read_lines(folder / "1-dudi" / "rollouts.jsonl") and texts
    assert [bool(lines) for _, values, lines in last.lines] == [
        "eval/loss" not in values for _, values, _ in last.lines
    ]
    assert last.settings["training"]["lr"] == 1e-3 and last.settings["method"]["signals"]["sequence"]["weight"] == 0.1
    assert json.loads(json.dumps(last.settings)) == last.settings
    assert str(tmp_path) not in json.dumps(last.settings)


@pytest.mark.slow
def test_a_tracker_changes_no_number(tmp_path: Path, told: type[Recorder]) -> None:
    runs = [
        run(tracked(tmp_path, *names, output=name), say=lambda _: None)
        for name, names in (("with", ("recorder",)), ("without", ()))
    ]
    assert_same_end(*runs)


@pytest.mark.slow
def test_each_stage_has_its_own(tmp_path: Path, told: type[Recorder]) -> None:
    changes = {"cold_start": {"training": {**STEPS, "max_steps": 1, "report_to": ("recorder",)}}}
    run(recipe(tmp_path, DUDI, number=24, training={**STEPS, "max_steps": 1}, **changes), say=lambda _: None)
    assert [one.title for one in told.told] == ["run/1-cold-start"]


# ── stopped, resumed ─────────────────────────────────────────────────────────────────────────────────────────────────
class Killer(Monitor):
    """Ends a training within its third step."""

    steps = 0

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        self.steps += 1
        if self.steps == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_stopped_training_goes_on_in_the_same_run(tmp_path: Path, told: type[Recorder]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tracked(tmp_path, "recorder"), say=lambda _: None, monitors=[Killer()])
    assert [one.finished for one in told.told] == [False], "closed, where it broke off"
    run(tracked(tmp_path, "recorder"), resume=True, say=lambda _: None)
    assert [(one.title, one.run, one.step) for one in told.told] == [
        ("run/1-dudi", None, 0),
        ("run/1-dudi", "run-1", 2),
    ]
    assert told.told[-1].finished is True and [step for step, *_ in told.told[-1].lines] == [4, 4]
    assert json.loads((tmp_path / "run" / "1-dudi" / "trackers.json").read_text()) == {"recorder": "run-1"}


@pytest.mark.slow
def test_a_run_may_be_resumed_with_another_tracker(tmp_path: Path, told: type[Recorder]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tracked(tmp_path), say=lambda _: None, monitors=[Killer()])
    said: list[str] = []
    run(tracked(tmp_path, "recorder"), resume=True, say=said.append)
    assert [(one.title, one.run, one.step) for one in told.told] == [("run/1-dudi", None, 2)]
    assert any("resumed with training.report_to" in line for line in said)


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_one_that_cannot_begin_stops_the_training(tmp_path: Path, told: type[Recorder]) -> None:
    told.fail = {-1}
    line = (
        "training.report_to: recorder cannot begin \\(ConnectionError: the server is down\\): mend it, or leave it out"
    )
    with pytest.raises(DudiError, match=line):
        run(tracked(tmp_path, "recorder"), say=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_one_that_fails_later_stops_nothing(tmp_path: Path, told: type[Recorder]) -> None:
    told.fail = {2}
    said: list[str] = []
    folder = run(tracked(tmp_path, "recorder"), say=said.append)
    warned = [line for line in said if "recorder failed" in line]
    assert warned == [
        "  warning: recorder failed, and is told no more (TimeoutError: no answer); metrics.jsonl has it all"
    ]
    assert [one.lines for one in told.told] == [[]]
    assert [line["step"] for line in read_lines(folder / "1-dudi" / "metrics.jsonl")] == [2, 2, 4, 4]


def test_names_and_packages_are_looked_at_first(
    dudi: Dudi, told: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "package", "no_such_package")
    for value, said in (
        ('["tensorbord"]', "training.report_to: unknown tracker: 'tensorbord'; did you mean 'tensorboard'?"),
        (
            '["recorder"]',
            "training.report_to: 'recorder' needs the package no_such_package, which is not installed: pip",
        ),
        ('"wandb"', "training.report_to: expected an array, found 'wandb'"),
    ):
        assert said in dudi.run_refused(f"training.report_to={value}")
        assert said in dudi.refused("check", str(dudi.file), "--set", f"training.report_to={value}")
    assert "'recorder' needs the package" in dudi.run_refused('cold_start.training.report_to=["recorder"]')
    assert told.told == []


# ── imports ──────────────────────────────────────────────────────────────────────────────────────────────────────────
SOURCE = Path(package.__file__).parent
LIBRARIES = {"tensorboard", "wandb", "trackio", "mlflow"}


def imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(package, whether it is imported when the module is)."""
    within = {id(inner) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for inner in ast.walk(f)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            yield name.replace("torch.utils.tensorboard", "tensorboard").partition(".")[0], id(node) not in within


def test_their_packages_are_imported_by_their_own_file_when_a_run_is_opened() -> None:
    found = {
        (file.relative_to(SOURCE).as_posix(), name, at_once)
        for file in SOURCE.rglob("*.py")
        for name, at_once in imported(ast.parse(file.read_text(encoding="utf-8")))
        if name in LIBRARIES
    }
    assert found == {(f"training/trackers/{name}.py", name, False) for name in LIBRARIES}
