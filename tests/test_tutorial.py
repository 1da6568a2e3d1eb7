"""The tutorial's page, followed from top to bottom: every command works, in the order in which a reader types them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SAME_EVERYWHERE = ("python ", "head ", "dudi lab ", "dudi data ", "dudi check ", "dudi verbalize ")
"""Commands that print no time, and no number that a model computed."""


@pytest.fixture(scope="module")
def tutorial() -> ModuleType:
    """scripts/tutorial.py."""
    spec = importlib.util.spec_from_file_location("tutorial", ROOT / "scripts" / "tutorial.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["tutorial"] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_reader_gets_from_rows_to_a_card(tutorial: ModuleType, tmp_path: Path) -> None:
    typed = []
    for step in tutorial.steps(PAGE):
        printed = tutorial.do(step, tmp_path)
        if isinstance(step, tutorial.Command):
            typed.append(step.line)
            if step.line.startswith(SAME_EVERYWHERE):
                assert printed == step.printed, f"{step.line}: refresh the page with python scripts/tutorial.py"
    named = " ".join(typed)
    for command in ("data check", "check", "verbalize", "plan", "run", "eval", "compare", "report", "card", "push"):
        assert f"dudi {command} " in named
    card = (tmp_path / "runs/mine/2-dudi/model/README.md").read_text(encoding="utf-8")
    assert "model-index:" in card and "canteen" in card
    assert (tmp_path / "runs/mine/report/report.html").stat().st_size > 10_000


def test_refreshing_a_page_replaces_what_was_printed_and_nothing_else(tutorial: ModuleType, tmp_path: Path) -> None:
    page = 'a\n```text title="f.txt"\nhello\n```\nb\n```console\n$ cat f.txt\nold\nolder\n$ true\nold\n```\n'
    page += "```bash\n$ exit 1\n```\n"
    printed = [tutorial.do(step, tmp_path) for step in tutorial.steps(page)]
    assert printed == ["", "hello", ""]
    new = page.replace("old\nolder\n", "hello\n").replace("$ true\nold\n", "$ true\n")
    assert tutorial.refreshed(page, printed[1:]) == new
    fenced = tutorial.refreshed(page, ["```\nx\n```", "~"])
    assert [step.printed for step in tutorial.steps(fenced) if isinstance(step, tutorial.Command)] == [
        "```\nx\n```",
        "~",
    ]
    assert [step.printed for step in tutorial.steps(new) if isinstance(step, tutorial.Command)] == printed[1:]


@pytest.mark.parametrize("line", ["false", "false | cat", "echo; exit 3"])
def test_a_command_that_fails_stops_the_page(tutorial: ModuleType, tmp_path: Path, line: str) -> None:
    with pytest.raises(RuntimeError, match="ended with status"):
        tutorial.do(tutorial.Command(line, ""), tmp_path)
