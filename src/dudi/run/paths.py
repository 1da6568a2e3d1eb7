"""Whether the models that a recipe names, and what they need, are there, as far as can be told without the hub or any
library."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dudi.errors import DudiError
from dudi.methods import Teacher
from dudi.recipe.fields import Quantization
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import plan, teacher_asked

WEIGHTS = (".safetensors", ".bin")


def named(recipe: Recipe) -> dict[str, tuple[str, str | None]]:
    """(path, revision) of every model that a run reads, by the key that names it."""
    models = recipe.models
    found = {"models.student": (models.student, models.student_revision)}
    if models.teacher is not None:
        found["models.teacher"] = (models.teacher, models.teacher_revision)
    if recipe.cold_start.checkpoint is not None and recipe.to_method().cold_start:
        found["cold_start.checkpoint"] = (recipe.cold_start.checkpoint, None)
    return found


def check_adapter(recipe: Recipe) -> None:
    """Raises `DudiError` where an adapter is asked for and peft is not installed; nothing is imported."""
    if recipe.adapter is not None and find_spec("peft") is None:
        raise DudiError("adapter: the package peft is not installed: pip install 'dudi[peft]', or leave [adapter] out")


def quantised(recipe: Recipe) -> dict[str, Quantization]:
    """By the key that asks for it, the bits that models are to be kept in."""
    of_student = None if recipe.adapter is None else recipe.adapter.quantization
    asked = {"models.teacher_quantization": recipe.models.teacher_quantization, "adapter.quantization": of_student}
    return {key: bits for key, bits in asked.items() if bits is not None}


def check_quantization(recipe: Recipe) -> None:
    """Raises `DudiError` where weights are to be quantised and bitsandbytes is not installed; nothing is imported."""
    for key in quantised(recipe):
        if find_spec("bitsandbytes") is None:
            raise DudiError(
                f"{key}: the package bitsandbytes is not installed: pip install 'dudi[bnb]', or leave it out"
            )


def on_the_hub(recipe: Recipe) -> list[str]:
    """The models that are no folders, and may be on the hub: not looked up.

    Raises `DudiError` for a path to nothing, and for a folder that is no model's.
    """
    return [path for key, (path, _) in named(recipe).items() if not _local(key, path)]


def _local(key: str, path: str) -> bool:
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DudiError(f"{key}: {path!r} is no model's folder: it holds no config.json")
        if not any(file.suffix in WEIGHTS for file in folder.iterdir()):
            raise DudiError(f"{key}: {path!r} holds no weights (.safetensors)")
        return True
    if folder.exists():
        raise DudiError(f"{key}: {path!r} is a file; give the model's folder")
    a_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    if a_path or ("/" in path and folder.parent.is_dir()):  # beside folders that are there: no name of the hub's
        beside = sorted(f.name for f in folder.parent.iterdir() if f.is_dir()) if folder.parent.is_dir() else []
        there = f"; beside it are {', '.join(beside[:5])}" if beside else ""
        raise DudiError(f"{key}: no folder {path!r}{there}")
    return False


def teacher_of(recipe: Recipe) -> str:
    """Who teaches, in words."""
    given, method = recipe.models.teacher, recipe.to_method()
    if teacher_asked(plan(recipe)):
        return str(given)
    who = "the student's moving average" if method.teacher is Teacher.EMA else "-"
    return f"{who} (chat template of {given})" if given and recipe.chat.template == "teacher" else who
