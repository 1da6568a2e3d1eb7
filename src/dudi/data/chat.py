"""Chat data: rows of any container (`dudi.data.containers`) in any format (`dudi.data.formats`), in one reading.

The language of a row is `data.language` where that is given, else its own column's, else the one its file is named
for. `id` is kept where it is text; columns that no format reads are ignored. Every row is validated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dudi.data.containers import container_of
from dudi.data.conversation import RowError, fingerprint, is_zawgyi, refuse_row, to_example
from dudi.data.files_by_language import language_hint
from dudi.data.formats import BY_LOOK, Format, formats_of, wanted
from dudi.data.pool import Pool
from dudi.data.report import DataReport
from dudi.data.settings import COMMON, LANGUAGE_COLUMNS
from dudi.data.source import Source
from dudi.errors import DudiError
from dudi.example import Example
from dudi.languages import language_code
from dudi.recipe.schema import Data

NO_LANGUAGE = "?"
"""Where rows are counted that broke before their language was known."""
HELD_OUT = "among the rows of data.eval_source"


@dataclass(frozen=True)
class ChatRow:
    """A row read: where it is, its language as far as known, and the row or what is broken about it.

    format: what it was read as; other: what its column calls its language, where `data.language` overrides that.
    """

    where: str
    language: str
    result: Example | RowError
    format: str | None = None
    other: str | None = None


@dataclass(frozen=True)
class ChatReader:
    """Rows of chat data: how their columns are called, and what they may be read as.

    by_file: the language of a file's rows, where its name says it; own_columns: whether columns that `data.columns`
    names may be missing, since the data is not what it was written for.
    """

    data: Data
    by_file: Mapping[str, str] = field(default_factory=dict)
    own_columns: bool = False
    formats: tuple[Format, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", formats_of(self.data.format))

    def rows(self, source: Source, paths: Sequence[str]) -> Iterator[ChatRow]:
        """All rows, in order; a broken row is an item, not an error. Raises `DudiError` for a file that is broken."""
        for path in paths:
            container = container_of(path)
            assert container is not None, "a source lists no other files"
            where = source.where(path)
            for unit, number, value in container.rows(source, path, self.header):
                yield self._row(value, path, f"{path}:{number}", f"{where}: {unit} {number}")

    def header(self, where: str, columns: Sequence[str], texts: Sequence[str] = ()) -> list[str]:
        """Of a table's columns, those that are read. Raises `DudiError` where no format could read it."""
        renamed = self.data.columns
        missing = [] if self.own_columns else [name for name in renamed.values() if name not in columns]
        if missing:
            raise DudiError(f"{where}: no column {missing[0]!r}, which data.columns names; it has {', '.join(columns)}")
        there = {*columns, *(ours for ours, name in renamed.items() if name in columns)}
        # SEA-Instruct's conversations are text, and stand beside columns that say which of them are good.
        sea = "conversations" in texts and "messages" not in columns and self.data.format == BY_LOOK
        if sea or not any(there.issuperset(needed) for one in self.formats for needed in one.needs):
            also = "; for SEA-Instruct's columns use data.format = 'sea_instruct'"
            also += ", for other conversations written as text data.format = 'messages'"
            found = ", ".join(columns)
            hint = also if "conversations" in columns else "; data.columns can say what they are called"
            raise DudiError(f"{where}: wanted the columns {wanted(self.formats)}; found {found}{hint}")
        read = {*COMMON, *(column for one in self.formats for column in one.columns), *renamed.values()}
        return [name for name in columns if name in read]

    def _row(self, value: Any, path: str, id: str, where: str) -> ChatRow:
        language, other = self.data.language or self.by_file.get(path) or NO_LANGUAGE, None
        try:
            if isinstance(value, RowError):
                raise value
            if not isinstance(value, dict):
                raise RowError("not an object", "row", value, f"an object with {wanted(self.formats)}")
            value = self._renamed(value)
            no_language: RowError | None = None
            try:
                language, other = self._language(value, path)
            except RowError as error:
                no_language = error
            format = self._format(value)
            if no_language is not None:
                raise no_language
            name = value.get("id")
            id = name if isinstance(name, str) and _printable(name) else id
            conversation = format.read(value)
            ignore = self.data.ignore
            example = to_example(conversation.turns, language, id, conversation.field, ignore, conversation.keys)
            refuse_row(value, example, format.columns, ignore)
            return ChatRow(where, language, example, format.title, other)
        except RowError as error:
            return ChatRow(where, language, error, other=other)

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        for ours, name in self.data.columns.items():
            if name in row:
                row = {**row, ours: row[name]}
            elif not self.own_columns:
                found = f"{ours} = {name}"
                raise RowError("no such column", name, sorted(map(str, row)), f"the column of data.columns ({found})")
        return row

    def _format(self, row: Mapping[str, Any]) -> Format:
        if len(self.formats) == 1:
            return self.formats[0]
        found = next((one for one in self.formats if one.fits(row)), None)
        found = found or next((one for one in self.formats if one.begins(row)), None)
        if found is None:
            columns = f"{wanted(self.formats)} (data.columns can say what they are called)"
            lists = {key: one[0] for key, one in row.items() if isinstance(one, list) and one}
            for key, one in lists.items():
                if isinstance(one, dict) and any(format.begins(one) for format in self.formats):
                    columns += f"; the rows lie under {key!r}: save that list by itself"
            raise RowError("no conversation", "row", sorted(map(str, row)), columns)
        return found

    def _language(self, row: Mapping[str, Any], path: str) -> tuple[str, str | None]:
        """The language, and what the row itself calls it where that is overridden."""
        fault = None
        for column in LANGUAGE_COLUMNS:
            if (value := row.get(column)) is not None:
                try:
                    code = language_code(value) if isinstance(value, str) else None
                except DudiError as error:
                    code, fault = None, fault or (column, value, str(error).partition("expected ")[2])
                if self.data.language is not None:
                    return self.data.language, None if code == self.data.language else str(value)[:40]
                if code is not None:
                    return code, None
                fault = fault or (column, value, "")
        if fault is None and (given := self.data.language or self.by_file.get(path)):
            return given, None
        column, value, known = fault or ("language", None, "")
        if known:
            raise RowError("unknown language", column, value, f"{known}; or one for all rows, in data.language")
        hint = language_hint(path)
        named = f" = '{hint}', if that is what the file's name means" if hint else ""
        wanted_language = f"a language code or name (or one for all rows, in data.language{named})"
        raise RowError("no language", column, value, wanted_language)


