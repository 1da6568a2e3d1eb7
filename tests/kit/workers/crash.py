"""Run recipes by the command line, and kill, signal or fail them at given places: `kit.workers.crash PLAN RESULTS`.

One process forks one for each run. The places are patches put in here; none of them is in the package.

PLAN (JSON): {"straight": {name: recipe}, "cases": {name: {"recipe": file, "output": folder, "of": name, "places":
[place, ...], "damage": [[file, how], ...]}}}. Each straight recipe is run undisturbed. A case is run once for each of
its places, with --resume from the second on; then the damage is done; then it is resumed. RESULTS: a `Report` each.

A place is a list:
    ["step", N]                  in the middle of optimizer step N of the method's stage, after its backward pass
    ["evaluation", N]            after the first batch of the Nth evaluation
    ["write", NAME, WHEN, N]     the Nth write (from 1) of a file whose path ends in NAME, WHEN = before, inside, after
    ["rename", NAME, WHEN]       os.rename or os.replace to a path that ends in NAME, WHEN = before, after
    ["remove", NAME, WHEN]       shutil.rmtree of a path that ends in NAME, WHEN = before, inside, after
    ["stage", NAME]              before a stage
    ["decode", N]                after the Nth batch of responses was sampled, in any stage
    ["moment", SHARE]            after that share of the time that the straight run took
Before it may stand what happens there: ["kill", ...] (the default), ["SIGTERM", ...], ["SIGUSR1", ...], ["twice", ...]
(SIGTERM, and later again), ["full", "write", ...] (the disk is full).
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils

import dudi.training.resumable
from dudi import cli
from dudi.rollouts.local import LocalEngine
from dudi.run.pipeline import Pipeline
from dudi.training import faults as guards
from dudi.training.checkpoints import complete
from dudi.training.trainer import DistillationTrainer

WHAT = ("kill", "SIGTERM", "SIGUSR1", "twice", "full")
Act = Callable[[], None]


@dataclass
class Report:
    """Of a case: exit status (negative: the signal that ended it) and output of each of its runs, the last of them
    undisturbed; complete checkpoints and all files (with sizes and times) that the disturbed ones left."""

    statuses: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    complete: list[list[str]] = field(default_factory=list)
    files: dict[str, list[int]] = field(default_factory=dict)


# ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────────
def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def twice() -> None:
    """As from a scheduler that does not wait: the second one comes after the echo's time."""
    guards.ECHO = 0.0
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


ACTS: dict[str, Act] = {
    "kill": kill,
    "full": full,
    "twice": twice,
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGUSR1": lambda: os.kill(os.getpid(), signal.SIGUSR1),
}


