"""Rows: training and evaluation rows with their report and manifest; as a folder, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dudi.data.conversation import messages_of, to_example
from dudi.data.report import DataReport
from dudi.errors import DudiError
from dudi.example import Example

FILES = ("train.jsonl", "eval.jsonl", "manifest.json", "report.json")


@dataclass
class Rows:
    """What one recipe trains on and evaluates its loss on, and how it came about."""

    train: list[Example]
    eval: list[Example]
    report: DataReport
    manifest: dict[str, Any] = field(default_factory=dict)


def as_line(example: Example) -> str:
    """A row in the chat format, in one canonical form: the files hold these lines, and the sha256 is of them."""
    row = {"id": example.id, "language": example.l, "messages": messages_of(example)}
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


def sha256_of(examples: Sequence[Example]) -> str:
    """The sha256 of the rows as lines, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(as_line(example).encode())
    return digest.hexdigest()


def write_rows(rows: Rows, folder: str | Path) -> None:
    """Write the rows as chat JSONL with manifest and report, into a folder that is new or empty.

    They are written beside it and renamed, so the folder is complete or not there. Raises `DudiError` when the folder
    is occupied or cannot be written.
    """
    folder = Path(folder)
    refuse_occupied(folder)
    texts = (json.dumps(value, ensure_ascii=False, indent=2) + "\n" for value in (rows.manifest, rows.report.as_json()))
    lines = ([as_line(row) for row in part] for part in (rows.train, rows.eval))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            staged = Path(temporary) / folder.name
            staged.mkdir()
            for name, parts in zip(FILES, (*lines, *([text] for text in texts)), strict=True):
                with (staged / name).open("w", encoding="utf-8", newline="\n") as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
            os.rename(staged, folder)
    except OSError as error:
        raise DudiError(f"{folder}: cannot be written ({error.strerror or error}); nothing was left there") from None


def refuse_occupied(folder: str | Path) -> None:
    """Raises `DudiError` unless the folder is new or empty."""
    folder = Path(folder)
    try:
        occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise DudiError(f"{folder}: cannot be read ({error.strerror})") from None
    if occupied:
        raise DudiError(f"{folder}: already holds something; give a new folder, or remove it first")


def read_rows(folder: str | Path) -> Rows:
    """The rows that `write_rows` wrote. Raises `DudiError` when a file is missing or not what the manifest says."""
    folder = Path(folder)
    texts = {}
    for name in FILES:
        try:
            texts[name] = (folder / name).read_bytes()
        except OSError as error:
            raise DudiError(
                f"{folder / name}: cannot be read ({error.strerror}); a prepared folder holds {', '.join(FILES)}"
            ) from None
    manifest, report = _parsed(folder, "manifest.json", texts), _parsed(folder, "report.json", texts)
    sums = manifest.get("sha256")
    sums = sums if isinstance(sums, dict) else {}
    parts = {}
    for part in ("train", "eval"):
        name = f"{part}.jsonl"
        found, wanted = hashlib.sha256(texts[name]).hexdigest(), sums.get(part)
        if found != wanted:
            raise DudiError(
                f"{folder / name}: changed since it was prepared: sha256 {found}, wanted {wanted} (manifest.json)"
            )
        try:
            parts[part] = [_row(line) for line in texts[name].splitlines()]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DudiError(f"{folder / name}: not rows that `dudi data prepare` wrote") from None
    try:
        return Rows(parts["train"], parts["eval"], DataReport.from_json(report), manifest)
    except (KeyError, TypeError, AttributeError):
        raise DudiError(f"{folder / 'report.json'}: not a report of `dudi data prepare`") from None


def _parsed(folder: Path, name: str, texts: dict[str, bytes]) -> dict[str, Any]:
    try:
        value = json.loads(texts[name])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DudiError(f"{folder / name}: not a JSON object; prepare the data again")
    return value


def _row(line: bytes) -> Example:
    value = json.loads(line)
    return to_example(value["messages"], value["language"], value["id"])
