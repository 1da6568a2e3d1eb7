"""The folder of a run: who may use it, and what it says of the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from dudi.data.load import write_rows
from dudi.errors import DudiError
from dudi.files import nearest, write_bytes, write_text
from dudi.lock import LOCK
from dudi.recipe.read import dump_recipe, load_recipe
from dudi.recipe.schema import Recipe
from dudi.run.identity import Identity, check_unchanged, identities
from dudi.run.paths import quantised
from dudi.run.prepare import Prepared
from dudi.training.faults import Preempted

PLAN = "plan.json"
"""What `dudi plan --json` said of the run, where that was written to its folder."""


def check_folder(folder: Path) -> None:
    """A new run needs a folder of its own, that can be written. Its plan may be there."""
    try:
        # what a kill left before the recipe was there is nobody's: `.recipe.toml.tmp`, the lock
        mine = folder.is_dir() and all(f.suffix == ".tmp" or f.name in (LOCK, PLAN) for f in folder.iterdir())
        occupied = folder.exists() and not mine
        there = nearest(folder)
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


def begin(folder: Path, prepared: Prepared, state: PartialState, resume: bool) -> None:
    """Write what a run is made of, where it is not there yet. The folder is locked.

    Raises `DudiError` where another run was faster, or a model has changed since the run began.
    """
    if not resume:
        check_folder(folder)
    models = identities(prepared.recipe)
    if resume:
        check_models(folder, models)
    if not (folder / "data").is_dir():
        write_text(folder / "recipe.toml", dump_recipe(prepared.given))
        write_text(folder / "lengths.json", json.dumps(prepared.lengths(), indent=1))
        write_rows(prepared.data, folder / "data")
        prepared.keep_tokens(folder / "data")
    elif load_recipe(folder / "recipe.toml") != prepared.given:
        write_text(folder / "recipe.toml", dump_recipe(prepared.given))  # with what may change on resume
    write_text(folder / "environment.json", json.dumps(environment(state, models, prepared.recipe), indent=1))


def check_models(folder: Path, models: Mapping[str, Identity]) -> None:
    """Raises `DudiError` where a model has changed since the run in this folder began."""
    try:
        then = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["models"]
    except (FileNotFoundError, KeyError):  # killed before it was written
        return
    except (OSError, ValueError, TypeError) as error:
        raise DudiError(f"{folder / 'environment.json'}: cannot be read ({error}); restore it, or remove it") from None
    check_unchanged(models, then, folder)


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
            plan = (folder / PLAN).read_bytes() if (folder / PLAN).is_file() else None
            shutil.rmtree(folder, ignore_errors=True)
            if there:
                folder.mkdir(exist_ok=True)
            if plan is not None:
                write_bytes(folder / PLAN, plan)
        if isinstance(error, DudiError):
            raise
        then = "what is complete is kept: continue with --resume" if begun else "nothing was left there"
        raise DudiError(f"{error.filename or folder}: {error.strerror or error}; {then}") from error


def environment(state: PartialState, models: Mapping[str, Identity], recipe: Recipe) -> dict[str, Any]:
    """Versions, devices and models: what else could change a number."""
    packages = ["dudi", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy"]
    packages += ["peft"] if recipe.adapter is not None else []
    packages += ["bitsandbytes"] if quantised(recipe) else []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "device": gpu or "cpu",
        "processes": state.num_processes,
        "threads": torch.get_num_threads(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "models": dict(models),
    }
