"""Parquet and Arrow: tables by column, read a bounded batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dudi.data.containers.container import Container, Header, Row
from dudi.data.conversation import RowError
from dudi.errors import DudiError

if TYPE_CHECKING:
    from dudi.data.source import Source


def _parquet(source: Source, path: str, header: Header) -> Iterator[Row]:
    with source.parquet(path) as file:
        schema = file.schema_arrow
    columns = _chosen(source.where(path), schema, header)
    labels = _labels(schema)
    for first, batch in source.batches(path, columns):
        for i, value in enumerate(_values(batch)):
            yield "row", first + i + 1, _named(value, labels)


def _arrow(source: Source, path: str, header: Header) -> Iterator[Row]:
    """An Arrow file or stream, such as `Dataset.save_to_disk` writes."""
    number = 0
    try:
        with source.open(path) as file:
            whole = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = pa.ipc.open_file(file) if whole else pa.ipc.open_stream(file)
            columns, labels = _chosen(source.where(path), reader.schema, header), _labels(reader.schema)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else iter(reader)
            for batch in batches:
                for value in _values(batch.select(columns)):
                    number += 1
                    yield "row", number, _named(value, labels)
    except (pa.ArrowException, OSError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DudiError(f"{source.where(path)}: not a readable Arrow file ({line[:120]})") from None


PARQUET = Container((".parquet",), _parquet, compressed=False)
ARROW = Container((".arrow", ".feather"), _arrow, compressed=False)


def _chosen(where: str, schema: pa.Schema, header: Header) -> list[str]:
    if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
        raise DudiError(f"{where}: two columns are called {twice!r}")
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    return header(where, schema.names, texts)


def _labels(schema: pa.Schema) -> dict[str, Sequence[str]]:
    """The names of the classes that a column of numbers stands for (`ClassLabel` of `datasets`)."""
    if b"ClassLabel" not in (schema.metadata or {}).get(b"huggingface", b""):
        return {}
    from datasets import ClassLabel, Features

    features = Features.from_arrow_schema(schema)
    return {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}


def _named(value: Any, labels: dict[str, Sequence[str]]) -> Any:
    for column, names in labels.items():
        number = value.get(column) if isinstance(value, dict) else None
        if isinstance(number, int) and 0 <= number < len(names):
            value = {**value, column: names[number]}
    return value


def _values(batch: Any) -> list[Any]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:  # the file formats do not promise valid UTF-8: find the row
        if batch.num_rows == 1:
            return [RowError("not UTF-8", "row", "other bytes", "UTF-8 text")]
        half = batch.num_rows // 2
        return [*_values(batch.slice(0, half)), *_values(batch.slice(half))]
