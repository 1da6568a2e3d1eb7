"""One JSON text -> one checked record; the first fault as one line with place, field, what was found and wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dudi.errors import DudiError, unknown
from dudi.languages import language_code
from dudi.recipe.schema import shown

M = TypeVar("M", bound=BaseModel)
_WANTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table (JSON object)",
    "model_type": "a table (JSON object)",
    "model_attributes_type": "a table (JSON object)",
    "string_too_short": "a text that is not empty",
    "greater_than": "a number greater than 0",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-'",
}


MAX_BYTES = 1 << 28
"""Of one file of a benchmark or evaluation."""


def read_text(file: Path) -> str:
    """A file of UTF-8 text, with or without a byte order mark; a device or pipe, which may have no end, is none."""
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise DudiError(f"{file}: not a file")
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DudiError(f"{file}: larger than {MAX_BYTES:,} bytes")
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise DudiError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DudiError(f"{file}: not UTF-8 text; save it as UTF-8") from None


def validated(model: type[M], text: str, where: str, nested: Mapping[str, type[BaseModel]]) -> M:
    """JSON text -> model. nested: the models that lie under its keys, whose own keys an error names."""
    try:
        json.loads(text, object_pairs_hook=_once)
        return model.model_validate_json(text)
    except ValidationError as error:
        raise DudiError(f"{where}: {_explain(error, model, nested)}") from None
    except (ValueError, RecursionError) as error:
        raise DudiError(f"{where}: not valid JSON: {error}") from None


def checked_code(code: str, where: str, field: str) -> str:
    """A language code as this package writes it, or `DudiError`."""
    try:
        known = language_code(code)
    except DudiError as error:
        raise DudiError(f"{where}: {field}: {error}") from None
    if known != code:
        raise DudiError(f"{where}: {field}: use the language code {known!r} instead of {code!r}")
    return code


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} occurs twice")
        found[key] = value
    return found


def _explain(error: ValidationError, model: type[BaseModel], nested: Mapping[str, type[BaseModel]]) -> str:
    """The first fault; a misspelt key comes first, since it may explain the others."""
    first = min(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    path: Sequence[int | str] = first["loc"]
    key = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        inner = nested[str(path[0])] if len(path) > 1 else model
        place = "".join(f"{part}." for part in path[:-1])[:-1]
        return (f"{place}: " if place else "") + unknown(str(path[-1]), inner.model_fields, "key")
    if first["type"] == "missing":
        return f"{key}: missing; it has no default"
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    elif first["type"] == "literal_error":
        text = f"expected one of {first['ctx']['expected']}, found {shown(first['input'])}"
    elif first["type"] == "too_short":
        text = f"expected {first['ctx']['min_length']} or more entries, found {shown(first['input'])}"
    else:
        wanted = _WANTED.get(first["type"])
        text = f"expected {wanted}" if wanted else first["msg"][0].lower() + first["msg"][1:]
        text += f", found {shown(first['input'])}"
    return f"{key}: {text}" if key else text
