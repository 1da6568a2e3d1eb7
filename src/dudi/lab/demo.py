"""`dudi demo`: cold start, SFT continued, GKD, DuDi, the evaluation of all, and the report, as one plan of commands.

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

from dudi.errors import DudiError, unknown
from dudi.files import write_text
from dudi.lab.build import THIRD, WEIGHTS, read_manifest

NAMES = {
    "base": "base",
    "sft": "SFT",
    "sft-continued": "SFT continued",
    "gkd": "GKD",
    "dudi": "DuDi",
    "teacher": "teacher",
}
"""The models that are compared, in the order of the report, and what it calls them."""
TRAINED = ("sft", "sft-continued", "gkd", "dudi")
"""Those that are trained here, with the recipes lab/*.toml; all but the first from the first one's result."""
LASTS = {"sft": 2.5, "sft-continued": 2.0, "gkd": 4.0, "dudi": 7.0}
"""About how long, in evaluations."""


@dataclass(frozen=True)
class Step:
    """One command: its arguments, the file that says it is done, the steps before it, its share of the time."""

    arguments: tuple[str, ...]
    done: Path
    after: tuple[str, ...] = ()
    weight: float = 1.0


def plan(
    out: Path, seeds: tuple[int, ...], student: str, overrides: tuple[str, ...], weights: Path | None
) -> dict[str, Step]:
    """All steps by name. Each of several seeds has a pipeline of its own, cold start included, in its own folder."""
    lab = out / "lab"
    given = () if weights is None else ("--weights", str(weights))
    export = ("lab", "export", str(lab), *given, "--share", str(THIRD))
    steps = {"lab": Step(export, lab / "lab.json", weight=0.3)}
    for name, model in (("base", lab / student), ("teacher", lab / "teacher")):
        steps[f"eval-{name}"] = _evaluation(model, lab, out / "eval" / name, "lab")
    for seed in seeds:
        steps |= _pipeline(out, seed, student, overrides, alone=len(seeds) == 1)
    name, step = _report(out) if len(seeds) == 1 else _comparison(out, seeds)
    steps[name] = Step(step.arguments, step.done, tuple(steps), step.weight)
    return steps


def _evaluation(model: Path, lab: Path, folder: Path, after: str) -> Step:
    arguments = ("eval", str(model), "--benchmark", str(lab / "benchmark"), "--output", str(folder))
    return Step(arguments, folder / "table.json", (after,))


def _home(out: Path, seed: int, alone: bool) -> Path:
    return out if alone else out / f"seed-{seed}"


def _pipeline(out: Path, seed: int, student: str, overrides: tuple[str, ...], alone: bool) -> dict[str, Step]:
    """The trainings of one seed and their evaluations."""
    lab, home, suffix = out / "lab", _home(out, seed, alone), "" if alone else f"-{seed}"
    cold = home / "sft" / "1-sft" / "model"
    first = {
        "sft": (f'models.student="{lab / student}"',),
        "sft-continued": (f'models.student="{cold}"',),
    }
    from_cold = (f'models.student="{lab / student}"', f'cold_start.checkpoint="{cold}"')
    steps = {}
    for name in TRAINED:
        given = (
            f"seed={seed}",
            f'data.source="{lab / "data"}"',
            f'models.teacher="{lab / "teacher"}"',
            *first.get(name, from_cold),
            *overrides,
        )
        sets = [part for value in given for part in ("--set", value)]
        folder = home / name
        again = ("--resume",) if folder.exists() else ()
        arguments = ("run", f"lab/{name}", *sets, "--output", str(folder), *again)
        after = "lab" if name == "sft" else f"sft{suffix}"
        steps[f"{name}{suffix}"] = Step(arguments, folder / "summary.json", (after,), LASTS[name])
        stage = "1-sft" if name in first else f"1-{name}"
        model = folder / stage / "model"
        steps[f"eval-{name}{suffix}"] = _evaluation(model, lab, home / "eval" / name, f"{name}{suffix}")
    return steps


def _report(out: Path) -> tuple[str, Step]:
    """One page about a single seed."""
    evals = [part for name in NAMES for part in ("--eval", f"{NAMES[name]}={out / 'eval' / name}")]
    runs = [str(out / name) for name in TRAINED]
    named = ("--baseline", NAMES["sft"], "--subject", NAMES["dudi"])
    arguments = ("report", *runs, *evals, *named, "--output", str(out / "report"))
    return "report", Step(arguments, out / "report" / "report.html", weight=0.3)


def _comparison(out: Path, seeds: tuple[int, ...]) -> tuple[str, Step]:
    """Means, deviations, paired differences of several seeds. What is not trained here has no seeds, and stays out."""
    evals = [f"{NAMES[name]}={_home(out, seed, False) / 'eval' / name}" for name in TRAINED for seed in seeds]
    files = [
        part for ending in ("md", "json", "html") for part in ("--output", str(out / "compare" / f"seeds.{ending}"))
    ]
    arguments = ("compare", *evals, "--baseline", NAMES["sft"], *files)
    return "compare", Step(arguments, out / "compare" / "seeds.html", weight=0.3)


def demo(
    out: Path,
    seeds: tuple[int, ...],
    student: str = "student-small",
    overrides: tuple[str, ...] = (),
    weights: Path | None = None,
    console: Console | None = None,
    jobs: int = 2,
) -> Path:
    """Run the plan; returns the page: a report of one seed, or the comparison of several."""
    console = console or Console()
    settings = {"seeds": list(seeds), "student": student, "set": list(overrides), "weights": weights and str(weights)}
    begun = out / "demo.json"
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != settings:
        raise DudiError(f"{out}: holds a demo with other seeds, another student, weights or --set; use a new folder")
    built = read_manifest(weights or WEIGHTS)["models"]
    if student not in built:
        raise DudiError(unknown(student, built, "student"))
    (out / "logs").mkdir(parents=True, exist_ok=True)
    write_text(begun, json.dumps(settings))
    steps = plan(out, seeds, student, overrides, weights)
    Runner(steps, out / "logs", console, jobs).run()
    return list(steps.values())[-1].done


def in_short(page: Path) -> str:
    """What a terminal shows of the page: of one seed the answer, and models by language; of several all of it."""
    sections = page.with_suffix(".md").read_text(encoding="utf-8").split("\n## ")
    found = {section.partition("\n")[0]: section for section in sections}
    if "In short" not in found:
        return "\n## ".join(sections)
    return found["In short"].split("\n\n")[1] + "\n\n## " + found["Scores"].split("\n### ")[0]


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
        """What is ready, the longest first: all ends with it."""
        for name, step in sorted(self.steps.items(), key=lambda one: -one[1].weight):
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
