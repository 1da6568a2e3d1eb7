"""`dudi demo`: cold start, DuDi, SFT continued, the evaluation of all, and the report, as one plan of commands.

Every step is a `dudi` command that anybody could type; this file only says which ones, in which order, and runs two
of them at a time, each on one core. A step that is done is not done again, so a demo that was stopped continues.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dudi.errors import DudiError
from dudi.files import write_text

NAMES = {"base": "base", "sft": "SFT", "sft-continued": "SFT continued", "dudi": "DuDi", "teacher": "teacher"}
"""The models that are compared, in the order of the report, and what it calls them."""


@dataclass(frozen=True)
class Step:
    """One command: its arguments, the file that says it is done, the steps before it, its share of the time."""

    arguments: tuple[str, ...]
    done: Path
    after: tuple[str, ...] = ()
    weight: float = 1.0


def plan(out: Path, seed: int, student: str, overrides: tuple[str, ...], weights: Path | None) -> dict[str, Step]:
    """All steps by name."""
    lab, cold = out / "lab", out / "sft" / "1-sft" / "model"
    models = {
        "base": lab / student,
        "sft": cold,
        "sft-continued": out / "sft-continued" / "1-sft" / "model",
        "dudi": out / "dudi" / "1-dudi" / "model",
        "teacher": lab / "teacher",
    }

    def train(name: str, recipe: str, *values: str) -> tuple[str, ...]:
        given = (
            f"seed={seed}",
            f'data.source="{lab / "data"}"',
            f'models.teacher="{lab / "teacher"}"',
            *values,
            *overrides,
        )
        sets = [part for value in given for part in ("--set", value)]
        again = ("--resume",) if (out / name).exists() else ()
        return ("run", recipe, *sets, "--output", str(out / name), *again)

    def evaluate(name: str) -> Step:
        after = (name,) if name in ("sft", "sft-continued", "dudi") else ("lab",)
        folder = out / "eval" / name
        arguments = ("eval", str(models[name]), "--benchmark", str(lab / "benchmark"), "--output", str(folder))
        return Step(arguments, folder / "table.json", after, 1.0)

    base, start = f'models.student="{lab / student}"', f'models.student="{cold}"'
    checkpoint = f'cold_start.checkpoint="{cold}"'
    given = () if weights is None else ("--weights", str(weights))
    steps = {
        "lab": Step(("lab", "export", str(lab), *given), lab / "lab.json", weight=0.3),
        "sft": Step(train("sft", "lab/sft", base), out / "sft" / "summary.json", ("lab",), 2.0),
        "eval-base": evaluate("base"),
        "eval-teacher": evaluate("teacher"),
        "dudi": Step(train("dudi", "lab/dudi", base, checkpoint), out / "dudi" / "summary.json", ("sft",), 10.0),
        "eval-sft": evaluate("sft"),
        "sft-continued": Step(
            train("sft-continued", "lab/sft-continued", start), out / "sft-continued" / "summary.json", ("sft",), 3.0
        ),
        "eval-sft-continued": evaluate("sft-continued"),
        "eval-dudi": evaluate("dudi"),
    }
    evals = [part for name in NAMES for part in ("--eval", f"{NAMES[name]}={out / 'eval' / name}")]
    runs = [str(out / name) for name in ("sft", "sft-continued", "dudi")]
    arguments = ("report", *runs, *evals, "--baseline", NAMES["sft"], "--output", str(out / "report"))
    steps["report"] = Step(arguments, out / "report" / "report.html", tuple(steps), 0.3)
    return steps


def demo(
    out: Path,
    seed: int,
    student: str = "student-small",
    overrides: tuple[str, ...] = (),
    weights: Path | None = None,
    console: Console | None = None,
    jobs: int = 2,
) -> Path:
    """Run the plan; returns the report's page."""
    console = console or Console()
    settings = {"seed": seed, "student": student, "set": list(overrides), "weights": weights and str(weights)}
    begun = out / "demo.json"
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != settings:
        raise DudiError(f"{out}: holds a demo with another seed, student, weights or --set; use a new folder")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    write_text(begun, json.dumps(settings))
    steps = plan(out, seed, student, overrides, weights)
    Runner(steps, out / "logs", console, jobs).run()
    return steps["report"].done


class Runner:
    """Runs steps as soon as what they need is done, `jobs` at a time, and shows what runs and the time left."""

    def __init__(self, steps: Mapping[str, Step], logs: Path, console: Console, jobs: int) -> None:
        self.steps, self.logs, self.console, self.jobs = steps, logs, console, jobs
        self.done = {name for name, step in steps.items() if step.done.exists()}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.began: dict[str, float] = {}

    def run(self) -> None:
        """All steps; `DudiError` with the end of its log for the first one that fails."""
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("", total=self._total())
            began = time.monotonic()
            already = self._weight()
            try:
                while len(self.done) < len(self.steps):
                    self._start()
                    self._collect()
                    bar.update(task, completed=self._weight(), description=self._what(began, already))
                    time.sleep(0.2)
            finally:
                for process in self.running.values():
                    process.terminate()
                for process in self.running.values():
                    process.wait()

    def _what(self, began: float, already: float) -> str:
        """What runs, and about how long all of it will still take, once a step has shown how fast this machine is."""
        running, gone = ", ".join(self.running), self._weight() - already
        if gone < 1:
            return running
        left = (time.monotonic() - began) / gone * (self._total() - already - gone)
        return f"{running}; about {max(left / 60, 0.5):.0f} min left"

    def _total(self) -> float:
        return sum(step.weight for step in self.steps.values())

    def _weight(self) -> float:
        return sum(self.steps[name].weight for name in self.done)

    def _start(self) -> None:
        for name, step in self.steps.items():
            if len(self.running) == self.jobs:
                return
            if name not in self.done and name not in self.running and set(step.after) <= self.done:
                if not self.console.is_terminal:
                    self.console.print(f"  {name}: dudi {' '.join(step.arguments[:2])} ...", soft_wrap=True)
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
                command = [sys.executable, "-m", "dudi", *step.arguments]
                with (self.logs / f"{name}.log").open("ab") as log:
                    self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                self.began[name] = time.monotonic()

    def _collect(self) -> None:
        for name, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            if process.returncode or not self.steps[name].done.exists():
                log = self.logs / f"{name}.log"
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise DudiError(f"demo: step {name!r} failed ({log}): {lines[-1] if lines else 'no output'}")
            self.done.add(name)
            self.console.print(f"  {name}: done in {time.monotonic() - self.began[name]:.0f} s")