def _printable(name: str) -> bool:
    return 0 < len(name) <= 200 and name.isprintable()


@dataclass
class ChatScan:
    """One reading of all rows: counts, duplicates by content over all languages, and pools where rows are wanted."""

    data: Data
    report: DataReport
    look: Callable[[Example], None] | None = None
    """Is shown every row that is kept."""
    pools: dict[str, Pool] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    """Rows in languages that the recipe does not ask for."""
    held_out: frozenset[int] = frozenset()
    """Fingerprints of rows that are evaluated on, from elsewhere, and so are not trained on."""
    seen: set[int] = field(default_factory=set)
    """Fingerprints of rows met before, in other sources too."""
    overridden: Counter[str] = field(default_factory=Counter)
    """What rows call their own language, where `data.language` says otherwise."""

    def run(self, rows: Iterator[ChatRow], strict: bool, seed: int | None) -> None:
        """Count every row, and offer the good ones to their pool where a seed is given.

        Raises `DudiError` for the first broken row if `strict`.
        """
        for position, row in enumerate(rows):
            known = row.language != NO_LANGUAGE
            if known and self.data.languages and row.language not in self.data.languages:
                self.others[row.language] += 1
                continue
            if row.other is not None:
                self.overridden[row.other] += 1
            if row.format is not None:
                self.report.read_as[row.format] += 1
            if isinstance(row.result, RowError) and not row.result.excluded:
                line = f"{row.where}: {row.result}"
                if strict:
                    raise DudiError(line)
                self.report.of(row.language).add_broken(row.result.reason, line)
            self._count(row, position, seed)

    def _count(self, row: ChatRow, position: int, seed: int | None) -> None:
        counts = self.report.of(row.language)
        counts.read += 1
        if isinstance(row.result, RowError):
            if row.result.excluded:
                counts.filtered[row.result.reason] += 1
            return
        key = fingerprint(row.result)
        if key in self.held_out:
            counts.filtered[HELD_OUT] += 1
            return
        if key in self.seen:
            counts.duplicated += 1
            return
        self.seen.add(key)
        if is_zawgyi(row.result):
            counts.zawgyi += 1
            return
        counts.kept += 1
        self.report.suspect(row.result)
        if self.look is not None:
            self.look(row.result)
        if seed is not None:
            data = self.data
            if row.language not in self.pools:
                self.pools[row.language] = Pool(row.language, seed, data.rows_per_language, data.eval_rows_per_language)
            self.pools[row.language].add(position, row.result)
