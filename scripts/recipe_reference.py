"""Print docs/recipe.md: every key of a recipe, from the schema (`dudi.recipe.schema`) and the methods' own arguments.

    python scripts/recipe_reference.py > docs/recipe.md

A test compares the committed page with what this prints.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic_core import PydanticUndefined

from dudi.methods import METHODS
from dudi.recipe.fields import Section
from dudi.recipe.schema import Recipe
from dudi.signals import LossOn, Mode
from dudi.strict import PerLanguage

HEAD = """# Recipe

Every key of a recipe: a TOML file with these tables. Written by `scripts/recipe_reference.py` from
`src/dudi/recipe/schema.py`; a test compares the two. A misspelt key is an error that names the right one.

- `extends = "FILE"` at the top of a file takes over what another says: one beside it, or a shipped recipe by its name
  (`dudi recipes`); a list takes over several. Tables are merged key by key; a `[method]` of another name replaces the
  whole table.
- `--set TABLE.KEY=VALUE` changes one key on the command line. The value is written as in TOML.
- Other relative paths start from the folder in which the command runs.
- A default of `-` means that the key has no value unless you give one."""
WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number"}
BOUNDS = {Gt: "> {gt}", Ge: ">= {ge}", Lt: "< {lt}", Le: "<= {le}"}


def main() -> int:
    """Print the page."""
    sys.stdout.write(page())
    return 0


def page() -> str:
    """The whole page, as it is committed."""
    tables = [_section("", Recipe)]
    for name, field in Recipe.model_fields.items():
        if (section := _as_section(field.annotation)) is not None:
            tables.append(_section(name, section))
            for key, inner in section.model_fields.items():
                if get_origin(inner.annotation) is tuple and (each := _as_section(inner.annotation)) is not None:
                    tables.append(_section(f"[{name}.{key}]", each))
        elif name == "method":
            tables.append(_methods())
    return "\n\n".join([HEAD, *tables]) + "\n"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _section(name: str, section: type[Section]) -> str:
    """A table of the recipe: title, what it is, and a row for each of its keys."""
    meanings = _docstrings(section)
    rows = [
        (key, in_words(field.annotation, field.metadata), _default(field), meanings.get(key, ""))
        for key, field in section.model_fields.items()
        if name or not (key == "method" or _as_section(field.annotation))
    ]
    title = f"## `[{name}]`" if name else "## At the top"
    return "\n\n".join([title, _one_line(section.__doc__), _table(rows)])


def _methods() -> str:
    """The keys of `[method]`: the arguments of each method's function."""
    parts = [
        "## `[method]`",
        "`name` chooses the method; the other keys are the method's own. (`dudi methods` prints their signals.)",
    ]
    for name, build in METHODS.items():
        rows = []
        for argument in inspect.signature(build, eval_str=True).parameters.values():
            base, metadata = _annotated(argument.annotation)
            rows.append((argument.name, in_words(base, metadata), _value(argument.default), ""))
        parts += [f'### `name = "{name}"`', _one_line(build.__doc__), _table(rows, meaning=False)]
    return "\n\n".join(parts)


def _table(rows: list[tuple[str, str, str, str]], meaning: bool = True) -> str:
    titles = ["key", "type", "default", *(["meaning"] if meaning else [])]
    lines = [titles, ["---"] * len(titles)]
    for key, kind, value, text in rows:
        lines.append([f"`{key}`", kind, value, *([text] if meaning else [])])
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _docstrings(section: type[Section]) -> dict[str, str]:
    """The text under each field of a table, as one line."""
    tree = ast.parse(Path(inspect.getfile(section)).read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section.__name__).body
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = _one_line(ast.literal_eval(text.value))
    return found


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def in_words(annotation: Any, metadata: Any = ()) -> str:
    """A type as somebody says it who writes a recipe and no Python."""
    base, inner = _annotated(annotation)
    if base == _annotated(PerLanguage)[0]:
        return "whole number > 0, or a table of them by language"
    origin, arguments = get_origin(base), get_args(base)
    if origin in (Union, UnionType):
        text = " or ".join(in_words(one) for one in arguments if one is not NoneType)
    elif origin is Literal:
        text = "one of " + ", ".join(f"`{one}`" for one in arguments)
    elif origin is tuple:
        text = f"list of: {in_words(arguments[0])}"
    elif origin is dict:
        text = "table" if arguments[1] is Any else f"table of: {in_words(arguments[1])}"
    elif base in (Mode, LossOn):
        text = "one of " + ", ".join(f"`{one.value}`" for one in base)
    else:
        text = "table" if _as_section(base) else WORDS[base]
    return f"{text} {' and '.join(_bounds([*inner, *metadata]))}".rstrip()


def _bounds(metadata: Any) -> Iterator[str]:
    for one in metadata:
        for bound in getattr(one, "metadata", [one]):  # a pydantic Field holds its bounds in a list
            if type(bound) in BOUNDS:
                yield BOUNDS[type(bound)].format(**{slot: getattr(bound, slot) for slot in type(bound).__slots__})


def _annotated(annotation: Any) -> tuple[Any, list[Any]]:
    """A type and its bounds."""
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        return base, metadata
    return annotation, []


def _default(field: Any) -> str:
    return "**required**" if field.default is PydanticUndefined else _value(field.default)


def _value(value: Any) -> str:
    """A default as TOML writes it; `-` where leaving the key out is the only way to have it."""
    if value is None:
        return "-"
    if isinstance(value, Section):
        return "as `[training]`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{key} = {json.dumps(one)}' for key, one in value.items())}}}`"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _as_section(annotation: Any) -> type[Section] | None:
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Section):
            return one
    return None


def _one_line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


if __name__ == "__main__":
    raise SystemExit(main())
