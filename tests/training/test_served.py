"""Many rows asked at a time: what is kept when it stops in the middle, and that the same batches come of it."""

from __future__ import annotations

import threading
from pathlib import Path

import kit
import pytest
from kit.runs import digests

from dudi.errors import DudiError
from dudi.recipe.schema import Limits
from dudi.rollouts import Request, Rollout
from dudi.training.served import Asking, generate_served
from dudi.training.stored import read_responses
from dudi.training.window import Row

ROWS = [Row(index, example, (index, 7), (2,), False) for index, example in enumerate(kit.short_rows(14), 3)]
KEY = ("teacher", "train", 0, 0)
BATCH = 4


class Stopped(Exception):
    """The run is to stop."""


class Model:
    """Answers a request with its own key; `last`: after so many, the run is told to stop."""

    def __init__(self, last: int | None = None, at_once: int = 3, fault: Exception | None = None) -> None:
        self.last, self.at_once, self.fault = last, at_once, fault
        self.asked: list[int] = []
        self.lock = threading.Lock()
        self.given_up = False

    def ask(self, request: Request) -> Rollout:
        with self.lock:
            self.asked.append(int(request.key[-1]))
            if self.fault is not None and len(self.asked) > (self.last or 0):
                raise self.fault
        return Rollout((*request.prompt, request.limit), True)

    def halted(self) -> bool:
        return self.fault is None and self.last is not None and len(self.asked) >= self.last

    def give_up(self) -> None:
        self.given_up = True

    def write(self, folder: Path) -> None:
        def progress(done: int, batches: int) -> None:
            if self.halted():
                raise Stopped

        asking = Asking(self.ask, self.at_once, self.give_up, self.halted)
        generate_served(asking, ROWS, KEY, Limits(rollout={"default": 8, "th": 5}), BATCH, folder, progress)


@pytest.fixture
def straight(tmp_path: Path) -> Path:
    folder = tmp_path / "straight"
    Model().write(folder)
    found = read_responses(folder, ROWS, BATCH)
    assert found is not None
    assert {i: r.ids for i, r in found.items()} == {r.index: (*r.x, 5 if r.example.l == "th" else 8) for r in ROWS}
    assert sorted(digests(folder)) == [f"batch-00000{n}.jsonl" for n in range(4)]
    return folder


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("last", [1, 5, 13])
def test_what_is_answered_is_kept_when_it_is_to_stop(at_once: int, last: int, straight: Path, tmp_path: Path) -> None:
    first, then = Model(last, at_once), Model(at_once=5 - min(at_once, 4))
    with pytest.raises(Stopped):
        first.write(tmp_path / "run")
    assert first.given_up and last <= len(first.asked) <= max(last + at_once, 14)
    then.write(tmp_path / "run")
    assert sorted(first.asked + then.asked) == [row.index for row in ROWS], "each once"
    assert digests(tmp_path / "run") == digests(straight)


def test_a_server_that_fails_leaves_what_it_answered(straight: Path, tmp_path: Path) -> None:
    first, then = Model(6, at_once=1, fault=DudiError("gone")), Model()
    with pytest.raises(DudiError, match="gone"):
        first.write(tmp_path / "run")
    assert first.given_up
    then.write(tmp_path / "run")
    assert sorted(first.asked[:6] + then.asked) == [row.index for row in ROWS]
    assert digests(tmp_path / "run") == digests(straight)


def test_any_other_fault_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Model(0, fault=ZeroDivisionError()).write(tmp_path / "run")
    assert not digests(tmp_path / "run")


def test_a_line_that_somebody_changed_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows-0.jsonl").write_text('{"index": 3, "ids": [1], "finished": true}\n{"index": 4, "ids": "1"}\n')
    with pytest.raises(DudiError, match=r"rows-0.jsonl: line 2: ids: expected a list, found '1'"):
        Model().write(tmp_path)
