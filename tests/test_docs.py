"""The documents name what exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    line.split("|")[1:-1]
    for line in (ROOT / "docs/equations.md").read_text(encoding="utf-8").splitlines()[6:]
    if "|" in line
]


def _names(file: Path) -> set[str]:
    """Functions, classes and their methods, as `name` and `Class.name`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def _exists(name: str, base: Path) -> bool:
    """`module.sub.Class.name`, a whole module, or a file pattern."""
    if "/" in name:
        return any(base.glob(name))
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        file = base.joinpath(*parts[:cut]).with_suffix(".py")
        if file.is_file():
            return cut == len(parts) or ".".join(parts[cut:]) in _names(file)
    return False


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_every_function_and_test_of_the_equations_page_exists(row: list[str]) -> None:
    for cell, base in ((row[2], ROOT / "src/dudi"), (row[3], ROOT / "tests")):
        names = [name for name in re.findall(r"`([^`]+)`", cell) if name != "without"]
        assert names
        for name in names:
            assert _exists(name, base), f"{name} is not in {base.name}"


@pytest.mark.parametrize(("file", "at_least"), [("known-bugs.md", 40), ("faults.md", 70)])
def test_every_known_bug_and_fault_points_at_a_test(file: str, at_least: int) -> None:
    page = (ROOT / "docs" / file).read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+\.)*test_\w+(?:\.\w+)?)`", page)
    assert len(named) > at_least
    assert [name for name in named if not _exists(name, ROOT / "tests")] == []


def test_every_row_of_the_faults_page_names_a_test() -> None:
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and line != "| fault | test |"]
    assert len(rows) > 50
    assert [row for row in rows if not re.search(r"\| `(\w+\.)*test_\w+", row)] == []


def test_the_page_of_keys_is_what_the_script_prints() -> None:
    script = ROOT / "scripts" / "recipe_reference.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, check=True, text=True, encoding="utf-8")
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == printed.stdout, "python scripts/recipe_reference.py > docs/recipe.md"


def test_the_check_can_fail() -> None:
    assert not _exists("losses.no_such_loss", ROOT / "src/dudi")
    assert not _exists("no_such_module.f", ROOT / "src/dudi")
    assert not _exists("test_methods.no_such_test", ROOT / "tests")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
