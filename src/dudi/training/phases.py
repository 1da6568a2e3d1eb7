"""Phases of a run: the seconds and the peak of memory of each, and a line for those that keep one waiting."""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dudi.files import write_text

FILE = "phases.json"
LONG, AGAIN = 10.0, 60.0
"""Seconds after which a phase says that it still runs, and those between its further lines."""


class Phases:
    """Exclusive wall-clock seconds and peaks of memory by phase.

    Phases of a step (rollout, teacher, reference, student, backward, optimizer) are `called`, phases outside of steps
    (reading, tokenizing, loading, evaluation, saving) are `outside`: they take in whatever runs within them.

    The peak is what torch had allocated on a GPU, and the resident memory of the process on a CPU. (The kernel counts
    that from a mark that Linux can set anew; elsewhere it is the peak since the process began.)
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.say = say
        self.seconds: dict[str, float] = {}
        self.outer: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self._stack: list[str] = []
        self._whole = False
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A phase of a step; an inner phase is taken out of its outer one."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """Enter a phase; `end` leaves it."""
        if not self._whole:
            self._switch(name)

    def end(self) -> None:
        """Leave the phase that was entered last."""
        if not self._whole:
            self._switch(None)

    @contextmanager
    def outside(self, name: str, what: str = "") -> Iterator[None]:
        """A phase outside of steps; `what` it does is said once it takes long."""
        if self._whole:  # what is loaded or saved within another is a part of it
            yield
            return
        self._switch(name)
        before, self.seconds = self.seconds, {}
        self._whole = True
        try:
            with announced(what or name, self.say):
                yield
        finally:
            self._whole = False
            self._switch(None)
            self.outer[name] = self.outer.get(name, 0.0) + self.seconds.pop(name)
            self.seconds = before

    @property
    def now(self) -> str:
        """The phase that runs."""
        return self._stack[-1] if self._stack else ""

    def take(self) -> dict[str, float]:
        """The seconds of steps since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def settle(self, folder: Path) -> None:
        """Add what came since the last call to the folder's `phases.json`: {"seconds": outside of steps, "memory":
        bytes at the peak}, over all processes that ever worked on it."""
        kept = read(folder)
        for name, seconds in self.outer.items():
            kept["seconds"][name] = round(kept["seconds"].get(name, 0.0) + seconds, 4)
        for name, peak in self.peaks.items():
            kept["memory"][name] = max(kept["memory"].get(name, 0), peak)
        self.outer, self.peaks = {}, {}
        write_text(folder / FILE, json.dumps(kept, indent=1))

    def _switch(self, name: str | None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # otherwise the time of a kernel is charged to whoever waits for it
        at = time.perf_counter()
        if self._stack:
            now = self._stack[-1]
            self.seconds[now] = self.seconds.get(now, 0.0) + at - self._since
            self.peaks[now] = max(self.peaks.get(now, 0), _peak())
        _reset()
        self._since = time.perf_counter()
        if name is None:
            self._stack.pop()
        else:
            self._stack.append(name)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """What `settle` wrote; empty tables before."""
    file = folder / FILE
    found: dict[str, dict[str, Any]] = {"seconds": {}, "memory": {}}
    return {**found, **json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else found


@contextmanager
def announced(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Says that something still runs after some seconds, and now and then later; at its end, how long it took."""
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        wait = LONG
        while not over.wait(wait):
            say(f"  {what}: {time.monotonic() - began:.0f} s so far")
            wait = AGAIN

    waiting = threading.Thread(target=tell, daemon=True, name=what)
    waiting.start()
    try:
        yield
    finally:
        over.set()
        waiting.join()
    if time.monotonic() - began >= LONG:
        say(f"  {what}: {time.monotonic() - began:.0f} s")


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────
_STATUS, _MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LARGE = 1 << 30
"""Bytes from which on a training gives back what its backward pass freed. A smaller one would spend a fifth of its time
on mapping the same memory again, step after step; in a larger one, big blocks are mapped each time anyway."""


def trim() -> None:
    """Give back to the system what was freed: glibc keeps it, and the activations of a backward pass would lie beside
    the optimizer's memory. Where there is another allocator, or the memory is a GPU's, nothing is done."""
    if _LIBC is not None and not torch.cuda.is_available():
        _LIBC.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    found = ctypes.CDLL(None) if sys.platform == "linux" else None
    return found if hasattr(found, "malloc_trim") else None


_LIBC = _libc()


def _peak() -> int:
    """Bytes at the peak since `_reset`."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if _MARK.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _MARK.write_text("5")
    except OSError:  # not Linux, or not allowed: then the peak is that since the process began
        return
