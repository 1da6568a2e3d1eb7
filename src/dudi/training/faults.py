"""What stops a run on purpose: a signal, a loss that is not finite, memory that is used up. On all processes together.

A process that raised alone would leave the others waiting for it. So what one of them finds is agreed on at the end of
a step (`anywhere`, `together`), and then every process stops in the same place, with the same checkpoint.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from dudi import processes
from dudi.errors import DudiError
from dudi.loss.objective import Objective
from dudi.rollouts import NotFinite
from dudi.training import checkpoints
from dudi.training.window import Window

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM is how schedulers and clouds announce the end; SIGUSR1 is what one asks Slurm to send some time before."""
ECHO = 5.0
"""Seconds in which a second SIGTERM is an echo: a scheduler signals all processes, and the launcher passes it on."""
NAMED = 8
"""Rows that an error names; the others are counted."""


class Diverged(DudiError):
    """The loss or its gradient is not finite."""

    status = 3


class OutOfMemory(DudiError):
    """Memory is used up."""

    status = 4


class Preempted(DudiError):
    """A signal stopped the run, which can be resumed from there. 143 = 128 + SIGTERM, as if the signal had ended it."""

    status = 143


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class Stop:
    """A signal that was noted: the run stops where it can be resumed. A second SIGTERM ends it immediately."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._terminated: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals instead of dying of them. Only a main thread can; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            now = time.monotonic()
            if self._terminated is not None and now - self._terminated > ECHO:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self._terminated = self._terminated or now
        if self.name is None:
            self.name = signal.Signals(number).name
            if os.environ.get("RANK", "0") == "0":  # os.write: a handler may interrupt a print
                os.write(2, f"dudi: {self.name}: stopping after this step; SIGTERM again stops immediately\n".encode())

    def noted(self) -> bool:
        """Whether this process was told to stop."""
        return self.name is not None

    def due(self) -> bool:
        """Whether any process was told to stop. All of them must ask, at the same place."""
        return processes.anywhere(self.noted())

    def preempted(self, where: str) -> Preempted:
        """The error to raise: where the run stopped, and what it can be resumed from."""
        return Preempted(f"stopped by {self.name or 'a signal to another process'} {where}; continue with --resume")


# ── a loss that is not finite ────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Fault:
    """What is not finite in a micro-batch: the signals, and the ids of the rows."""

    signals: tuple[str, ...]
    rows: tuple[str, ...]


def fault_of(result: Objective, window: Window, places: Sequence[int]) -> Fault | None:
    """What is not finite in a micro-batch with these rows of the window; None if its loss is finite."""
    if bool(torch.isfinite(result.loss)):
        return None
    bad: dict[str, set[int]] = {}
    for name, outcome in result.outcomes.items():
        bad[name] = set(outcome.row[~torch.isfinite(outcome.value) & (outcome.mask > 0)].tolist())
    rows = set().union(*bad.values()) or set(range(len(places)))  # or only their sum overflows: any may be the one
    named = tuple(window.rows[place].example.id for place in sorted(places[k] for k in rows))
    return Fault(tuple(name for name, found in bad.items() if found) or ("total",), named)


def stop_at_fault(fault: Fault | None, step: int, folder: Path) -> None:
    """Raise `Diverged` on all processes if any of them has a fault, before the step changes a weight."""
    if not processes.anywhere(fault is not None):
        return
    faults = [found for found in processes.gathered(fault) if found is not None]
    signals = ", ".join(dict.fromkeys(name for found in faults for name in found.signals))
    rows = [row for found in faults for row in found.rows]
    raise Diverged(f"the loss is not finite at step {step} (signal {signals}; rows {_some(rows)}): {_advice(folder)}")


@contextmanager
def finite_rollouts(step: int, folder: Path) -> Iterator[None]:
    """Raise `Diverged` where the student's weights are so broken that nothing can be sampled from them."""
    try:
        yield
    except NotFinite as error:
        raise Diverged(f"at step {step}: {error}: {_advice(folder)}") from error


def stop_at_gradient(norm: float, rows: Sequence[str], step: int, folder: Path) -> None:
    """Raise `Diverged` if the gradient norm, which all processes share, is not finite though the loss is."""
    if torch.isfinite(torch.tensor(norm)):
        return
    everyone = [row for found in processes.gathered(tuple(rows)) for row in found]
    raise Diverged(
        f"the gradient is not finite at step {step}, though the loss is (rows {_some(everyone)}): {_advice(folder)}"
    )


def _some(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return ", ".join(rows[:NAMED]) + more


def _advice(folder: Path) -> str:
    saved = checkpoints.complete(folder)
    kept = f"{saved[-1].name} is kept" if saved else "there is no checkpoint yet"
    return f"{kept}; lower training.lr or look at these rows"


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────
_ROWS = "lower training.micro_batch or training.micro_batch_tokens (the result stays the same)"
LOWER = {
    "rollout": "lower limits.rollout or training.batch: all responses of a step are sampled in one call",
    "teacher": _ROWS,
    "reference": _ROWS,
    "student": f"{_ROWS} or training.head_chunk, or set training.gradient_checkpointing",
    "backward": f"{_ROWS} or training.head_chunk, or set training.gradient_checkpointing",
    "evaluation": f"{_ROWS} or limits.rollout",
    "caching": f'{_ROWS}; if it is not the device\'s memory, set training.cache = "disk"',
    "optimizer": "the student's gradients and optimizer states do not fit: take a smaller models.student",
    "generation": "lower limits.rollout or training.batch: a batch is sampled in one call",
    "loading": "the models do not fit: take a smaller models.teacher or models.student, or set models.precision",
}
"""By phase: the settings that its memory grows with."""

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
_AMOUNT = re.compile(r"tried to allocate ([\d.]+) ?([KMGT]iB|bytes)", re.IGNORECASE)
_DEVICE = re.compile(r"(GPU \d+) has a total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")


@contextmanager
def memory(phase: str) -> Iterator[None]:
    """Memory that is used up, as one line: in which phase, the amount, and what to lower. Inner phases come first."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(s in text for s in _SIGNS):
            raise
        raise OutOfMemory(f"out of memory in phase {phase}{_amount(text)}: {LOWER[phase]}") from error


def _amount(text: str) -> str:
    found, device = _AMOUNT.search(text), _DEVICE.search(text)
    wanted = ""
    if found:
        number, unit = found.groups()
        wanted = f"{number} {unit}" if unit.lower() != "bytes" else f"{int(float(number)) / 2**30:.2f} GiB"
        wanted = f" ({wanted} more were asked for"
        wanted += f"; {device[1]} has {device[2]}, {device[3]} of it free)" if device else ")"
    return wanted
