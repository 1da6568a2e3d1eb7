"""`kill -9` at the worst moments, a full disk, damaged files, signals: then the same end as undisturbed, bit for bit.

Runs are started by the command line, in processes of their own; `kit/workers/crash.py` has the places and puts them in.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kit import runs
from kit.processes import start

from dudi.recipe.read import dump_recipe
from dudi.training import checkpoints

KILLED, STOPPED = -signal.SIGKILL, 143
Place = list[Any]


@dataclass(frozen=True)
class Case:
    """of: the recipe; places: where its runs are disturbed, one after the other; status: how those end; left: complete
    checkpoints of all stages that the last of them leaves; damage: files then damaged; used: the step that the last run
    goes on from, where another than the newest."""

    of: str
    places: tuple[Place, ...]
    status: int = KILLED
    left: tuple[int, ...] | None = None
    damage: tuple[tuple[str, str], ...] = ()


def at(of: str, *place: Any, **rest: Any) -> Case:
    return Case(of, (list(place),), **rest)


FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer_config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "ema.safetensors",
    "dudi.json",
    "complete.json",
)
SAVED = "checkpoint-4/"

FAST = {
    "in a step": at("dudi", "step", 5, left=(2, 4)),
    "inside a line of metrics": at("dudi", "write", "metrics.jsonl", "inside", 4),
    "newest truncated": at("dudi", "step", 5, left=(2, 4), damage=(("1-dudi/checkpoint-4/optimizer.pt", "truncate"),)),
    "inside a file of the cache": at("cached", "write", ".group-000002.safetensors.tmp", "inside", left=()),
    "SIGTERM in a step": at("dudi", "SIGTERM", "step", 3, status=STOPPED, left=(2, 3)),
}
SLOW = {
    "inside the optimizer's file": at("sdft", "write", SAVED + "optimizer.pt", "inside", left=(2,)),
    "inside the list of files": at("sdft", "write", SAVED + "complete.json", "inside", left=(2,)),
    "after the list of files": at("sdft", "write", SAVED + "complete.json", "after", left=(2,)),
    "before the rename": at("sdft", "rename", "checkpoint-4", "before", left=(2,)),
    "after the rename": at("sdft", "rename", "checkpoint-4", "after", left=(2, 4)),
    "within the rotation": at("sdft", "remove", "checkpoint-2", "inside", left=(4, 6)),
    "inside a batch of responses": at("seqkd", "write", ".batch-000001.jsonl.tmp", "inside"),
    "between stages": at("seqkd", "stage", "seqkd"),
    "disk full": at("dudi", "full", "write", SAVED + "model.safetensors", "inside", status=2, left=(2,)),
    "SIGTERM while the cache is filled": at(
        "cached", "SIGTERM", "rename", "group-000002.safetensors", "after", status=STOPPED, left=()
    ),
    "a file of the cache changed": at(
        "cached", "step", 5, left=(2, 4), damage=(("1-dudi/cache/group-000002.safetensors", "flip"),)
    ),
    "SIGTERM in an evaluation": at("dudi", "SIGTERM", "evaluation", 1, status=STOPPED, left=(2, 3)),
    "SIGTERM in a generation": at("seqkd", "SIGTERM", "decode", 2, status=STOPPED),
    **{
        f"{when} {file}": at("sdft", "write", SAVED + file, when, left=(2,))
        for file in FILES
        for when in ("before", "inside", "after")
    },
    **{f"{when} the rename of the result": at("sdft", "rename", "/model", when) for when in ("before", "after")},
    **{f"rotation, {when}": at("dudi", "remove", "checkpoint-2", when) for when in ("before", "inside", "after")},
    **{f"{when} the staging folder is cleared": at("dudi", "remove", "staging", when) for when in ("before", "after")},
    **{f"step {n}": at("dudi", "step", n) for n in (1, 2, 4, 6)},
    **{f"in evaluation {n}": at("dudi", "evaluation", n) for n in (1, 2)},
    **{f"recipe.toml, {when}": at("dudi", "rename", "recipe.toml", when) for when in ("before", "after")},
    **{f"data, {when}": at("dudi", "rename", "/data", when) for when in ("before", "after")},
    **{f"summary.{e}, before": at("dudi", "rename", f"summary.{e}", "before") for e in ("json", "md")},
    **{
        f"{when} a file of the cache is there": at("cached", "rename", "group-000002.safetensors", when)
        for when in ("before", "after")
    },
    "disk full in the cache": at("cached", "full", "write", ".group-000002.safetensors.tmp", "inside", status=2),
    "the cache is gone": at("cached", "step", 5, damage=(("1-dudi/cache/group-000000.safetensors", "remove"),)),
    **{f"in step {n} with a cache in memory": at("remembered", "step", n) for n in (1, 3, 5)},
    **{f"before {stage} of SPIN": at("spin", "stage", stage) for stage in ("spin-1-responses", "spin-1", "spin-2")},
    **{f"SPIN, response {n}": at("spin", "decode", n) for n in (1, 3, 5)},
    **{f"SeqKD, {when} a batch": at("seqkd", "rename", "batch-000001.jsonl", when) for when in ("before", "after")},
    **{
        f"disk full in {file}": at("sdft", "full", "write", SAVED + file, "inside", status=2, left=(2,))
        for file in ("optimizer.pt", "rng_state.pth", "ema.safetensors", "dudi.json", "complete.json")
    },
    "disk full in metrics": at("dudi", "full", "write", "metrics.jsonl", "inside", 4, status=2),
    "disk full in responses": at("seqkd", "full", "write", ".batch-000001.jsonl.tmp", "inside", status=2),
    "disk full in the result": at(
        "sdft", "full", "write", "staging/model.safetensors", "inside", status=2, left=(4, 6)
    ),
    "killed three times": Case("dudi", (["step", 3], ["write", SAVED + "optimizer.pt", "inside"], ["step", 6])),
    "stopped, killed, stopped": Case("dudi", (["SIGTERM", "step", 1], ["step", 3], ["SIGTERM", "evaluation", 1])),
    "a changed byte": at("sdft", "step", 5, damage=(("1-sdft/checkpoint-4/model.safetensors", "flip"),)),
    "a missing file": at("sdft", "step", 5, damage=(("1-sdft/checkpoint-4/ema.safetensors", "remove"),)),
    "a damaged result": at("dudi", "rename", "summary.json", "before", damage=(("1-dudi/model/config.json", "flip"),)),
    "SIGUSR1 in a step": at("sdft", "SIGUSR1", "step", 5, status=STOPPED, left=(4, 5)),
    "SIGTERM in the last step": at("dudi", "SIGTERM", "step", 6, status=STOPPED),
    "SIGTERM in the last evaluation": at("dudi", "SIGTERM", "evaluation", 2, status=STOPPED),
    "SIGTERM in SPIN's generation": at("spin", "SIGTERM", "decode", 4, status=STOPPED),
    "SIGTERM while it saves": at("sdft", "SIGTERM", "write", SAVED + "model.safetensors", "after", status=STOPPED),
    "SIGTERM while the result is saved": at(
        "seqkd", "SIGTERM", "rename", "1-cold-start/model", "after", status=STOPPED
    ),
    "SIGTERM twice": at("dudi", "twice", "step", 5, status=-signal.SIGTERM, left=(2, 4)),
    **{
        f"moment {k}": at(("dudi", "sdft", "seqkd", "spin")[k % 4], "moment", share)
        for k, share in enumerate(random.Random(0).uniform(0.05, 0.95) for _ in range(30))
    },
}


def recipes(folder: Path) -> dict[str, Any]:
    """Six steps, the last not at the end of an epoch; checkpoints at 2, 4, 6, metrics and evaluation at 3, 6."""
    training = {"save_every": 2, "log_every": 3, "keep_checkpoints": 2, "eval_every": 3}
    short = {"epochs": 1.0, "save_every": 2, "log_every": 2}
    none = {"cold_start": {"method": {"name": "none"}}}
    data = {"data": {"eval_rows_per_language": 1}, "number": 22}
    return {
        "dudi": ({"name": "dudi"}, {"training": {**training, "max_steps": 6}, **none, **data}),
        "cached": ({"name": "dudi"}, {"training": {**training, "max_steps": 6, "cache": "disk"}, **none, **data}),
        "remembered": ({"name": "dudi"}, {"training": {**training, "max_steps": 6, "cache": "memory"}, **none, **data}),
        "sdft": ({"name": "sdft", "ema_rate": 0.3}, {"training": {**training, "eval_every": 0}, **none}),
        "seqkd": ({"name": "seqkd"}, {"training": short, "cold_start": {"training": short}}),
        "spin": ({"name": "spin", "iterations": 2}, {"training": short, "cold_start": {"training": short}}),
    }


@dataclass
class Ran:
    """A folder in which the worker ran some cases."""

    folder: Path
    reports: dict[str, Any] = field(default_factory=dict)

    def output(self, name: str) -> Path:
        return self.folder / re.sub(r"[^a-z0-9A-Z]+", "-", name)

    def recipe(self, of: str, name: str) -> str:
        method, tables = recipes(self.folder)[of]
        file = self.output(name).with_suffix(".toml")
        made = runs.recipe(self.folder, method, output=self.output(name).name, **tables)
        file.write_text(dump_recipe(made), encoding="utf-8")
        return str(file)


def run_all(folder: Path, cases: Mapping[str, Case]) -> Ran:
    """Every case, and the undisturbed runs they are compared with, by one worker."""
    ran = Ran(folder)
    plan = {
        "straight": {of: ran.recipe(of, f"straight {of}") for of in sorted({case.of for case in cases.values()})},
        "cases": {
            name: {
                "recipe": ran.recipe(case.of, name),
                "output": str(ran.output(name)),
                "of": case.of,
                "places": case.places,
                "damage": case.damage,
            }
            for name, case in cases.items()
        },
    }
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    status, text = start("crash", str(folder / "plan.json"), str(folder / "results.json"), timeout=3600)
    assert status == 0, text
    ran.reports = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return ran


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_all(tmp_path_factory.mktemp("fast"), FAST)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_all(tmp_path_factory.mktemp("slow"), SLOW)


def check(name: str, case: Case, ran: Ran) -> None:
    report = ran.reports[name]
    *disturbed, last = report["statuses"]
    said = "\n".join(report["said"])
    if "moment" not in name and "stopped, killed" not in name:  # a moment may be after the end
        assert set(disturbed) == {case.status}, said
    assert last == 0, said
    if case.left is not None:
        assert report["complete"][-1] == [f"checkpoint-{step}" for step in case.left], said
    for text in report["said"][: -1 if case.status > 0 else 0]:
        (line,) = (line for line in text.splitlines() if line.startswith("dudi: ") and "stopping after" not in line)
        assert "--resume" in line and "Traceback" not in text
    for file, _ in case.damage:
        folder, text = Path(file).parent.name, re.sub(r"\s", "", report["said"][-1])  # lines are wrapped anywhere
        if folder == "cache":
            assert file not in report["files"] or "damagedorofothermodels" in text, "one that is gone is no damage"
            continue
        assert f"{folder}isdamaged({Path(file).name}" in text or f"{folder}:{Path(file).name}" in text
    left = ran.output(name)
    runs.assert_same_end(ran.output(f"straight {case.of}"), left)
    assert not list(left.rglob("staging")), "nothing half-written is left in a stage"
    assert not list(left.rglob("cache")), "a training that has its result needs none"
    for stage in runs.stages(left):
        for whole in (*stage.glob("checkpoint-*"), *stage.glob("model")):
            assert checkpoints.damage(whole) is None
    kept = {f: when for f, when in report["files"].items() if Path(f).match("batch-*.jsonl")}
    assert all((left / f).stat().st_mtime_ns == when for f, (_, when) in kept.items()), "sampled once is enough"


@pytest.mark.parametrize("name", FAST)
def test_same_end(name: str, fast: Ran) -> None:
    check(name, FAST[name], fast)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_same_end_everywhere(name: str, slow: Ran) -> None:
    check(name, SLOW[name], slow)


@pytest.mark.slow
def test_the_runs_are_worth_comparing(fast: Ran, slow: Ran) -> None:
    """Two lines of metrics and two evaluations, several batches of responses; a killed run is half done."""
    straight = fast.output("straight dudi")
    lines = [json.loads(line) for line in (straight / "1-dudi" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "eval" in line) for line in lines] == [(3, False), (3, True), (6, False), (6, True)]
    assert len(list(slow.output("straight seqkd").rglob("batch-*.jsonl"))) == 3
    files = slow.reports["inside a batch of responses"]["files"]
    here = "2-seqkd-responses/train/"
    assert f"{here}batch-000000.jsonl" in files and f"{here}batch-000001.jsonl" not in files
    whole = (slow.output("straight sdft") / "1-sdft/checkpoint-4/optimizer.pt").stat().st_size
    assert slow.reports["inside the optimizer's file"]["files"]["1-sdft/staging/checkpoint-4/optimizer.pt"][0] < whole
    assert "summary.json" not in fast.reports["in a step"]["files"]


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(fast: Ran) -> None:
    case = at("dudi", "step", 5, damage=tuple((f"1-dudi/checkpoint-{n}/dudi.json", "truncate") for n in (2, 4)))
    folder = fast.folder / "all-damaged"
    folder.mkdir()
    ran = run_all(folder, {"all": case})
    report = ran.reports["all"]
    assert report["statuses"] == [KILLED, 2]
    (line,) = (line for line in report["said"][-1].splitlines() if line.startswith("dudi: "))
    assert "no checkpoint is whole (checkpoint-4: dudi.json has" in line and "Traceback" not in report["said"][-1]
    after = {f: f.stat() for f in ran.output("all").rglob("*") if f.is_file()}
    for name, (size, when) in report["files"].items():
        if name not in ("environment.json", ".lock"):
            there = after[ran.output("all") / name]
            assert (there.st_size, there.st_mtime_ns) == (size, when), name
