"""Files: written whole or not at all, hashed, and read as TOML or JSON lines. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MAX_TOML = 1 << 20
"""Bytes of one TOML file; a recipe or template has a thousandth of it."""


def nearest(path: Path) -> Path:
    """A path, or the nearest of the folders above it that is there: whose disk what is yet to be made will fill."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def write_text(path: Path, text: str) -> None:
    """A small file that is whole or absent."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """The same, of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.write_bytes(data)
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Have a file or folder written to the disk now: what a checkpoint counts on must survive a power cut too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256_of(folder: Path, files: Iterable[Path]) -> str:
    """One SHA-256 of several files of a folder: of their names in it, and of their contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()


def read_toml(file: Path) -> dict[str, Any]:
    """The table in a file of UTF-8 text. Raises `OSError` or `ValueError`, of which `UnicodeDecodeError` is one."""
    with file.open("rb") as opened:
        data = opened.read(MAX_TOML + 1)  # bounded: it may be a device without an end
    if len(data) > MAX_TOML:
        raise ValueError(f"larger than {MAX_TOML:,} bytes")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """One JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSON-lines file; a line that a crash cut off at the end is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def cut_back(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    kept = [entry for entry in read_lines(path) if entry["step"] <= step]
    if path.exists():
        aside = path.with_name(f".{path.name}.tmp")
        aside.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept), encoding="utf-8")
        aside.replace(path)
