"""Recipes as files: TOML with `extends`, then `--set key=value`. A misspelt key is an error with the choices."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dudi.errors import DudiError, unknown
from dudi.files import read_toml
from dudi.recipe.schema import Recipe
from dudi.strict import at_key, first_fault, in_words, keys_at, shown

RECIPES = Path(__file__).parent / "shipped"
TOML_WORDS = {"tuple_type": "an array", "model_type": "a table", "dict_type": "a table"}
"""What was wanted, where pydantic's words are not a recipe's."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), over: Sequence[str | Path] = ()) -> Recipe:
    """Read a recipe: a TOML file or the name of a shipped one, its `extends`, then `--set key=value` overrides.

    over: more files or names, laid over it in turn, before the overrides. Raises `DudiError` with file, key, what was
    found and what was wanted.
    """
    file = find_recipe(path)
    try:
        table = {"name": name_of(file), **_read(file)}
        for one in over:
            table = _merge(table, _read(find_recipe(one)))
        for item in overrides:
            _set(table, item)
        return parse_recipe(table, str(path))
    except RecursionError:
        raise DudiError(f"{path}: tables nested too deeply, or too many files that `extends` one another") from None


def parse_recipe(table: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from an already merged table; `where` names its origin in errors."""
    _check_texts(table, where)
    table = dict(table)
    cold = dict(table.get("cold_start") or {}) if isinstance(table.get("cold_start", {}), dict) else None
    if cold is not None and isinstance(table.get("training", {}), dict):
        if isinstance(cold.get("training", {}), dict):
            cold["training"] = {**table.get("training", {}), **cold.get("training", {})}
        table["cold_start"] = cold
    try:
        return Recipe.model_validate(_tuples(table))
    except ValidationError as error:
        raise DudiError(f"{where}: {_explain(error)}") from None


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as TOML, every value spelled out; `load_recipe` reads it back to an equal one."""
    lines: list[str] = []
    tables: list[tuple[str, dict[str, Any]]] = [("", recipe.model_dump(mode="json", exclude_none=True))]
    while tables:
        name, table = tables.pop(0)
        lines += ["", f"[{name}]"] if name else []
        for key, value in table.items():
            key = _key(key)
            if isinstance(value, dict):
                tables.append((f"{name}.{key}".lstrip("."), value))
            else:
                lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _toml(value: Any) -> str:
    """A value on one line. JSON's texts and numbers are TOML's, but for one control character that JSON leaves as it
    is."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(name)} = {_toml(one)}' for name, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe given by path, or by name among those that ship (`dudi recipes` lists them)."""
    file = Path(path)
    if file.is_file():
        return file
    if (shipped := _shipped(str(path))) is not None:
        return shipped
    if file.is_dir():
        raise DudiError(f"recipe {str(path)!r} is a folder: give the TOML file in it")
    close = difflib.get_close_matches(str(path), shipped_recipes(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; `dudi recipes` lists the shipped ones"
    raise DudiError(f"no recipe {str(path)!r}: expected a TOML file or the name of a shipped recipe{hint}")


def _shipped(name: str) -> Path | None:
    """The file of a shipped recipe, if there is one of this name."""
    file = RECIPES / f"{name}.toml"
    return file if file.is_file() and file.resolve().is_relative_to(RECIPES.resolve()) else None


def name_of(file: Path) -> str:
    """The name of a recipe that does not give one: a shipped one's as `dudi recipes` lists it, with "-" for "/"; for
    any other, its file's stem."""
    whole, shipped = file.resolve(), RECIPES.resolve()
    if whole.is_relative_to(shipped):
        return "-".join(whole.relative_to(shipped).with_suffix("").parts)
    return file.stem


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package (shared bases, whose names start with `_`, left out)."""
    files = sorted(RECIPES.rglob("*.toml"))
    return [f.relative_to(RECIPES).with_suffix("").as_posix() for f in files if not f.name.startswith("_")]


def _check_texts(value: Any, where: str, key: str = "") -> None:
    """What no value of a recipe may be, whatever its key: no text, or a token of the hub, since a run's folder holds
    its recipe."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_texts(name, where, f"{key}.a key".lstrip("."))
            _check_texts(inner, where, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_texts(inner, where, f"{key}.{number}")
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise DudiError(f"{where}: {key}: expected text, found {shown(value)}")
        if _SECRET.search(value):
            raise DudiError(
                f"{where}: {key}: looks like a hub token, and a run's folder holds its recipe: give tokens"
                " with `hf auth login` or HF_TOKEN only, and revoke this one"
            )


def _read(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file merged over its bases. seen: the way to it."""
    if file.resolve() in seen:
        raise DudiError(f"{file}: `extends` goes in a circle ({' -> '.join(p.name for p in (*seen, file))})")
    try:
        table = read_toml(file)
    except OSError as error:
        raise DudiError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DudiError(f"{file}: not UTF-8 text; save the recipe as UTF-8") from None
    except ValueError as error:
        raise DudiError(f"{file}: not valid TOML: {error}") from None
    bases = table.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise DudiError(f"{file}: extends: expected a file name or a list of them, found {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        beside = file.parent / base
        parent = beside if beside.is_file() else _shipped(base)
        if parent is None:
            raise DudiError(f"{file}: extends: no file {base!r} beside it, and no shipped recipe of this name")
        merged = _merge(merged, _read(parent, (*seen, file.resolve())))
    return _merge(merged, table)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; a `method` table of another name replaces the base's whole, and `source` and
    `sources` each other."""
    other = {"source": "sources", "sources": "source"}
    result = {key: value for key, value in base.items() if other.get(key) not in over}
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            renamed = key == "method" and value.get("name", old.get("name")) != old.get("name")
            value = value if renamed else _merge(old, value)
        result[key] = value
    return result


def _set(table: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise DudiError(f"--set {item!r}: expected key=value, such as --set training.lr=1e-5")
    try:
        value = tomllib.loads(f"value = {text.strip()}".replace("\n", " "))["value"]
    except (ValueError, RecursionError):
        value = text.strip()  # a bare word is a string: --set method.verbalizer=mix
    for part in parts[:-1]:
        if not isinstance(table.get(part, {}), dict):
            raise DudiError(f"--set {item!r}: {part!r} is a value, not a table")
        table = table.setdefault(part, {})
    table[parts[-1]] = value


def _tuples(value: Any) -> Any:
    """TOML has arrays only; strict models want tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(error: ValidationError) -> str:
    """The first fault, in one line; how many more there are. A misspelt key comes first: it may explain the others."""
    faults = error.errors(include_url=False)
    inherited = {("cold_start", *fault["loc"]) for fault in faults if fault["loc"][0:1] == ("training",)}
    faults = [fault for fault in faults if fault["loc"] not in inherited]  # a fault of [training] is one, not two
    first = first_fault(faults)
    *place, key = first["loc"] or ("",)
    if first["type"] == "extra_forbidden":
        message = unknown(str(key), keys_at(Recipe, place), f"key in [{'.'.join(map(str, place)) or 'recipe'}]")
    else:
        message = at_key(".".join(map(str, first["loc"])), in_words(first, TOML_WORDS))
    more = len(faults) - 1
    message += f" (and {more} more fault{'s' if more > 1 else ''})" if more else ""
    return " ".join(message.splitlines())
