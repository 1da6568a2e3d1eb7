"""Container: how a file of one kind becomes rows. What the rows mean is the business of `dudi.data.formats`."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

import pyarrow as pa

from dudi.errors import DudiError

if TYPE_CHECKING:
    from dudi.data.source import Source

Row = tuple[str, int, Any]
"""What a row is counted in (line, item, row), its number from 1, and its value or the `RowError` that it is."""
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Compression by the last suffix of a file's name, for files read from start to end."""


class Header(Protocol):
    """Chooses from the columns of a table those that are read; raises `DudiError` where none would make a row."""

    def __call__(self, where: str, columns: Sequence[str], texts: Sequence[str] = ()) -> list[str]:
        """texts: those columns that hold plain text, where the file says so."""
        ...


@dataclass(frozen=True)
class Container:
    """A kind of file: the suffixes it is told by, and the reader of its rows in order.

    common: it counts as data in any folder; the others only in a folder that has none of these, since JSON and CSV
    files often lie beside the data and describe it.
    """

    suffixes: tuple[str, ...]
    rows: Callable[[Source, str, Header], Iterator[Row]]
    common: bool = True
    compressed: bool = True
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        ends = ("", *COMPRESSED) if self.compressed else ("",)
        object.__setattr__(self, "names", tuple(suffix + end for suffix in self.suffixes for end in ends))


def refuse_utf16(start: bytes, where: str) -> None:
    """Raises `DudiError` for text that says it is UTF-16, as some systems save what they call Unicode."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DudiError(f"{where}: UTF-16 text, wanted UTF-8: save it as UTF-8")


@contextmanager
def opened(source: Source, path: str) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed as its name says. Damaged files are `DudiError`, whenever that shows."""
    codec = next((codec for suffix, codec in COMPRESSED.items() if path.endswith(suffix)), None)
    with source.open(path) as file:
        if codec is None:
            yield file
            return
        try:
            stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
            yield cast(BinaryIO, io.BufferedReader(stream, 1 << 20))
        except (pa.ArrowException, OSError) as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DudiError(f"{source.where(path)}: not a readable {codec} file ({line[:120]})") from None
