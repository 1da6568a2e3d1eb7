"""Made data for the tests of `dudi.data`: rows in SEA-Instruct's columns, chat rows, a fake hub."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

DOMAINS, TASKS, COMPLEXITIES = ("Food", "Law", "Sports"), ("QA", "Translation"), ("Simple", "Complex")


def made_row(number: int, rng: random.Random, language: str = "Indonesian", **changes: Any) -> dict[str, Any]:
    """A row that passes the quality filter, unless `changes` say otherwise."""
    messages = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]
    row = {
        "conversations_id": f"id-{number}",
        "conversations": repr(messages) if number % 5 else json.dumps(messages),
        "prompt_primary_language": language,
        "prompt_primary_domain": rng.choices(DOMAINS, (6, 3, 1))[0],
        "prompt_primary_task": rng.choices(TASKS, (4, 1))[0],
        "prompt_complexity": rng.choices(COMPLEXITIES, (3, 1))[0],
        "prompt_input_quality": "Excellent",
        "prompt_is_coherent": True,
        "prompt_is_natural": True,
        "prompt_sensitivity": "None",
    }
    return {**row, **changes}


def made_rows(count: int, language: str = "Indonesian", seed: int = 0) -> list[dict[str, Any]]:
    """Rows over all strata."""
    rng = random.Random(seed)
    return [made_row(number, rng, language) for number in range(count)]


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], row_group: int = 100) -> None:
    """Rows as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=row_group)


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    """Rows as JSONL; a string is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def turns(question: str, answer: str) -> list[dict[str, str]]:
    """A conversation of one question."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class FolderHub:
    """A hub that serves a folder; `fail` makes it raise, when listing or from a number of bytes read on."""

    def __init__(
        self, folder: Path, listing_error: Exception | None = None, read_error: Exception | None = None
    ) -> None:
        self.folder, self.listing_error, self.read_error = folder, listing_error, read_error
        self.revision: str | None = None
        self.bytes_read = 0

    def listing(self, repo: str, revision: str | None) -> tuple[str, list[str]]:
        """All files of the folder, at commit `c0ffee`."""
        if self.listing_error:
            raise self.listing_error
        self.revision = revision
        return "c0ffee", [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()]

    def open(self, repo: str, revision: str, path: str) -> BinaryIO:
        """A file that counts what is read of it."""
        assert revision == "c0ffee"
        return _Counted((self.folder / path).read_bytes(), self)


class _Counted(io.BytesIO):
    def __init__(self, data: bytes, hub: FolderHub) -> None:
        super().__init__(data)
        self.hub = hub

    def read(self, size: int | None = -1, /) -> bytes:
        if self.hub.read_error:
            raise self.hub.read_error
        data = super().read(size)
        self.hub.bytes_read += len(data)
        return data
