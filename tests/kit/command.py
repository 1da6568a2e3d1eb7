"""`dudi` as a user calls it: in this process or in one of its own, with a recipe of two steps on tiny models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dudi import cli
from dudi.data.load import load_rows
from dudi.example import Example
from dudi.recipe.schema import Data

TOKEN = "hf_" + "secret" * 5
ROWS = 2
"""Rows a language, of the built-in ones."""


def write_recipe(folder: Path, models: Path, text: str = "", method: str = 'name = "dudi"') -> Path:
    """A recipe of two steps a stage; `text` is appended."""
    file = folder / "r.toml"
    file.write_text(
        f"""
name = "r"
output = "{folder}/run"
[method]
{method}
[models]
student = "{models}/student"
teacher = "{models}/teacher"
[data]
source = "builtin"
rows_per_language = {ROWS}
eval_rows_per_language = 1
[limits]
prompt = 400
verbalizer = 300
total = 600
rollout = 8
teacher_prompt = 2000
[training]
batch = 8
max_steps = 2
lr = 1e-3
log_every = 1
overlap_every = 1
eval_every = 2
save_every = 1
{text}
""",
        encoding="utf-8",
    )
    return file


def recipe_rows() -> list[Example]:
    """The rows that this recipe trains on."""
    return load_rows(Data(source="builtin", rows_per_language=ROWS, eval_rows_per_language=1), 0).train


def unrehearsed(argv: Sequence[str]) -> list[str]:
    """A run that does not rehearse, unless it says that it does: tests have no time for it."""
    skip = argv[:1] == ("run",) and not any("rehearsal" in word for word in argv)
    return [*argv, *(["--no-rehearsal"] if skip else [])]


def command(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m dudi ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dudi", *unrehearsed(argv)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_TOKEN": TOKEN, "COLUMNS": "80", **env},
        timeout=300,
    )


def shown(*argv: str) -> str:
    """What a command prints, in this process; it succeeds."""
    result = CliRunner().invoke(cli.app, list(argv), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


class Dudi:
    """`dudi`, called in this process."""

    def __init__(self, folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.folder, self.models, self._monkeypatch, self._capsys = folder, models, monkeypatch, capsys
        self.out = folder / "run"
        self.file = write_recipe(folder, models)

    def __call__(self, *argv: str) -> int:
        """The exit status; standard output is in `text`, standard error in `err`."""
        self._monkeypatch.setattr(sys, "argv", ["dudi", *unrehearsed(argv)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        self.text, self.err = self._capsys.readouterr()
        return int(stop.value.code or 0)

    def refused(self, *argv: str, status: int = 2) -> str:
        """The one line of a command that is refused."""
        assert self(*argv) == status, self.err
        (line,) = self.err.splitlines()
        assert line.startswith("dudi: ") and line.isprintable()
        return line.removeprefix("dudi: ")

    def run_refused(self, *sets: str) -> str:
        """The one line of a run that is refused; no output folder is left."""
        line = self.refused("run", str(self.file), *(part for one in sets for part in ("--set", one)))
        assert not self.out.exists(), sorted(self.out.rglob("*"))
        return line
