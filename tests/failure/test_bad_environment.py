"""What the machine may have wrong: encodings, full disks, nowhere to write. By the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def dudi(*argv: str, cwd: Path | None = None, stdout: object = subprocess.PIPE, **env: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of the real command."""
    done = subprocess.run(
        [sys.executable, "-m", "dudi", *argv],
        stdout=stdout,  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **env},
    )
    return done.returncode, done.stdout or "", done.stderr


@pytest.mark.parametrize("columns", ["0", "-1", "abc", "1", "99999"])
def test_a_terminal_of_any_width(columns: str) -> None:
    status, out, err = dudi("recipes", COLUMNS=columns)
    assert (status, err) == (0, "")
    assert columns in ("0", "1") or "qwen2.5-0.5b/dudi" in out  # no room for a letter is no room


def test_an_error_in_an_encoding_that_cannot_write_it(tmp_path: Path) -> None:
    (tmp_path / "ไทย.toml").write_text("ไทย", encoding="utf-8")
    status, _, err = dudi("check", str(tmp_path / "ไทย.toml"), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert status == 2 and err.startswith("dudi: ") and "not valid TOML" in err and len(err.splitlines()) == 1


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    file = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.toml")
    status, _, err = dudi("check", file)
    assert status == 2 and "no recipe" in err and len(err.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        status, _, err = dudi("recipes", stdout=full)
    assert (status, err) == (2, "dudi: standard output cannot be written: no space left\n")


def test_a_reader_that_went_away() -> None:
    command = f"{sys.executable} -m dudi recipes | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
