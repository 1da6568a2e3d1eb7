"""A tracker: a monitor that tells another program of a training, under names that stay the same.

Names are those of the lines of metrics.jsonl, joined by `/`, with the language after the signal or view:

    train/loss, train/grad_norm, train/lr, train/epoch
    signal/off_policy/loss, signal/off_policy/id/loss        and count, margin, ...
    rollout/y_tilde/length, rollout/y_tilde/id/share_cut     and rows, eos_rate, dropped
    measure/y_tilde/overlap, collapse/y_tilde/id/cut
    eval/loss, eval/signal/off_policy/id/loss
    seconds/student                                          of a step, mean over the interval
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dudi.errors import DudiError
from dudi.files import write_text
from dudi.training.monitors import Course, Monitor

RUNS = "trackers.json"
"""In a stage's folder: by tracker, which run of it this training is, so that a resumed one goes on in the same."""
PROJECT = "dudi"
"""What runs are kept under, where the tracker's own environment variable says nothing else."""
COLUMNS = ("step", "view", "language", "l_z", "prompt", "text", "finished")
"""Of the rollouts, as a table."""
Text = Mapping[str, Any]
"""A line of rollouts.jsonl."""


class Tracker(Monitor):
    """Tells one other program. Derived classes say how; `package` is what they import.

    Where it cannot begin, the training does not either. Where it fails later, that is said once and it hears no more:
    its metrics are in metrics.jsonl all the same.
    """

    package: ClassVar[str]

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self.texts: list[Text] = []
        self.seconds, self.steps = Counter[str](), 0
        self.listening = self.finished = False

    # ── what a tracker does ──────────────────────────────────────────────────────────────────────────────────────────
    @abstractmethod
    def open(self, title: str, course: Course, run: str | None) -> str | None:
        """Begin, under a title such as `mine/2-dudi`; returns which run it is. run: the one to go on with, if any."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float], texts: Sequence[Text]) -> None:
        """What an interval or an evaluation gave, by name; texts: rollouts since the last time."""

    @abstractmethod
    def shut(self, finished: bool) -> None:
        """The end. finished: the training came to its end too."""

    # ── what it hears ────────────────────────────────────────────────────────────────────────────────────────────────
    def begin(self, course: Course) -> None:
        """The run is opened, or gone on with."""
        file = course.folder / RUNS
        try:
            runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            title = f"{course.folder.resolve().parent.name}/{course.folder.name}"
            found = self.open(title, course, runs.get(self.name))
            if found is not None:
                write_text(file, json.dumps({**runs, self.name: found}, indent=1))
        except Exception as error:  # a library's own, of the network, of a file
            raise DudiError(
                f"training.report_to: {self.name} cannot begin ({_line(error)}): mend it, or leave it out with --set"
                " training.report_to=[]"
            ) from None
        self.listening = True

    def step(self, step: int, seconds: Mapping[str, float]) -> None:
        """Times are told once an interval."""
        self.seconds.update(seconds)
        self.steps += 1

    def rollout(self, line: Mapping[str, Any]) -> None:
        """So are texts."""
        self.texts.append(line)

    def log(self, line: Mapping[str, Any]) -> None:
        """All that is known of an interval, or of an evaluation."""
        values, texts = dict(named(line)), self.texts
        if "eval" not in line:
            values |= {f"seconds/{phase}": total / self.steps for phase, total in self.seconds.items()}
            self.texts, self.seconds, self.steps = [], Counter[str](), 0
        self._tell(lambda: self.write(line["step"], values, [] if "eval" in line else texts))

    def end(self, step: int) -> None:
        """It came to its end."""
        self.finished = True

    def close(self) -> None:
        """The run is closed, at the end of the training or where it broke off."""
        self._tell(lambda: self.shut(self.finished))
        self.listening = False

    def _tell(self, action: Callable[[], None]) -> None:
        if not self.listening:
            return
        try:
            action()
        except Exception as error:  # whatever the library makes of a network or a disk: no reason to stop a training
            self.listening = False
            self.say(f"  warning: {self.name} failed, and is told no more ({_line(error)}); metrics.jsonl has it all")


def named(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics.jsonl by name."""
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from _below(key, value)
        elif key != "step":
            yield f"train/{key}", float(value)


def _below(name: str, table: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _below(name if key == "by_language" else f"{name}/{key}", value)
        elif key != "weight":  # of the recipe, the same at every step
            yield f"{name}/{key}", float(value)


def as_text(line: Text) -> str:
    """A rollout as Markdown."""
    about = [f"to {line['l_z']}"] if line["l_z"] else []
    about += [] if line["finished"] else ["cut at the limit"]
    return "\n\n".join([_block(line["prompt"]), ", ".join(about) or "answer", _block(line["text"])]) + "\n"


def _block(text: str) -> str:
    return "    " + text.replace("\n", "\n    ")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted key, as texts."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
