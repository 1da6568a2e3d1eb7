"""Source: the files of a data set, in a local folder or on the hub, and Parquet read column by column from either."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dudi.data.containers import container_of, data_files
from dudi.data.hub import Hub, HubFile, HuggingFaceHub, hub_errors
from dudi.data.settings import HUB_NAME, nowhere, path_of
from dudi.errors import DudiError

BATCH_BYTES = 4 << 20
"""Uncompressed bytes of the columns asked for that one record batch holds, by the file's own average."""
MAX_BATCH_ROWS = 65_536
_BUFFER = 1 << 20
_LFS = b"version https://git-lfs.github.com/spec/"
_KINDS = "nor .ndjson, .json, .csv, .tsv or .arrow (docs/data.md)"


@dataclass(frozen=True)
class Source:
    """The data files (paths relative to the source, sorted) of a folder, file or hub data set."""

    name: str
    revision: str | None
    """The commit on the hub; None for local files."""
    paths: tuple[str, ...]
    single: bool
    """Whether the source is one file, named by the user."""
    root: Path | None
    hub: Hub | None
    left_out: tuple[str, ...] = ()
    """Files that could hold rows, and are not read since others are more likely to."""

    def open(self, path: str) -> BinaryIO:
        """One file, for reading; the caller closes it. Raises `DudiError`."""
        if self.root is not None:
            try:
                local = (self.root / path).open("rb")
            except OSError as error:
                raise DudiError(f"{self.where(path)}: cannot be read ({error.strerror})") from None
            if local.peek(len(_LFS)).startswith(_LFS):
                local.close()
                raise DudiError(f"{self.where(path)}: a pointer of Git LFS, not the data: run `git lfs pull` there")
            return local
        assert self.hub is not None and self.revision is not None
        with hub_errors(self.name, self.revision):
            file = self.hub.open(self.name, self.revision, path)
        return cast(BinaryIO, io.BufferedReader(HubFile(file, self.name), 1 << 16))

    def where(self, path: str) -> str:
        """The name of a file in messages."""
        return str(self.root / path) if self.root is not None else f"{self.name}/{path}"

    @contextmanager
    def parquet(self, path: str) -> Iterator[pq.ParquetFile]:
        """One Parquet file. Buffered: a column is decoded page by page, never a row group at once."""
        with self.open(path) as file:
            with self.parquet_errors(path):
                opened = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
            yield opened

    @contextmanager
    def parquet_errors(self, path: str) -> Iterator[None]:
        """A damaged file as `DudiError`."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DudiError(f"{self.where(path)}: not a readable Parquet file ({line[:120]})") from None

    def batches(
        self, path: str, columns: Sequence[str], row_groups: Sequence[int] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The named columns of one Parquet file, bounded pieces at a time, each with the number of its first row."""
        with self.parquet(path) as file:
            row = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                first, row = row, row + metadata.num_rows
                if row_groups is not None and group not in row_groups:
                    continue
                rows = _batch_rows(metadata, columns)
                batches = file.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False)
                while True:
                    with self.parquet_errors(path):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield first, batch
                    first += batch.num_rows


def _batch_rows(group: Any, columns: Sequence[str]) -> int:
    used = [group.column(i) for i in range(group.num_columns)]
    size: int = sum(one.total_uncompressed_size for one in used if one.path_in_schema.split(".")[0] in columns)
    per_row = max(1, size // max(1, int(group.num_rows)))
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // per_row))


def open_source(name: str, revision: str | None, hub: Hub | None = None, key: str = "data.source") -> Source:
    """The source that a recipe names under a key: what lies there locally, else the hub data set of that name.

    Raises `DudiError` when neither exists, when the hub refuses, or when there is no data file in it.
    """
    path = path_of(name)
    if path.exists():
        return _local(name, path, key)
    if not HUB_NAME.fullmatch(name) or container_of(name):
        raise nowhere(name, key)
    hub = hub or HuggingFaceHub()
    with hub_errors(name, revision):
        commit, paths = hub.listing(name, revision)
    found, rest = _data_files(paths, name, key)
    return Source(name, commit, found, False, None, hub, rest)


def _local(name: str, path: Path, key: str) -> Source:
    if path.is_file():
        if container_of(path.name) is None:
            raise DudiError(f"{key}: {name!r} is neither a .jsonl nor a .parquet file, {_KINDS}")
        return Source(name, None, (path.name,), True, path.parent, None)
    if not path.is_dir():
        raise DudiError(f"{key}: {name!r} is neither a file nor a folder")
    try:
        files = _files(path)
    except OSError as error:
        where = error.filename or name
        raise DudiError(f"{key}: folder {str(where)!r} cannot be read ({error.strerror})") from None
    for state in [file for file in files if file.rsplit("/", 1)[-1] == "state.json"]:
        files = _saved(path, state, files)
    found, rest = _data_files(files, name, key)
    return Source(name, None, found, False, path, None, rest)


def _files(root: Path) -> list[str]:
    """All files in a folder, those behind links too. Raises `OSError` for a folder in it that cannot be read, and
    `DudiError` for a link to nothing: what it stood for would be missing from the data."""

    def fail(error: OSError) -> None:
        raise error

    files, seen = [], set()
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(one for one in folders if os.path.realpath(os.path.join(folder, one)) not in seen)
        for file in (Path(folder, name) for name in names):
            if file.is_symlink() and not file.exists() and container_of(file.name) is not None:
                raise DudiError(f"{file}: a link to {os.readlink(file)}, which is not there")
            if file.is_file():
                files.append(file.relative_to(root).as_posix())
    return files


def _saved(root: Path, state: str, files: list[str]) -> list[str]:
    """The files without those beside a `state.json` that it does not list: what `datasets` caches in a folder that
    `save_to_disk` wrote is not a part of the data."""
    folder = state.removesuffix("state.json")
    try:
        value = json.loads((root / state).read_bytes())
        named = {folder + str(file["filename"]) for file in value["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return files  # a state.json of something else
    others = {file for file in files if file.endswith(".arrow") and file.rpartition("/")[0] == folder.rstrip("/")}
    if missing := sorted(named - others):
        raise DudiError(f"data.source: {root / state} lists {missing[0]!r}, which is not there")
    return [file for file in files if file not in others - named]


def _data_files(paths: Sequence[str], name: str, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    visible = [path for path in paths if not any(part.startswith(".") for part in path.split("/"))]
    found, left_out = data_files(visible)
    if not found:
        others = ", ".join(sorted(visible)[:5]) or "nothing"
        raise DudiError(f"{key}: no .parquet or .jsonl file in {name!r}, {_KINDS}; it holds {others}")
    return tuple(found), tuple(left_out)
