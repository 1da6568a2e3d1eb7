"""Chat files: JSONL or Parquet with `messages`, or with `prompt` and `completion`, one conversation a row.

`prompt` and `completion` are each a string (one turn) or a list of messages. `language` is a column, or one language
for all rows (`data.language`). `id` is kept where it is text; other columns are ignored. Every row is validated.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from dudi.data.conversation import RowError, fingerprint, is_zawgyi, parse_conversations, to_example
from dudi.data.report import DataReport
from dudi.data.source import Source
from dudi.draws import draw
from dudi.errors import DudiError
from dudi.example import Example
from dudi.languages import language_code
from dudi.recipe.schema import Data

MAX_LINE = 8 << 20
"""Bytes of one JSONL line; a longer one is a broken row and is never held."""
NO_LANGUAGE = "?"
"""Where rows are counted that broke before their language was known."""
_COLUMNS = ("messages", "prompt", "completion", "language", "id")
_WANTED = "`messages`, or `prompt` and `completion`"


@dataclass(frozen=True)
class ChatRow:
    """A row read: where it is, its language as far as known, and the row or what is broken about it."""

    where: str
    language: str
    result: Example | RowError


def read_chat(source: Source, paths: list[str], data: Data) -> Iterator[ChatRow]:
    """All rows of the languages asked for, in order; a broken row is an item, not an error.

    Raises `DudiError` for files that cannot be read at all.
    """
    for path in paths:
        rows = _jsonl(source, path) if path.endswith(".jsonl") else _parquet(source, path)
        for number, value in rows:
            unit = "line" if path.endswith(".jsonl") else "row"
            yield _row(value, f"{path}:{number}", f"{source.where(path)}: {unit} {number}", data)


def _row(value: Any, id: str, where: str, data: Data) -> ChatRow:
    language = data.language or NO_LANGUAGE
    try:
        if isinstance(value, RowError):
            raise value
        if not isinstance(value, dict):
            raise RowError("not an object", "row", value, f"an object with {_WANTED}")
        language = _language(value, data)
        name = value.get("id")
        id = name if isinstance(name, str) and _printable(name) else id
        messages, field = _messages(value)
        return ChatRow(where, language, to_example(messages, language, id, field))
    except RowError as error:
        return ChatRow(where, language, error)


def _printable(name: str) -> bool:
    return 0 < len(name) <= 200 and name.isprintable()


def _language(row: Mapping[str, Any], data: Data) -> str:
    value = row.get("language")
    if value is None and data.language is not None:
        return data.language
    if not isinstance(value, str):
        wanted = "a language code or name (or one for all rows, in data.language)"
        raise RowError("no language", "language", value, wanted)
    try:
        return language_code(value)
    except DudiError as error:
        raise RowError("unknown language", "language", value, str(error).partition("expected ")[2]) from None


def _messages(row: Mapping[str, Any]) -> tuple[list[Any], str]:
    if row.get("messages") is not None:
        return parse_conversations(row["messages"], "messages"), "messages"
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None and completion is None:
        raise RowError("no conversation", "row", sorted(map(str, row)), _WANTED)
    turns = [*_turns(prompt, "prompt", "user"), *_turns(completion, "completion", "assistant")]
    return turns, "(prompt + completion)"


def _turns(value: Any, field: str, role: str) -> list[Any]:
    if isinstance(value, str):
        if not value.strip():
            raise RowError("empty content", field, value, "text that is not blank")
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise RowError("no conversation", field, value, "text, or a list of messages")
    last = value[-1]
    if isinstance(last, dict) and isinstance(last.get("role"), str) and last["role"] != role:
        raise RowError("turns out of order", f"{field}[{len(value) - 1}].role", last["role"], role)
    return value


def _jsonl(source: Source, path: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, parsed value or RowError); blank lines are skipped."""
    with source.open(path) as file:
        number = 0
        while True:
            try:
                line = file.readline(MAX_LINE + 1)
            except OSError as error:
                raise DudiError(f"{source.where(path)}: cannot be read ({error.strerror})") from None
            if not line:
                return
            number += 1
            if len(line) > MAX_LINE:
                _skip_line(file, line)
                yield number, RowError("too long", "line", f"more than {MAX_LINE:,} bytes", f"at most {MAX_LINE:,}")
            elif line.strip():
                yield number, _json(line)


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RowError("not UTF-8", "line", f"byte {line[error.start]:#04x} at {error.start}", "UTF-8 text")
    except json.JSONDecodeError as error:
        return RowError("not JSON", "line", error.doc.strip(), f"a JSON object ({error.msg} at {error.pos})")
    except (ValueError, RecursionError, MemoryError):  # numbers of thousands of digits, brackets nested thousands deep
        return RowError("not JSON", "line", line.decode("utf-8-sig", "replace").strip(), "a JSON object")


