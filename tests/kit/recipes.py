"""A good recipe, as text and as a table, and every key that a recipe may have."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from dudi.errors import DudiError
from dudi.recipe.schema import Recipe

GOOD = """
name = "r"
[method]
name = "dudi"
[models]
student = "s"
teacher = "t"
[data]
source = "d"
"""


def good() -> dict[str, Any]:
    return {
        "name": "r",
        "method": {"name": "dudi"},
        "models": {"student": "s", "teacher": "t"},
        "data": {"source": "d"},
        "paper": {"table": "2", "average": 1.0},
    }


def section_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def keys(model: type[BaseModel] = Recipe, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every key of a recipe, and whether it is a table of its own."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        yield (*path, name), section is not None
        if section is not None:
            yield from keys(section, (*path, name))


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys that are no tables; of several tables of one kind, those of each."""
    for name, info in section.model_fields.items():
        options = (info.annotation, *get_args(info.annotation))
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if inner is None:
            yield prefix + name
        else:
            yield from leaves(inner, f"{prefix}{name}.")


def the_line(error: pytest.ExceptionInfo[DudiError]) -> str:
    """The message of an error, which is one line."""
    text = str(error.value)
    assert text and len(text.splitlines()) == 1 and "Traceback" not in text
    return text


KEYS = list(keys())
