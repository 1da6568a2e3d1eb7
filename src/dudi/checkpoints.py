"""Checkpoints that are complete or ignored: written aside, flushed, then renamed into place.

A folder `checkpoint-<step>` holds a `complete.json` with the size of every file, written last. What a crash leaves in
a staging folder, and a checkpoint with a missing or truncated file, is never resumed from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dudi.errors import DudiError

STAGING = "staging"
MANIFEST = "complete.json"
PREFIX = "checkpoint-"


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Weights or a checkpoint that cannot be written, as one line; each writer has its own word for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DudiError(
            f"{what}: cannot be written ({(str(error).splitlines() or [type(error).__name__])[0]}): earlier checkpoints"
            " are whole; free disk space and start again with --resume"
        ) from error


def publish(staged: Path, final: Path) -> None:
    """Make a finished folder appear under its final name at once, or not at all."""
    sizes = {f.relative_to(staged).as_posix(): f.stat().st_size for f in sorted(staged.rglob("*")) if f.is_file()}
    (staged / MANIFEST).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    for path in [*staged.rglob("*"), staged]:
        _fsync(path)
    if final.exists():  # an incomplete one of the same step
        shutil.rmtree(final)
    os.rename(staged, final)
    _fsync(final.parent)


def is_complete(folder: Path) -> bool:
    """Every file that was written is there, in its full size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest step first (by step, not by modification time)."""
    found = [f for f in folder.glob(f"{PREFIX}*") if f.name.removeprefix(PREFIX).isdigit() and is_complete(f)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of `checkpoint-<step>`."""
    return int(checkpoint.name.removeprefix(PREFIX))


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and whatever is incomplete."""
    kept = set(complete(folder)[-keep:])
    if not kept:
        return
    for checkpoint in folder.glob(f"{PREFIX}*"):
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def write_text(path: Path, text: str) -> None:
    """A small file that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        _fsync(aside)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
