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
COMPRESSED = (".gz", ".bz2", ".zst")
"""The last suffix of a compressed file's name, for files read from start to end."""
_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
"""Compression by a file's first bytes: what is downloaded is often unpacked on the way, and keeps its name."""
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet)",
    b"\xfd7zXZ": "an xz file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
}
_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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


def _refuse_others(start: bytes, where: str) -> None:
    """Raises `DudiError` for bytes that begin no UTF-8 text, by what they say they are."""
    if start.startswith(_MARKS) or b"\0" in start[:2]:  # without a mark, every other byte of a first brace is zero
        wide = "UTF-32" if start.startswith(_MARKS[:2]) else "UTF-16"
        raise DudiError(f"{where}: {wide} text, wanted UTF-8: save it as UTF-8")
    if other := next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None):
        raise DudiError(f"{where}: {other}, wanted text: unpack it, or give it the suffix of what it is")


@contextmanager
def opened(source: Source, path: str) -> Iterator[BinaryIO]:
    """A file's text as bytes, decompressed. Damaged files are `DudiError`, whenever that shows."""
    where, codec = source.where(path), None
    with source.open(path) as raw:
        try:
            file = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 16)
            start = file.peek(8)
            if codec := next((codec for magic, codec in _CODECS.items() if start.startswith(magic)), None):
                stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
                file = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)
                start = file.peek(8)
            _refuse_others(start, where)
            yield cast(BinaryIO, file)
        except (pa.ArrowException, OSError) as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            kind = f"not a readable {codec} file" if codec else "cannot be read"
            raise DudiError(f"{where}: {kind} ({line[:120]})") from None
