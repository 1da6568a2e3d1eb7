"""Run a recipe, and kill this very process (SIGKILL) at a given place: `crash.py RECIPE PLACE [resume]`.

Places: `step:N` in the middle of optimizer step N, after its backward pass; `optimizer:N` within the write of the
checkpoint of step N, with half of the optimizer's file written; `flush:N` after all its files are written, before they
are renamed into place; `renamed:N` right after; `result` before the trained model is renamed into place; `batch:N`
while the file of batch N (from 0) of a generation stage is written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from transformers import Trainer

from dudi import checkpoints
from dudi.config import load_recipe
from dudi.train import run
from dudi.trainer import DistillationTrainer


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def at_step(number: int) -> None:
    before = DistillationTrainer._clip_grad_norm

    def clip(self: DistillationTrainer, model: Any) -> Any:
        if self.state.global_step == number - 1:
            kill()
        return before(self, model)

    DistillationTrainer._clip_grad_norm = clip  # type: ignore[method-assign]


def in_optimizer_file(number: int) -> None:
    before = Trainer._save_optimizer_and_scheduler

    def save(self: Trainer, output_dir: str) -> None:
        before(self, output_dir)
        if self.state.global_step == number:
            file = Path(output_dir) / "optimizer.pt"
            os.truncate(file, file.stat().st_size // 2)
            kill()

    Trainer._save_optimizer_and_scheduler = save  # type: ignore[method-assign]


def around_rename(name: str, after: bool) -> None:
    before = os.rename

    def rename(source: Any, target: Any) -> None:
        if Path(target).name != name:
            return before(source, target)
        assert (Path(source) / checkpoints.MANIFEST).is_file()
        if after:
            before(source, target)
        kill()

    os.rename = rename  # type: ignore[assignment]


def in_batch(number: int) -> None:
    before = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == f"batch-{number:06d}.jsonl":
            os.truncate(source, Path(source).stat().st_size // 2)
            kill()
        before(source, target)

    os.replace = replace  # type: ignore[assignment]


def main() -> None:
    recipe, (place, _, number) = load_recipe(sys.argv[1]), sys.argv[2].partition(":")
    if place == "step":
        at_step(int(number))
    elif place == "optimizer":
        in_optimizer_file(int(number))
    elif place in ("flush", "renamed"):
        around_rename(f"{checkpoints.PREFIX}{number}", after=place == "renamed")
    elif place == "result":
        around_rename("model", after=False)
    elif place == "batch":
        in_batch(int(number))
    else:
        raise SystemExit(f"no place {place!r}")
    run(recipe, resume="resume" in sys.argv[3:])


if __name__ == "__main__":
    main()
