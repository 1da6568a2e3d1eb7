"""JSON: one value a line, or one array of all rows (or values over several lines, one after the other), by look."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from dudi.data.containers.container import Container, Header, Row, opened
from dudi.data.conversation import RowError
from dudi.errors import DudiError

if TYPE_CHECKING:
    from dudi.data.source import Source

MAX_LINE = 8 << 20
"""Bytes of one JSONL line; a longer one is a broken row and is never held. Characters of one item of an array."""
_PEEK = 1 << 16
_CHUNK = 1 << 20
_SPACE = " \t\r\n"


def _rows(source: Source, path: str, header: Header) -> Iterator[Row]:
    with opened(source, path) as file:
        try:
            start = file.read(_PEEK)
        except OSError as error:
            raise DudiError(f"{source.where(path)}: cannot be read ({error.strerror or error})") from None
        joined = _Joined(start, file)
        if _is_one_text(start):
            yield from _items(joined, source.where(path))
        else:
            yield from _lines(joined, source.where(path))


LINES = Container((".jsonl", ".ndjson"), _rows)
JSON = Container((".json",), _rows, common=False)


def _is_one_text(start: bytes) -> bool:
    """Whether a file that starts so is one JSON text, or several spread over lines: not one text a line."""
    lines = [line for line in start.removeprefix(codecs.BOM_UTF8).split(b"\n", 3) if line.strip()]
    first, *more = [line.strip() for line in lines] or [b""]
    if first == b"{":
        return bool(more) and more[0].startswith((b'"', b"}"))
    if not first.startswith(b"["):
        return False
    if first == b"[":
        return True
    # Where its first line is a whole array and more follows, it has an array on each line.
    return not (more and isinstance(_json(first, _Decoder()), list))


class _Joined:
    """What was read of a file to look at, and then the rest of it."""

    def __init__(self, start: bytes, file: BinaryIO) -> None:
        self._start, self._file = start, file

    def readline(self, size: int) -> bytes:
        end = self._start.find(b"\n") + 1 or len(self._start)
        head, self._start = self._start[: min(end, size)], self._start[min(end, size) :]
        if head.endswith(b"\n") or len(head) == size:
            return head
        return head + self._file.readline(size - len(head))

    def read(self, size: int) -> bytes:
        head, self._start = self._start, b""
        return head or self._file.read(size)


def _lines(file: _Joined, where: str) -> Iterator[Row]:
    """Blank lines are skipped."""
    number, decode = 0, _Decoder()
    while True:
        try:
            line = file.readline(MAX_LINE + 1)
        except OSError as error:
            raise DudiError(f"{where}: cannot be read ({error.strerror or error})") from None
        if not line:
            return
        number += 1
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            fault = RowError("too long", "line", f"more than {MAX_LINE:,} bytes", f"at most {MAX_LINE:,}")
            yield "line", number, fault
        elif line.strip():
            yield "line", number, _json(line, decode)


class _Decoder:
    """JSON, in which NaN, as pandas writes where a value is missing, is none; and no object may have a key twice, since
    one of the values would be dropped."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=lambda name: None)
        self._twice: list[str] = []

    def __call__(self, text: str, place: int = 0) -> tuple[Any, int]:
        """The value that begins at a place, or the `RowError` that it is, and where it ends. Raises as `json` does."""
        self._twice.clear()
        value, end = self._decoder.raw_decode(text, place)
        if self._twice:
            return RowError("a key twice", self._twice[0], value, "an object whose keys are different"), end
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self._twice.append(next(key for key in keys if keys.count(key) > 1))
        return found


def _json(line: bytes, decode: _Decoder) -> Any:
    try:
        text = line.decode("utf-8-sig").strip(_SPACE)
        value, end = decode(text)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value
    except UnicodeDecodeError as error:
        return RowError("not UTF-8", "line", f"byte {line[error.start]:#04x} at {error.start}", "UTF-8 text")
    except json.JSONDecodeError as error:
        return RowError("not JSON", "line", error.doc.strip(), f"a JSON object ({error.msg} at {error.pos})")
    except (ValueError, RecursionError, MemoryError):  # numbers of thousands of digits, brackets nested thousands deep
        return RowError("not JSON", "line", line.decode("utf-8-sig", "replace").strip(), "a JSON object")


def _items(file: _Joined, where: str) -> Iterator[Row]:
    """The items of an array, or values one after the other, decoded as they come: the whole is never held.

    After a fault nothing more can be told apart, so it ends the file, as `DudiError`.
    """
    text = _Text(file, where)
    array = text.peek() == "["
    if array:
        text.skip()
    number = 0
    while True:
        after = text.peek()
        if array and after == "]":
            text.skip()
            if text.peek():
                text.fail(number, "more after the end of the array")
            return
        if not after:
            if array:
                text.fail(number, "the array is not closed: the file may be cut off")
            return
        if array and number:
            if after != ",":
                text.fail(number, "no comma after it")
            text.skip()
            if text.peek() == "]":
                text.fail(number, "a comma after it, and no further item")
        number += 1
        yield "item", number, text.value(number)


class _Text:
    """A growing piece of a JSON file, consumed from the left."""

    def __init__(self, file: _Joined, where: str) -> None:
        self._file, self._where = file, where
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._place, self._ended = "", 0, False
        self._value = _Decoder()

    def peek(self) -> str:
        """The next character that is not space, not consumed; empty at the end of the file."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _SPACE:
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Consume one character."""
        self._place += 1

    def value(self, number: int) -> Any:
        """Consume one JSON value."""
        while True:
            try:
                value, end = self._value(self._text, self._place)
            except json.JSONDecodeError as error:
                value, end, fault = None, len(self._text), error.msg
            except (ValueError, RecursionError, MemoryError):
                self.fail(number, "not JSON")
            else:
                fault = ""
            # A value that reaches the end of what is held may go on in the next piece.
            if end < len(self._text) or not self._more():
                if fault:
                    self.fail(number, f"not JSON: {fault}")
                self._place = end
                return value
            if len(self._text) - self._place > MAX_LINE:
                self.fail(number, f"not JSON, or longer than {MAX_LINE:,} characters")

    def fail(self, number: int, what: str) -> None:
        """Raises `DudiError`."""
        raise DudiError(f"{self._where}: item {number}: {what}; wanted a JSON array of rows, or one row a line")

    def _more(self) -> bool:
        if self._ended:
            return False
        data = self._file.read(_CHUNK)
        self._ended = not data
        try:
            self._text = self._text[self._place :] + self._decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise DudiError(f"{self._where}: not UTF-8 text ({error.reason})") from None
        self._place = 0
        return True
