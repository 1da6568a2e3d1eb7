"""What stops one of two processes stops both: two of `kit.workers.faults FOLDER`.

Each process writes `<case>-<rank>.json`: the class, the status and the text of the error that ended its training.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

import dudi.training.resumable
from dudi.errors import DudiError
from dudi.run.pipeline import resume_stage, run
from dudi.training import stored as generation
from dudi.training.trainer import DistillationTrainer
from kit import runs
from kit.workers.ddp import Case, build, rank

CASE = Case({"name": "sdft", "ema_rate": 0.3}, training={"save_every": 4, "log_every": 3}, forced=False)
EVALUATED = Case({"name": "dudi"}, evals=6, training={"save_every": 4, "log_every": 3, "eval_every": 3})


def ended(folder: Path, case: str, work: Callable[[], Any]) -> None:
    """Do something that ends with an error on both processes, and write down with which."""
    try:
        work()
        found: dict[str, Any] = {}
    except DudiError as error:
        found = {"class": type(error).__name__, "status": error.status, "text": str(error)}
    (folder / f"{case}-{rank()}.json").write_text(json.dumps(found))
    dist.barrier()


def nan(folder: Path) -> None:
    """At step 5 the second process's loss is not a number, in its first micro-batch of two."""
    made = build(folder / "nan", CASE)
    inner = made._micro_batch
    done = []

    def micro_batch(*args: Any) -> Any:
        found = inner(*args)
        if made.state.global_step == 4 and rank() == 1 and not done:
            done.append(True)
            for outcome in found.outcomes.values():
                outcome.value[outcome.mask > 0] = float("nan")
            found = replace(found, loss=found.loss * float("nan"))
        return found

    made._micro_batch = micro_batch  # type: ignore[method-assign]
    ended(folder, "nan", lambda: resume_stage(made))


def told(made: DistillationTrainer, step: int, where: str, number: int) -> None:
    """Only the second process is signalled, in a step or in the evaluation after it."""
    inner, told = made._micro_batch, []

    def micro_batch(*args: Any) -> Any:
        here = made.state.global_step == (step - 1 if where == "step" else step) and not told
        if here and rank() == 1 and (args[0] is made.model) is (where == "evaluation"):
            told.append(True)
            os.kill(os.getpid(), number)
        return inner(*args)

    made._micro_batch = micro_batch  # type: ignore[method-assign]


def signalled(folder: Path, name: str, case: Case, step: int, where: str, number: int) -> None:
    """Stopped within an interval of the metrics, at a step without a checkpoint; resumed; beside a straight run."""
    straight = build(folder / f"{name}-straight", case)
    resume_stage(straight)
    made = build(folder / name, case)
    told(made, step, where, number)
    with made.stop.listening():
        ended(folder, name, lambda: resume_stage(made))
    resumed = build(folder / name, case)
    resume_stage(resumed)
    assert resumed.state.global_step == straight.state.global_step == 6
    assert runs.identical(dict(straight.model.named_parameters()), dict(resumed.model.named_parameters()))


def full(folder: Path) -> None:
    """Only the first process writes the average, and its disk is full."""
    before = dudi.training.resumable.save_file  # type: ignore[attr-defined]

    def save(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dudi.training.resumable.save_file = save  # type: ignore[attr-defined]
    ended(folder, "full", lambda: resume_stage(build(folder / "full", CASE)))
    dudi.training.resumable.save_file = before  # type: ignore[attr-defined]


def generating(folder: Path) -> None:
    """SeqKD's teacher writes; the second process is told to stop after its first batch."""
    recipe = runs.recipe(
        folder,
        {"name": "seqkd"},
        output="generating",
        training={"epochs": 1.0},
        cold_start={"method": {"name": "none"}},
    )
    before, told = generation.write_text, []

    def write(path: Path, text: str) -> None:
        before(path, text)
        if rank() == 1 and not told:
            told.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    generation.write_text = write
    ended(folder, "generating", lambda: run(recipe, say=lambda *_: None))
    left = sorted(f.name for f in (folder / "generating").rglob("batch-*.jsonl"))
    generation.write_text = before
    dist.barrier()
    if rank() == 0:
        (folder / "left.json").write_text(json.dumps(left))
    run(recipe, resume=True, say=lambda *_: None)


def main(folder: Path) -> None:
    nan(folder)
    signalled(folder, "step", CASE, 5, "step", signal.SIGTERM)
    signalled(folder, "evaluation", EVALUATED, 3, "evaluation", signal.SIGUSR1)
    full(folder)
    generating(folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
