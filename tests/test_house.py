"""What holds for the house as a whole: its floors, what loads torch, how long things get, what never occurs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dudi

SOURCE = Path(dudi.__file__).parent
TESTS = Path(__file__).parent
ROOT = TESTS.parent
FILES = sorted(SOURCE.rglob("*.py"))
OURS = sorted(TESTS.rglob("*.py"))
MODULES = {file.stem for file in OURS if file.stem == "conftest" or file.stem.startswith("test_")}
Floors = list[set[str]]
"""Names of modules and packages of `dudi`, from the top floor to the lowest."""
LEVEL_0 = (
    "errors",
    "languages",
    "draws",
    "files",
    "example",
    "methods",
    "recipe.schema",
    "recipe.read",
    "recipe.stages",
    "text.verbalizer",
    "data",
    "data.cli",
    "cli",
)
HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "pyarrow", "huggingface_hub")
EXTRAS = {"peft", "bitsandbytes"}
USED = (("models/adapter.py", "peft"), ("models/merge.py", "peft"), ("models/quantised.py", "bitsandbytes"))
"""What is not installed with the package, and where it is imported."""
MATHEMATICS = ("losses", "chunked", "scores", "objective")


def loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter after some code."""
    script = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", LEVEL_0)
def test_what_reads_and_plans_loads_no_torch(name: str) -> None:
    assert set(HEAVY) & loaded(f"import dudi.{name}") == set()


def test_the_mathematics_loads_no_transformers() -> None:
    found = loaded(f"import {', '.join(f'dudi.loss.{name}' for name in MATHEMATICS)}")
    assert "torch" in found
    assert {"transformers", "datasets", "accelerate"} & found == set()


def relative(file: Path) -> str:
    """Within the package, or from the root of the repository."""
    return file.relative_to(SOURCE if file.is_relative_to(SOURCE) else ROOT).as_posix()


def trees(files: list[Path] = FILES) -> Iterator[tuple[Path, ast.Module]]:
    for file in files:
        yield file, ast.parse(file.read_text(encoding="utf-8"))


def test_there_is_source() -> None:
    assert {"methods.py", "training/trainer.py", "rollouts/local.py", "data/load.py"} <= set(map(relative, FILES))


# ── floors ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def floors_of_the_contract() -> Floors:
    """The layers that import-linter holds."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (one for one in table["contracts"] if one["type"] == "layers")
    assert contract["containers"] == ["dudi"] and contract["exhaustive"] is True
    return [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]


def floors_of_the_page() -> Floors:
    """The table under "Floors" in CONTRIBUTING.md: the names in a row's first cell."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## Floors\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [set(re.findall(r"`(\w+)`", cell)) for cell in rows]


def test_contract_and_page_show_the_same_floors() -> None:
    floors = floors_of_the_contract()
    assert floors_of_the_page() == floors
    assert 5 < len(floors) <= 10


def test_the_tree_has_what_the_floors_name() -> None:
    folders = {file.parent.name for file in SOURCE.glob("*/__init__.py")}
    flat = {file.stem for file in SOURCE.glob("*.py")} - {"__init__"}
    named = [name for floor in floors_of_the_contract() for name in sorted(floor)]
    assert sorted(named) == sorted(folders | flat)
    assert len(flat) <= 12


def test_what_the_package_reads_ships_with_it() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    ships = {file for pattern in patterns["package-data"]["dudi"] for file in SOURCE.glob(pattern)}
    read = {file for file in SOURCE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc", ".md")}
    assert len(read) > 40 and sorted(relative(file) for file in read - ships) == []


# ── tests ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def imports_of_tests(tree: ast.Module) -> Iterator[str]:
    """Test modules and conftests that are imported, wherever in the file."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        for name in names:
            if any(part in MODULES for part in name.split(".")):
                yield name


def test_an_import_of_a_test_would_be_found() -> None:
    text = "def f():\n    from tests.data.test_rows import x\nimport test_house\nfrom . import conftest\nimport kit\n"
    assert list(imports_of_tests(ast.parse(text))) == ["test_house", ".conftest", "tests.data.test_rows.x"]


def test_no_test_module_imports_another() -> None:
    assert len(OURS) > 60
    assert [(relative(file), name) for file, tree in trees(OURS) for name in imports_of_tests(tree)] == []


# ── length ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_no_file_is_too_long() -> None:
    lines = {relative(file): len(file.read_text(encoding="utf-8").splitlines()) for file in [*FILES, *OURS]}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_no_function_is_too_long() -> None:
    functions = (
        (f"{relative(file)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for file, tree in trees([*FILES, *OURS])
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [(name, lines) for name, lines in functions if lines > 60] == []


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_no_other_implementation_is_imported() -> None:
    found = {(relative(file), name) for file, tree in trees() for name in imported(tree)}
    assert ("training/trainer.py", "torch") in found
    assert {one for one in found if one[1] in ("trl", "verl", "unsloth", "tests", "pytest")} == set()
    assert {(file, name) for file, name in found if name in EXTRAS} == set(USED)


def test_what_is_an_extra_is_imported_where_it_is_used() -> None:
    """At the top of no module: without them, everything but [adapter] and quantised weights works."""
    for file, tree in trees():
        top = {*imported(ast.Module([one for one in tree.body if not isinstance(one, ast.FunctionDef)], []))}
        assert not top & EXTRAS, relative(file)


def forbidden(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Whatever goes wrong swallowed in silence, and calls of `eval` and `exec`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(line, ast.Pass) for line in node.body)
            if node.type is None:
                yield node.lineno, "except:"
            elif silent and ast.unparse(node.type) in ("Exception", "BaseException", "DudiError", "OSError"):
                yield node.lineno, "except ...: pass"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield node.lineno, f"{node.func.id}()"


def test_nothing_is_swallowed_and_no_text_is_run() -> None:
    assert [(relative(file), *one) for file, tree in trees() for one in forbidden(tree)] == []


def test_the_search_finds_what_it_looks_for() -> None:
    text = "try: f()\nexcept: g()\ntry: f()\nexcept Exception: pass\neval('1')\nmodel.eval()\nexec('x')\n"
    assert [what for _, what in forbidden(ast.parse(text))] == ["except:", "except ...: pass", "eval()", "exec()"]


def test_every_module_says_what_it_is() -> None:
    kit = sorted((TESTS / "kit").rglob("*.py"))
    assert len(kit) > 10
    assert [relative(file) for file, tree in trees([*FILES, *kit]) if not ast.get_docstring(tree)] == []
