"""What the tests of the lab share: broken language files, what was asked with which key, a build of seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dudi.lab import build as lab_build
from dudi.lab.plans import Build, Plan
from dudi.lab.tasks import TASKS, Key, Phrasings, Task
from dudi.lab.words import Words
from dudi.languages import LANGUAGES

EIGHT = tuple(LANGUAGES)
MICRO = Build(
    vocab=1024,
    documents=600,
    models={
        "student-small": Plan("qwen3", 32, 1, 6, 5e-3, (0.02, 0.02), rows=4),
        "student-gemma": Plan("gemma3", 32, 1, 6, 5e-3, (0.02, 0.02), rows=4),
        "teacher": Plan("qwen3", 32, 1, 6, 5e-3, (0.02, 0.02), teacher=True, rows=4, tuning=12),
    },
)
"""A build of seconds: its models know nothing at all."""


def build_micro(
    folder: Path, monkeypatch: pytest.MonkeyPatch, plan: Build = MICRO, seed: int = 0, **changes: Any
) -> Path:
    """`dudi lab build --tiny` with a smaller plan."""
    monkeypatch.setattr(lab_build, "TINY", plan)
    lab_build.build(folder, True, seed, changes.pop("say", lambda line: None), **changes)
    return folder


def lab_student(folder: Path) -> str:
    """The smallest student that the lab ships, as `dudi lab export` lays it out."""
    for name in ("student-small", "tokenizer"):
        shutil.copytree(lab_build.WEIGHTS / name, folder, dirs_exist_ok=True)
    return str(folder)


def toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """A table as TOML (JSON texts and lists are TOML)."""
    lines = [f"{json.dumps(k)} = {inline(v)}" for k, v in table.items() if not is_table(v)]
    head = [f"[{'.'.join(map(json.dumps, path))}]"] if path else []
    rest = [toml(v, (*path, k)) for k, v in table.items() if is_table(v)]
    return "\n".join([*head, *lines, *rest]) + "\n"


def is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" not in value


def inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {inline(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Asked:
    """One call of a task's `ask`."""

    task: str
    key: Key
    l: str
    phrasings: Phrasings

    @property
    def identity(self) -> tuple[str, Key, str]:
        return self.task, self.key, self.l


def record(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """From now on, every item that is asked, with its key."""
    calls: list[Asked] = []

    def recording(name: str, task: Task) -> Callable[[Words, Key], Phrasings]:
        def ask(words: Words, key: Key) -> Phrasings:
            found = task.ask(words, key)
            calls.append(Asked(name, key, words.code, found))
            return found

        return ask

    for name, task in list(TASKS.items()):
        monkeypatch.setitem(TASKS, name, replace(task, ask=recording(name, task)))
    return calls