# ── where ────────────────────────────────────────────────────────────────────────────────────────────────────────────
class Writes:
    """Every way in which this package and what it stands on write a file that a run needs."""

    def __init__(self, name: str, when: str, act: Act, number: int = 1) -> None:
        self.name, self.when, self.act, self.left = name, when, act, number
        real = builtins.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax") or not self.here(file):
                return real(file, mode, *args, **kwargs)
            if self.when == "before":
                self.act()
            return _Disturbed(real(file, mode, *args, **kwargs), self)

        builtins.open = io.open = opened  # type: ignore[assignment]
        torch.save = self.to_path(torch.save)
        transformers.modeling_utils.safe_save_file = self.to_path(transformers.modeling_utils.safe_save_file)
        dudi.training.resumable.save_file = self.to_path(dudi.training.resumable.save_file)  # type: ignore[attr-defined]

    def here(self, file: Any) -> bool:
        if not isinstance(file, str | Path) or not str(file).endswith(self.name):
            return False
        self.left -= 1
        return self.left == 0

    def to_path(self, write: Any) -> Any:
        """A function whose second argument is the path; it may be not Python that writes."""

        def writing(what: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.here(file):
                return write(what, file, *args, **kwargs)
            if self.when == "before":
                self.act()
            left, self.left = self.left, -1  # it may open the file in Python after all
            found = write(what, file, *args, **kwargs)
            self.left = left
            if self.when == "inside":
                os.truncate(file, os.stat(file).st_size // 2)
            self.act()
            return found

        return writing


class _Disturbed:
    """A file that is written by halves, or not closed in peace."""

    def __init__(self, file: Any, place: Writes) -> None:
        self.file, self.place = file, place

    def write(self, data: Any) -> Any:
        if self.place.when == "inside":
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            self.place.act()
        return self.file.write(data)

    def __enter__(self) -> _Disturbed:
        return self

    def __exit__(self, *args: Any) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        if self.place.when == "after":
            self.place.act()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def around(owner: Any, attribute: str, here: Callable[..., bool], before: Act | None, after: Act | None) -> None:
    """Patch a function: where `here` says so of its arguments, act before or after it."""
    real = getattr(owner, attribute)

    def patched(*args: Any, **kwargs: Any) -> Any:
        mine = here(*args, **kwargs)
        if mine and before:
            before()
        found = real(*args, **kwargs)
        if mine and after:
            after()
        return found

    setattr(owner, attribute, patched)


def counter(number: int) -> Callable[..., bool]:
    """True at the Nth call."""
    calls = 0

    def here(*args: Any, **kwargs: Any) -> bool:
        nonlocal calls
        calls += 1
        return calls == number

    return here


def arm(place: list[Any]) -> None:
    """Patch this process so that it happens there."""
    act = ACTS[place[0] if place[0] in WHAT else "kill"]
    kind, *rest = place[1:] if place[0] in WHAT else place
    if kind == "step":

        def here(self: DistillationTrainer, model: Any) -> bool:
            return self.state.global_step == rest[0] - 1 and "cold" not in self.job.folder.name

        around(DistillationTrainer, "_clip_grad_norm", here, act, None)
    elif kind == "evaluation":
        arm_evaluation(rest[0], act)
    elif kind == "write":
        Writes(rest[0], rest[1], act, *rest[2:])
    elif kind == "rename":
        for name in ("rename", "replace"):
            acts = (act, None) if rest[1] == "before" else (None, act)
            around(os, name, lambda source, target: str(target).endswith(rest[0]), *acts)
    elif kind == "remove":
        arm_remove(rest[0], rest[1], act)
    elif kind == "stage":
        around(Pipeline, "run", lambda self, stage: stage.name == rest[0], act, None)
    elif kind == "decode":
        around(LocalEngine, "_decode", counter(rest[0]), None, act)
    else:
        raise SystemExit(f"no place {place!r}")


def arm_evaluation(number: int, act: Act) -> None:
    """Within the Nth evaluation, when its first batch is scored."""
    evaluations = 0
    evaluate, micro_batch = DistillationTrainer.evaluate, DistillationTrainer._micro_batch
    waiting = False

    def evaluating(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal evaluations, waiting
        evaluations += 1
        waiting = evaluations == number
        return evaluate(self, *args, **kwargs)

    def scoring(self: Any, *args: Any) -> Any:
        nonlocal waiting
        found = micro_batch(self, *args)
        if waiting:
            waiting = False
            act()
        return found

    DistillationTrainer.evaluate = evaluating  # type: ignore[method-assign]
    DistillationTrainer._micro_batch = scoring  # type: ignore[method-assign]


def arm_remove(name: str, when: str, act: Act) -> None:
    real = shutil.rmtree

    def remove(path: Any, *args: Any, **kwargs: Any) -> None:
        here = str(path).endswith(name)
        if here and when == "before":
            act()
        if here and when == "inside":
            for file in sorted(Path(path).iterdir())[::2]:
                file.unlink()
            act()
        real(path, *args, **kwargs)
        if here:
            act()

    shutil.rmtree = remove  # type: ignore[assignment]


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def run(recipe: str, place: list[Any] | None, resume: bool, log: Path, seconds: float = 0.0) -> tuple[int, str, float]:
    """Run a recipe in a fork: (exit status, what it said, seconds it took)."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1), os.dup2(handle, 2)
        status: Any = 70
        try:
            sys.argv = ["dudi", "run", recipe, "--no-rehearsal", *(["--resume"] if resume else [])]
            if place is not None and place[0] != "moment":
                arm(place)
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    if place is not None and place[0] == "moment":
        time.sleep(place[1] * seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - started


def files_of(folder: Path) -> dict[str, list[int]]:
    """Sizes and times of modification."""
    found = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): [f.stat().st_size, f.stat().st_mtime_ns] for f in found}


def do_damage(folder: Path, file: str, how: str) -> None:
    target = folder / file
    if how == "truncate":
        os.truncate(target, target.stat().st_size - 7)
    elif how == "flip":
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
    else:
        target.unlink()


def disturbed(case: dict[str, Any], log: Path, seconds: float) -> Report:
    report, folder = Report(), Path(case["output"])
    for number, place in enumerate(case["places"]):
        # a kill may come before there is anything to resume, and then a run is started anew
        status, said, _ = run(case["recipe"], place, number > 0 and (folder / "recipe.toml").exists(), log, seconds)
        report.statuses.append(status), report.said.append(said)
        report.complete.append([c.name for stage in sorted(folder.glob("[0-9]*")) for c in complete(stage)])
    for file, how in case["damage"]:
        do_damage(folder, file, how)
    report.files = files_of(folder)
    status, said, _ = run(case["recipe"], None, (folder / "recipe.toml").exists(), log)
    report.statuses.append(status), report.said.append(said)
    return report


def main(plan_file: str, results: str) -> None:
    plan = json.loads(Path(plan_file).read_text(encoding="utf-8"))
    log, took, found = Path(results).with_suffix(".log"), {}, {}
    for name, recipe in plan["straight"].items():
        status, said, took[name] = run(recipe, None, False, log)
        assert status == 0, said
    for name, case in plan["cases"].items():
        found[name] = asdict(disturbed(case, log, took[case["of"]]))
    Path(results).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
