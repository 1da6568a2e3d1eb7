"""Run docs/tutorial.md from top to bottom in an empty folder, and write what its commands print below them.

    python scripts/tutorial.py   # run all of it in build/tutorial, and refresh the page

In the page, a code block with `title="NAME"` is a file that the reader saves, and a `console` block holds commands,
each on a line that starts with `$ `, and below it what it prints. Other blocks are for reading only. A command that
fails ends the script, and the page stays as it was.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^(?P<fence>`{3,})(?P<info>\w[^\n]*)\n(?P<body>.*?)^(?P=fence)$", flags=re.MULTILINE | re.DOTALL)
HERE = "~/canteen"
"""What the page calls the folder in which it is run."""
TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class File:
    """What the reader saves under a name."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """What the reader types, and what the page says that it prints."""

    line: str
    printed: str


def steps(page: str) -> Iterator[File | Command]:
    """Files and commands, in the order of the page."""
    for block in BLOCK.finditer(page):
        if title := TITLE.search(block["info"]):
            yield File(title[1], block["body"])
        elif block["info"] == "console":
            for part in re.split(r"^\$ ", block["body"], flags=re.MULTILINE)[1:]:
                line, _, printed = part.partition("\n")
                yield Command(line, printed.rstrip("\n"))


def do(step: File | Command, folder: Path) -> str:
    """Save a file, or run a command and return what it prints. One that fails is a `RuntimeError`."""
    if isinstance(step, File):
        (folder / step.name).write_text(step.text, encoding="utf-8")
        return ""
    beside = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", step.line],
        cwd=folder,
        env={**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")
    printed = printed.replace(str(folder.resolve()), HERE)
    if done.returncode:
        raise RuntimeError(f"`{step.line}` ended with status {done.returncode}:\n{printed}")
    return printed


def refreshed(page: str, printed: list[str]) -> str:
    """The page with what its commands printed."""
    left = iter(printed)

    def block(found: re.Match[str]) -> str:
        if found["info"] != "console":
            return found[0]
        commands = re.findall(r"^\$ .*$", found["body"], flags=re.MULTILINE)
        body = "\n".join(part for line in commands for part in (line, next(left)) if part)
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", body))])  # longer than those printed
        return f"{fence}console\n{body}\n{fence}"

    return BLOCK.sub(block, page)


def main() -> int:
    """Run the page and refresh it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "tutorial", help="emptied before")
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    page, printed = PAGE.read_text(encoding="utf-8"), []
    for step in steps(page):
        began = time.monotonic()
        text = do(step, folder)
        if isinstance(step, Command):
            printed.append(text)
            print(f"{time.monotonic() - began:6.1f} s  {step.line}", flush=True)
    PAGE.write_text(refreshed(page, printed), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
