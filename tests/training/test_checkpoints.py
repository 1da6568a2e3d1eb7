"""Checkpoint folders: published whole, rotated by step, the last good one never deleted."""

from __future__ import annotations

import os
from pathlib import Path

from dudi.training import checkpoints


def fake(folder: Path, step: int, whole: bool = True, mtime: float = 1e9) -> Path:
    """A checkpoint folder with one file."""
    staged = folder / f"aside-{step}"
    staged.mkdir(parents=True)
    (staged / "weights").write_bytes(b"0123456789")
    final = folder / f"{checkpoints.PREFIX}{step}"
    checkpoints.publish(staged, final)
    if not whole:
        (final / "weights").write_bytes(b"01234")
    os.utime(final, (mtime, mtime))
    return final


def names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_rotation_goes_by_step(tmp_path: Path) -> None:
    """Modification times in the reverse order, and 10 > 9 as numbers."""
    for k, step in enumerate((8, 9, 10, 100)):
        fake(tmp_path, step, mtime=2e9 - 1000 * k)
    checkpoints.rotate(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]


def test_rotation_never_deletes_the_only_good_one(tmp_path: Path) -> None:
    fake(tmp_path, 2)
    for step in (4, 6, 8):
        fake(tmp_path, step, whole=False)
    checkpoints.rotate(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-2"]


def test_rotation_without_a_good_one_deletes_nothing(tmp_path: Path) -> None:
    for step in (4, 6):
        fake(tmp_path, step, whole=False)
    checkpoints.rotate(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    assert checkpoints.complete(tmp_path) == []


def test_publish_replaces_an_incomplete_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    broken = fake(tmp_path, 4, whole=False)
    (broken / "stray").write_text("x")
    staged = tmp_path / "aside"
    staged.mkdir()
    (staged / "weights").write_bytes(b"new")
    checkpoints.publish(staged, broken)
    assert names(broken) == ["complete.json", "weights"] and checkpoints.is_complete(broken)
    assert not staged.exists()
