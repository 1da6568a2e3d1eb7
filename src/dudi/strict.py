"""Strict records: unknown keys are refused, values are not coerced, and the first fault is one line. No torch.

What users and other programs write (recipes, benchmarks, evaluations, logs) is read through here, so that a fault is
worded once: place, key, what was wanted, what was found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails

from dudi.errors import DudiError, unknown

T = TypeVar("T")
MAX_BYTES = 1 << 28
"""Of one text file that is read whole."""


STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""Of the tables that a user writes: unknown keys are refused, values are not coerced from other types."""


def expected(what: str) -> WrapValidator:
    """One fault that says what was wanted, where pydantic reports one for each type of a union."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {what}, found {shown(value)}") from None

    return WrapValidator(check)


Text = Annotated[str, Field(min_length=1)]
PerLanguage = Annotated[
    PositiveInt | dict[str, PositiveInt],
    expected("a positive whole number, or a table of them by language such as {default = 256, my = 512}"),
]
"""One number for all languages, or a table `{default = 256, my = 512}`."""


def shown(value: Any) -> str:
    """A value as a recipe writes it, more or less, and not too long."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────
JSON_WORDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table (JSON object)",
    "model_type": "a table (JSON object)",
    "model_attributes_type": "a table (JSON object)",
    "dataclass_type": "a table (JSON object)",
    "finite_number": "a finite number",
    "less_than_equal": "a number of at most {le:g}",
    "unexpected_keyword_argument": "no key of this name",
    "string_too_short": "a text that is not empty",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-'",
    "literal_error": "one of {expected}",
    "too_short": "{min_length} or more entries",
}
"""What was wanted, by pydantic's name for the fault; filled in from the fault's context."""


def first_fault(faults: Sequence[ErrorDetails]) -> ErrorDetails:
    """The fault to report; a misspelt key comes first, since it may explain the others."""
    return min(faults, key=lambda fault: fault["type"] != "extra_forbidden")


def in_words(fault: ErrorDetails, words: Mapping[str, str]) -> str:
    """What was wanted and what was found, without the key; in pydantic's words where `words` has none."""
    if fault["type"] == "missing":
        return "missing; it has no default"
    context = fault.get("ctx", {})
    if fault["type"] == "value_error":
        return str(context["error"])
    wanted = words.get(fault["type"])
    text = f"expected {wanted.format(**context)}" if wanted else fault["msg"][0].lower() + fault["msg"][1:]
    return f"{text}, found {shown(fault['input'])}"


def at_key(key: str, text: str) -> str:
    """`key: text`; the text alone where the fault is of the whole."""
    return f"{key}: {text}" if key else text


def keys_at(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys of the table at a place; indices of lists and names of a table's entries are passed over."""
    for part in place:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(iter(_models(field.annotation)), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type, such as Turn in tuple[Turn, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def explain(error: ValidationError, kind: Any = None) -> str:
    """The first fault of a JSON value as one line. kind: the model, where misspelt keys are refused."""
    fault = first_fault(error.errors(include_url=False))
    if fault["type"] == "extra_forbidden":
        *place, key = fault["loc"]
        return at_key(".".join(map(str, place)), unknown(str(key), keys_at(kind, place), "key"))
    return at_key(".".join(map(str, fault["loc"])), in_words(fault, JSON_WORDS))


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
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
        raise DudiError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise DudiError(f"{file}: not UTF-8 text; save it as UTF-8") from None


def parsed(kind: type[T], text: str, where: str) -> T:
    """JSON text -> a value of that type. Raises `DudiError`: one line that begins with `where`."""
    try:
        json.loads(text, object_pairs_hook=_once)
        value: T = _adapter(cast(Any, kind)).validate_json(text, strict=True)
        return value
    except ValidationError as error:
        raise DudiError(f"{where}: {explain(error, kind)}") from None
    except (ValueError, RecursionError) as error:
        raise DudiError(f"{where}: not valid JSON: {error}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_one(kind: type[T], file: Path) -> T:
    """A file that holds one JSON value."""
    return parsed(kind, read_text(file), str(file))


def read_each(kind: type[T], file: Path, growing: bool = False) -> list[T]:
    """A file of one JSON object a line. growing: a last line without its end is being written, and left out."""
    return [parsed(kind, text, where) for where, text in numbered(file, growing)]


def numbered(file: Path, growing: bool = False) -> Iterator[tuple[str, str]]:
    """(place, line) of the lines of a file that are not blank."""
    lines = read_text(file).split("\n")
    for number, line in enumerate(lines[:-1] if growing else lines, 1):
        if line.strip():
            yield f"{file}: line {number}", line


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} occurs twice")
        found[key] = value
    return found
