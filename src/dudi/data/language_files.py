"""The Parquet files that hold one language of SEA-Instruct."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dudi.data.conversation import RowError, parse_conversations, to_example
from dudi.data.quality import FILTER_COLUMNS, STRATUM
from dudi.data.source import Source
from dudi.errors import DudiError
from dudi.example import Example
from dudi.recipe.schema import Data

CONVERSATIONS = "conversations"


@dataclass(frozen=True)
class LanguageFiles:
    """The files of one language, and what their footers say. Row numbers run through all of them, from 0."""

    source: Source
    paths: tuple[str, ...]
    language: str
    row_groups: tuple[tuple[int, ...], ...]
    """For each file, the rows of each of its row groups."""
    schemas: tuple[frozenset[str], ...]
    ignore: tuple[str, ...] = ()
    """Keys of messages that are knowingly not read."""

    @classmethod
    def open(cls, source: Source, paths: list[str], language: str, ignore: tuple[str, ...] = ()) -> LanguageFiles:
        """Read the footers, once. Raises `DudiError`."""
        groups, schemas = [], []
        for path in paths:
            if not path.endswith(".parquet"):
                raise DudiError(
                    f"{source.where(path)}: SEA-Instruct is Parquet; read chat files with data.format = 'chat'"
                )
            with source.parquet(path) as file:
                rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                groups.append(tuple(rows))
                schemas.append(frozenset(file.schema_arrow.names))
        return cls(source, tuple(paths), language, tuple(groups), tuple(schemas), ignore)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that all files have."""
        return frozenset.intersection(*self.schemas)

    def require(self, data: Data, sampled: bool) -> None:
        """Raises `DudiError` when a file lacks a column that this recipe needs."""
        hint = "; data.quality_filter = false reads without it"
        hints = {CONVERSATIONS: "", **(dict.fromkeys(STRATUM, "") if sampled else {})}
        hints |= dict.fromkeys(FILTER_COLUMNS, hint) if data.quality_filter else {}
        for path, schema in zip(self.paths, self.schemas, strict=True):
            for name in hints:
                if name not in schema:
                    there = ", ".join(sorted(schema))
                    raise DudiError(f"{self.source.where(path)}: no column {name!r}; it has {there}{hints[name]}")

    def example(self, scalar: Any, path: str, row: int) -> Example | RowError:
        """A `conversations` scalar as a row, or what is broken about it; `row` counts from 0 within its file."""
        try:
            messages = parse_conversations(scalar.as_py())
            return to_example(messages, self.language, f"{path}:{row + 1}", CONVERSATIONS, self.ignore)
        except UnicodeDecodeError:
            return RowError("not UTF-8", CONVERSATIONS, "other bytes", "UTF-8 text")
        except RowError as error:
            return error

    def fault(self, error: RowError, path: str, row: int) -> str:
        """A broken row in one line."""
        return f"{self.source.where(path)}: row {row + 1}: {error}"
