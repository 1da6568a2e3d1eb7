"""The documents name what exists."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from dudi import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


def test_the_page_of_commands_is_what_typer_prints(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "typer", "dudi.cli", "utils", "docs", "--name", "dudi", "--title", "Commands"]
    subprocess.run([*words, "--output", tmp_path / "cli.md"], capture_output=True, check=True)
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    again = f"{' '.join(words[1:])} --output docs/cli.md"
    assert page == (tmp_path / "cli.md").read_text(encoding="utf-8"), f"python {again}"


def _typed(page: Path) -> Iterator[str]:
    """Every `dudi ...` line of a page's code blocks, as the shell would have it: joined, without comment and prompt."""
    text = page.read_text(encoding="utf-8")
    for _, language, block in re.findall(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1$", text, flags=re.MULTILINE | re.DOTALL):
        if language in ("python", "toml", "json", "math"):
            continue
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]  # the others are what it prints
        yield from (line for line in prompted or lines if line.startswith("dudi "))


def _parsed(line: str) -> str:
    """What the command line says against a command, without running it; nothing, where it takes it."""
    words = shlex.split(line, comments=True)[1:]
    command, context = get_command(cli.app), None
    try:
        while hasattr(command, "commands"):  # a group: the next word is a command of it
            context = command.make_context(words[0] if context else "dudi", words[:], parent=context)
            name, command, words = command.resolve_command(context, words)
        command.make_context(name, words, parent=context)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return error.format_message()
    return ""


def test_every_command_in_the_documents_is_one_that_dudi_takes() -> None:
    lines = [(page.name, line) for page in PAGES if page.name != "cli.md" for line in _typed(page)]
    assert len(lines) > 60
    assert {line: found for line in lines if (found := _parsed(line[1]))} == {}
    assert "No such option" in _parsed("dudi run r.toml --no-such-option  # a comment")
    assert "No such command" in _parsed("dudi data chekc my.jsonl")


def test_every_page_has_its_place_on_the_site() -> None:
    placed = re.findall(
        r"^ +- .*?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[2:]}
    assert set(placed) - {"index.md", "contributing.md", "changelog.md"} == pages, "nav, in mkdocs.yml"


def test_the_check_can_fail() -> None:
    assert not _exists("losses.no_such_loss", ROOT / "src/dudi")
    assert not _exists("no_such_module.f", ROOT / "src/dudi")
    assert not _exists("test_methods.no_such_test", ROOT / "tests")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
