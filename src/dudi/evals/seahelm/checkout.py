"""A checkout of SEA-HELM with its own Python: which version it is, and `bridge.py` run in it. No torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dudi.errors import DudiError, unknown
from dudi.files import write_text

BRIDGE = Path(__file__).with_name("bridge.py")
KNOWN = {"6844e6c": "v1.2", "41cbb6a": "before v1.2"}
"""Commits that dudi has been run with; the paper most likely used the second."""
FILES = ("src/seahelm_evaluation.py", "seahelm_tasks/task_config.yaml", "seahelm_tasks/constants.yaml")
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}
"""Import name -> name in the package index, where they differ by more than a hyphen."""


@dataclass(frozen=True)
class Checkout:
    """SEA-HELM's folder, its commit, and the Python that runs it."""

    folder: Path
    python: str
    commit: str
    changed: bool
    """Whether files differ from the commit."""

    @property
    def version(self) -> str:
        """The commit, short; with + where files were changed."""
        return self.commit[:7] + ("+" if self.changed else "")

    @property
    def remark(self) -> str:
        """What there is to say of the version."""
        known = KNOWN.get(self.commit[:7])
        text = f"SEA-HELM {self.version}" + (f" ({known})" if known else "")
        if self.changed:
            text += "; files of the checkout differ from that commit"
        if known is None:
            text += f"; dudi has been run with {' and '.join(KNOWN)} only"
        return text

    def call(self, command: str, spec: Mapping[str, Any], log: Path) -> Iterator[dict[str, Any]]:
        """The events of one command of `bridge.py`; what SEA-HELM prints goes into `log`. Raises `DudiError`.

        The process ends with this one: its standard input closes.
        """
        file = log.with_suffix(".json")
        write_text(file, json.dumps(spec, ensure_ascii=False))
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)  # ours is of another Python
        if command == "check":
            environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        line = [self.python, str(BRIDGE), command, str(file)]
        with log.open("w", encoding="utf-8") as told:
            process = _started(line, cwd=self.folder, env=environment, stderr=told)
            try:
                assert process.stdout is not None
                for text in process.stdout:
                    event = _event(text, log)
                    _refuse(event, self)
                    yield event
                if process.wait() != 0:
                    raise DudiError(f"SEA-HELM's process ended with status {process.returncode}: see {log}")
            finally:
                if process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()

    def install(self, modules: list[str]) -> str:
        """The command that installs modules, in the versions that the checkout asks for."""
        pins = _pins(self.folder)
        names = [DISTRIBUTIONS.get(module.partition(".")[0], module.partition(".")[0]) for module in modules]
        wanted = [pins.get(_plain(name), name) for name in dict.fromkeys(names)]
        return f"{self.python} -m pip install {' '.join(repr(one) for one in wanted)}"


def open_checkout(folder: Path | None, python: str | None) -> Checkout:
    """The checkout in a folder. Raises `DudiError` where it is none."""
    if folder is None:
        raise DudiError(
            "--with seahelm needs --checkout DIR: git clone https://github.com/aisingapore/SEA-HELM DIR, and there"
            " git checkout 41cbb6a (what the paper most likely used) or 6844e6c (v1.2)"
        )
    folder = folder.expanduser().absolute()
    for name in FILES:
        if not (folder / name).is_file():
            raise DudiError(f"--checkout {str(folder)!r}: no checkout of SEA-HELM: {name} is missing")
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "src", "seahelm_tasks")
    return Checkout(folder, python or sys.executable, commit, bool(changed))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise DudiError("git is not installed: it says which version of SEA-HELM a checkout is") from None
    except subprocess.CalledProcessError as error:
        raise DudiError(f"--checkout {str(folder)!r}: git says: {error.stderr.strip()}") from None
    return done.stdout.strip()


def _started(line: list[str], **how: Any) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **how
        )
    except OSError as error:
        raise DudiError(f"--python {line[0]!r}: {error.strerror or error}") from None


def _event(text: str, log: Path) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        raise DudiError(f"--python: expected events of dudi's script, found {text.strip()[:80]!r}; see {log}")
    return event


def _refuse(event: Mapping[str, Any], checkout: Checkout) -> None:
    """Raises `DudiError` for what ends a command."""
    if event["event"] == "lacking":
        modules = ", ".join(event["modules"])
        raise DudiError(f"SEA-HELM's Python lacks {modules}: {checkout.install(event['modules'])}")
    if event["event"] == "unknown":
        sets = f"; its sets: {', '.join(event['sets'])}"
        raise DudiError(f"--tasks: SEA-HELM {checkout.version}: {_short(event['name'], event['tasks'])}{sets}")


def _short(name: str, tasks: list[str]) -> str:
    """As `unknown` says it, without hundreds of choices."""
    return unknown(name, tasks, "set, task or group").partition(" choices:")[0].rstrip(";")


def _pins(folder: Path) -> dict[str, str]:
    """Package -> requirement, of the checkout's pyproject.toml."""
    import tomllib

    try:
        table = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        listed = table["project"]["dependencies"]
    except (OSError, ValueError, KeyError):
        return {}
    return {_plain(one): one for one in listed}


def _plain(requirement: str) -> str:
    """The name in a requirement, as the index compares it."""
    for sign in "[=<>!~; ":
        requirement = requirement.partition(sign)[0]
    return requirement.lower().replace("_", "-")
