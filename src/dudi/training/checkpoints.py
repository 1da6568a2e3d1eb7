"""Checkpoints that are complete or ignored: written aside, flushed, then renamed into place.

A folder `checkpoint-<step>` holds a `complete.json` with size and sha256 of every file, written last. What a crash
leaves in a staging folder, and a checkpoint with a missing, truncated or changed file, is never resumed from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dudi.errors import DudiError
from dudi.files import flush, sha256

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
            " are intact; free disk space and continue with --resume"
        ) from error


@contextmanager
def reading(checkpoint: Path, files: str) -> Iterator[None]:
    """Files of a checkpoint that are not what a training saves, though their checksums fit, as one line.

    Not in the libraries' words: torch's advice for a file that it refuses is to load it without the safeguard.
    """
    try:
        yield
    except DudiError:
        raise
    except Exception as error:
        raise DudiError(
            f"{checkpoint}: {files} cannot be resumed from ({type(error).__name__}): not what this training saved;"
            " restore the folder from a copy, or remove it to resume from the checkpoint before"
        ) from error


def publish(staged: Path, final: Path, unlisted: Collection[str] = ()) -> None:
    """Make a finished folder appear under its final name at once, or not at all. unlisted: files in it that may change
    without damage."""
    files = sorted(f for f in staged.rglob("*") if f.is_file() and f.name not in unlisted)
    listed = {f.relative_to(staged).as_posix(): {"size": f.stat().st_size, "sha256": sha256(f)} for f in files}
    (staged / MANIFEST).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for path in [*staged.rglob("*"), staged]:
        flush(path)
    if final.exists():  # a damaged one of the same step
        shutil.rmtree(final)
    os.rename(staged, final)
    flush(final.parent)


def damage(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a published folder, in words; None if it is whole. Without `contents`, sizes only."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"no readable {MANIFEST}"
    if not isinstance(listed, dict) or not listed:
        return f"{MANIFEST} lists no files"
    for name, wanted in listed.items():
        entry = _entry(name, wanted)
        if entry is None:
            return f"{MANIFEST} has no size and sha256 for {name[:80]!r}"
        size, wanted_sum = entry
        file = folder / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if contents and sha256(file) != wanted_sum:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _entry(name: str, wanted: Any) -> tuple[int, str] | None:
    """Size and sum that the list has for a file; None where they are none."""
    size, wanted_sum = (wanted.get("size"), wanted.get("sha256")) if isinstance(wanted, dict) else (None, None)
    plain = name.isprintable() and len(name) < 256 and not Path(name).is_absolute() and ".." not in Path(name).parts
    return (size, wanted_sum) if plain and type(size) is int and isinstance(wanted_sum, str) else None  # True is an int


def is_complete(folder: Path) -> bool:
    """Every file that was written is there, in its full size. Quick; `newest` looks at the contents too."""
    return damage(folder, contents=False) is None


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest step first (by step, not by modification time)."""
    return [checkpoint for checkpoint in _all(folder) if is_complete(checkpoint)]


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest whole checkpoint, read in full; None before the first one was saved.

    A damaged one is skipped, and reported. Raises `DudiError` where all are damaged: whether to start over what may
    still be repaired is for the user to decide.
    """
    found = _all(folder)[::-1]
    for checkpoint in found:
        fault = damage(checkpoint)
        if fault is None:
            return checkpoint
        say(f"  {checkpoint.name} is damaged ({fault}): skipped")
    if found:
        raise DudiError(
            f"{folder}: no checkpoint is whole ({found[0].name}: {damage(found[0])}): restore one from a copy, or"
            f" remove {', '.join(c.name for c in found)} to train this stage from its start"
        )
    return None


def _all(folder: Path) -> list[Path]:
    return sorted((f for f in folder.glob(f"{PREFIX}*") if f.name.removeprefix(PREFIX).isdigit()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of `checkpoint-<step>`."""
    return int(checkpoint.name.removeprefix(PREFIX))


def rotate(folder: Path, keep: int, newest: Path | None = None) -> None:
    """Delete all but the newest `keep` complete checkpoints, and whatever is incomplete.

    newest: the one just written. Later ones were found damaged when this run was resumed before them, though their
    sizes may be right: they go, and never in place of a good one.
    """
    found = [c for c in complete(folder) if newest is None or step_of(c) <= step_of(newest)]
    kept = set(found[-keep:])
    if not kept:
        return
    for checkpoint in _all(folder):
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def remove_all(folder: Path) -> None:
    """The checkpoints of a training that has its result, when nothing goes on from them any more."""
    if (folder / "model").is_dir():
        for checkpoint in _all(folder):
            shutil.rmtree(checkpoint)
