"""What holds for the source as a whole: what loads torch, how long things get, what never occurs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dudi

SOURCE = Path(dudi.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
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
    return file.relative_to(SOURCE).as_posix()


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in FILES:
        yield file, ast.parse(file.read_text(encoding="utf-8"))


def test_there_is_source() -> None:
    assert {"methods.py", "training/trainer.py", "rollouts/local.py", "data/load.py"} <= set(map(relative, FILES))


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_no_file_is_too_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_no_function_is_too_long() -> None:
    functions = (
        (f"{relative(file)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [(name, lines) for name, lines in functions if lines > 80] == []


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_no_other_implementation_is_imported() -> None:
    found = {(relative(file), name) for file, tree in trees() for name in imported(tree)}
    assert ("training/trainer.py", "torch") in found
    assert {one for one in found if one[1] in ("trl", "peft", "verl", "unsloth", "tests", "pytest")} == set()


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
    assert [relative(file) for file, tree in trees() if not ast.get_docstring(tree)] == []
