"""CSV and TSV: a header, then one row a line; a cell in quotes may hold line breaks. Rows are named by the line that
they begin on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dudi.data.containers.container import Container, Header, Row, opened
from dudi.data.conversation import MAX_CHARS, RowError
from dudi.errors import DudiError

if TYPE_CHECKING:
    from dudi.data.source import Source


def _rows(source: Source, path: str, header: Header) -> Iterator[Row]:
    where = source.where(path)
    csv.field_size_limit(8 * MAX_CHARS)
    with opened(source, path) as file:
        # Bytes that are no UTF-8 become lone surrogates, so that their row can be named.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            first = text.readline()
            if not first.strip():
                return
            delimiter = max(",;\t", key=first.count)  # spreadsheets write ; where the comma is the decimal point
            names = next(csv.reader([first], delimiter=delimiter))
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise DudiError(f"{where}: line 1: two columns are called {twice[0]!r}")
            wanted = set(header(where, names))
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            line = 2
            for cells in reader:
                if cells:
                    yield "line", line, _row(names, cells, wanted)
                line = reader.line_num + 2
        except csv.Error as error:
            raise DudiError(f"{where}: line {reader.line_num + 1}: not CSV ({error})") from None
        except OSError as error:
            raise DudiError(f"{where}: cannot be read ({error.strerror or error})") from None


CSV = Container((".csv", ".tsv"), _rows, common=False)


def _row(names: list[str], cells: list[str], wanted: set[str]) -> Any:
    if len(cells) != len(names):
        return RowError("another number of cells", "line", f"{len(cells)} cells", f"{len(names)}, as in the header")
    for name, cell in zip(names, cells, strict=True):
        if any("\ud800" <= c <= "\udfff" for c in cell) if not cell.isascii() else False:
            return RowError("not UTF-8", name, cell, "UTF-8 text")
    return {name: cell or None for name, cell in zip(names, cells, strict=True) if name in wanted}