def _parquet(source: Source, path: str) -> Iterator[tuple[int, Any]]:
    with source.parquet(path) as file:
        there = file.schema_arrow.names
    columns = [name for name in _COLUMNS if name in there]
    if "messages" not in columns and not {"prompt", "completion"} <= set(columns):
        hint = "; for SEA-Instruct's columns use data.format = 'sea_instruct'" if "conversations" in there else ""
        raise DudiError(f"{source.where(path)}: wanted the columns {_WANTED}; found {', '.join(there)}{hint}")
    for first, batch in source.batches(path, columns):
        for i, value in enumerate(_values(batch)):
            yield first + i + 1, value


def _values(batch: Any) -> list[Any]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:  # Parquet does not promise valid UTF-8: find the row
        if batch.num_rows == 1:
            return [RowError("not UTF-8", "row", "other bytes", "UTF-8 text")]
        half = batch.num_rows // 2
        return [*_values(batch.slice(0, half)), *_values(batch.slice(half))]


class Pool:
    """The rows of one language: all of them, or a seeded uniform sample that is kept as the rows stream by.

    A row's place in the draw is a pure function of (seed, language, position in the data), so batches do not matter.
    The evaluation rows have a draw of their own and do not change with the number of training rows.
    """

    def __init__(self, language: str, seed: int, rows: int | None, held_out: int) -> None:
        self._key, self._rows, self._held_out = (seed, language), rows, held_out
        self._eval = _Smallest(held_out)
        # The evaluation rows are among these too, and are taken out at the end.
        self._train = _Smallest(None if rows is None else rows + held_out)

    def add(self, position: int, example: Example) -> None:
        """Offer one valid row."""
        self._eval.add(draw("eval", *self._key, position), position, example)
        self._train.add(draw("train", *self._key, position), position, example)

    def result(self) -> tuple[list[Example], list[Example]]:
        """(train, eval), each in the order of the data."""
        held_out = self._eval.items()
        out = {position for _, position, _ in held_out}
        train = [item for item in self._train.items() if item[1] not in out][: self._rows]
        return _in_order(train), _in_order(held_out)


_Item = tuple[int, int, Example]


def _in_order(items: list[_Item]) -> list[Example]:
    return [example for _, _, example in sorted(items, key=lambda item: item[1])]


class _Smallest:
    """The `size` items with the smallest numbers; all of them without a size."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._heap: list[_Item] = []  # numbers negated: the largest on top

    def add(self, number: int, position: int, example: Example) -> None:
        item = (-number, position, example)
        if self._size is None:
            self._heap.append(item)
        elif len(self._heap) < self._size:
            heapq.heappush(self._heap, item)
        elif self._size and item[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, item)

    def items(self) -> list[_Item]:
        """Smallest number first."""
        return sorted(((-number, position, example) for number, position, example in self._heap), key=lambda i: i[:2])


@dataclass
class ChatScan:
    """One reading of all rows: counts, duplicates by content over all languages, and pools where rows are wanted."""

    data: Data
    report: DataReport
    look: Callable[[Example], None] | None = None
    """Is shown every row that is kept."""
    pools: dict[str, Pool] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    """Languages met that the recipe does not ask for."""

    def run(self, rows: Iterator[ChatRow], strict: bool, seed: int | None) -> None:
        """Count every row, and offer the good ones to their pool where a seed is given.

        Raises `DudiError` for the first broken row if `strict`.
        """
        seen: set[int] = set()
        for position, row in enumerate(rows):
            known = row.language != NO_LANGUAGE
            if known and self.data.languages and row.language not in self.data.languages:
                self.others.add(row.language)
                continue
            if isinstance(row.result, RowError):
                line = f"{row.where}: {row.result}"
                if strict:
                    raise DudiError(line)
                self.report.of(row.language).add_broken(row.result.reason, line)
            self._count(row, seen, position, seed)

    def _count(self, row: ChatRow, seen: set[int], position: int, seed: int | None) -> None:
        counts = self.report.of(row.language)
        counts.read += 1
        if isinstance(row.result, RowError):
            return
        key = fingerprint(row.result)
        if key in seen:
            counts.duplicated += 1
            return
        seen.add(key)
        if is_zawgyi(row.result):
            counts.zawgyi += 1
            return
        counts.kept += 1
        if self.look is not None:
            self.look(row.result)
        if seed is not None:
            data = self.data
            if row.language not in self.pools:
                self.pools[row.language] = Pool(row.language, seed, data.rows_per_language, data.eval_rows_per_language)
            self.pools[row.language].add(position, row.result)
