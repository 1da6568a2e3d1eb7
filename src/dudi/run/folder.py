"""The folder of a run: who may use it, and what it says of the machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Recipe
from dudi.training.faults import Preempted


def check_devices() -> None:
    """Several GPUs in one process would become DataParallel: refused, with the command to use."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        raise DudiError(
            f"{gpus} GPUs are visible, but only one process was started: use all with `dudi run ... --launch ddp` or"
            f" `torchrun --nproc-per-node {gpus} -m dudi run ...`, or choose one GPU with CUDA_VISIBLE_DEVICES=0"
        )


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """A new run needs a folder of its own, that can be written; a resumed one needs the same recipe."""
    if resume:
        _check_same_recipe(folder, recipe)
        return
    try:
        # what a kill left before the recipe was written belongs to no run: `.recipe.toml.tmp`
        occupied = folder.exists() and (not folder.is_dir() or any(f.suffix != ".tmp" for f in folder.iterdir()))
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise DudiError(f"output folder {str(folder)!r} cannot be used ({error.strerror})") from None
    if occupied:
        raise DudiError(
            f"output folder {str(folder)!r} is occupied: continue that run with --resume, or choose another"
            " folder with --output"
        )
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fault = "cannot be written to" if there.is_dir() else "is a file"
        raise DudiError(
            f"output folder {str(folder)!r} cannot be made: {str(there)!r} {fault}; choose another with --output"
        )


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    old = folder / "recipe.toml"
    if not old.is_file():
        raise DudiError(f"nothing to resume in {str(folder)!r}: it holds no recipe.toml; start without --resume")
    ours, theirs = (r.model_dump(mode="json", exclude={"output"}) for r in (recipe, load_recipe(old)))
    ours["cold_start"] = ours.pop("cold_start")  # last: what it inherits is named where it stands
    difference = _difference(ours, theirs)
    if difference:
        key, mine, other = difference
        raise DudiError(
            f"resume with another recipe: {key} is {mine!r:.60}, but the run in {str(folder)!r} was started with"
            f" {other!r:.60}; give the same recipe, or start in another folder"
        )


def _difference(ours: Any, theirs: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key in which two recipes differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = {**ours, **theirs}
        found = (_difference(ours.get(name), theirs.get(name), f"{key}.{name}".lstrip(".")) for name in names)
        return next((one for one in found if one), None)
    return None if ours == theirs else (key, ours, theirs)


@contextmanager
def whole_or_absent(folder: Path, new: bool) -> Iterator[None]:
    """A new run that fails before a stage has written anything leaves nothing; errors of the disk become one line.

    One that was told to stop stays as it is: a scheduler will start it again, to resume.
    """
    there = folder.exists()
    try:
        yield
    except (DudiError, OSError) as error:
        begun = not new or isinstance(error, Preempted) or any(file.is_file() for file in folder.glob("[0-9]*-*/**/*"))
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
            if there:
                folder.mkdir(exist_ok=True)
        if isinstance(error, DudiError):
            raise
        then = "what is complete is kept: continue with --resume" if begun else "nothing was left there"
        raise DudiError(f"{error.filename or folder}: {error.strerror or error}; {then}") from error


def environment(state: PartialState) -> dict[str, Any]:
    """Versions and devices: what else could change a number."""
    packages = ("dudi", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "device": gpu or "cpu",
        "processes": state.num_processes,
        "threads": torch.get_num_threads(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
