"""What is frozen is computed once: what teacher and R say of responses that are the same in every epoch.

Of y (and of what a generation stage wrote) the teacher's last hidden states and R's log p(y | x) never change. Before
the first step every row is read, in groups that depend on the rows and on `training.micro_batch` alone: not on the
step, the epoch, the number of processes or which of them reads. So a value has the same bits whoever computes it and
whenever, and a run that was killed and resumed is the straight one, whether its cache was kept or is made anew.

In the trainer's own micro-batches a row is padded otherwise and stands beside other rows: the same values up to
rounding, and the same bits where `micro_batch` is 1, unless a response shares its prompt there (`dudi.loss.prefix`).
What is sampled changes with the student, and is never kept.
"""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dudi import processes
from dudi.errors import DudiError
from dudi.files import write_bytes
from dudi.loss.scores import Block
from dudi.models.reader import as_bytes
from dudi.signals import Signal, View, compared, judged
from dudi.training import checkpoints, faults
from dudi.training.job import Job
from dudi.training.window import Item, Window, collate

FOLDER = "cache"
_FORM = 2
"""Of the files; raised when what is in them, or how it is computed, changes."""


@dataclass(frozen=True)
class Frozen:
    """What the models that do not learn say of a micro-batch, by view: the teacher's hidden states [N, Ht] at the
    response tokens, and R's log R(.|x) [rows]."""

    teacher: dict[View, Tensor]
    reference: dict[View, Tensor]


Read = Callable[[Mapping[View, Block], Sequence[View], Sequence[View]], Frozen]
"""Ask the teacher about some views of a micro-batch, and R about others."""


@dataclass(frozen=True)
class Group:
    """Rows that are read together."""

    window: Window
    places: list[int]

    def key(self, identity: str) -> str:
        """The SHA-256 of what its values depend on: who reads (`identity`), and the token ids that are read."""
        digest = hashlib.sha256(f"{_FORM} {identity}".encode())
        for view, items in self.window.items.items():
            digest.update(view.name.encode())
            for item in (items[place] for place in self.places):
                assert item is not None, "a fixed view leaves out no row"
                for ids in (item.student, item.response):
                    digest.update(array("q", [len(ids), *ids]).tobytes())
        return digest.hexdigest()


class Store(Protocol):
    """Where the tensors of groups are kept, by the groups' numbers."""

    def missing(self, groups: Sequence[Group]) -> list[int]:
        """The groups whose tensors are not there; the same answer on all processes."""
        ...

    def put(self, found: tuple[int, dict[str, Tensor]] | None) -> None:
        """Keep what this process has read, if anything. All processes together."""
        ...

    def part(self, number: int, name: str, where: slice) -> Tensor:
        """Some rows of a tensor."""
        ...


class InMemory:
    """All groups in the memory of each process: an epoch deals the rows to the processes anew."""

    def __init__(self) -> None:
        self._groups: dict[int, dict[str, Tensor]] = {}

    def missing(self, groups: Sequence[Group]) -> list[int]:
        """All of them, at each start."""
        return [*range(len(groups))]

    def put(self, found: tuple[int, dict[str, Tensor]] | None) -> None:
        """What one has read, all keep."""
        self._groups.update(one for one in processes.gathered(found) if one is not None)

    def part(self, number: int, name: str, where: slice) -> Tensor:
        """A view of what is kept."""
        return self._groups[number][name][where]


class OnDisk:
    """Each group in a file that all processes read: whole or absent, with its key and a checksum in its header.

    A file is read in full when a training starts. One that is damaged, or of other weights, rows or limits, is written
    again, and what is no group's is removed.
    """

    def __init__(self, folder: Path, identity: Callable[[], str], say: Callable[[str], None]) -> None:
        self.folder, self.identity, self.say = folder, identity, say
        self._keys: list[str] = []

    def missing(self, groups: Sequence[Group]) -> list[int]:
        """Those without a sound file; the processes share the reading."""
        identity = self.identity()
        self._keys = [group.key(identity) for group in groups]
        rank, world = processes.place()
        refused: list[int] = []
        absent: list[int] = []
        with processes.together(), checkpoints.writing(self.folder):
            if processes.is_first():
                wanted = {self._file(number) for number in range(len(groups))}
                for file in {*self.folder.glob("*")} - wanted:
                    file.unlink()
        for number in range(rank, len(groups), world):
            if not self._file(number).exists():
                absent.append(number)
            elif not self._sound(number):
                refused.append(number)
        refused = sorted(number for found in processes.gathered(refused) for number in found)
        if refused:
            self.say(
                f"  cache: {len(refused)} of {len(groups)} files in {self.folder} are damaged or of other models, rows"
                " or limits: computed again"
            )
        return sorted([*refused, *(number for found in processes.gathered(absent) for number in found)])

    def put(self, found: tuple[int, dict[str, Tensor]] | None) -> None:
        """One file."""
        with processes.together(), checkpoints.writing(self.folder):
            if found is not None:
                number, tensors = found
                about = {"key": self._keys[number], "sha256": _sum(tensors)}
                write_bytes(self._file(number), save(tensors, metadata=about))

    def part(self, number: int, name: str, where: slice) -> Tensor:
        """Some rows, and no more, from the file."""
        try:
            with safe_open(self._file(number), framework="pt") as file:
                found: Tensor = file.get_slice(name)[where]
                return found
        except (OSError, SafetensorError) as error:
            raise DudiError(
                f"{self._file(number)}: cannot be read, and was whole when this training started"
                f" ({type(error).__name__}): continue with --resume, which computes it again"
            ) from error

    def _sound(self, number: int) -> bool:
        """Whether a file is what this training would write."""
        try:
            with safe_open(self._file(number), framework="pt") as file:
                about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return False
        return bool(about == {"key": self._keys[number], "sha256": _sum(tensors)})

    def _file(self, number: int) -> Path:
        return self.folder / f"group-{number:06d}.safetensors"


class Cache:
    """What teacher and R say of a training's rows: kept, or, where `training.cache` is off, read each time.

    read: asks the models; identity: tells who they are.
    """

    def __init__(self, job: Job, read: Read, identity: Callable[[], str], say: Callable[[str], None]) -> None:
        self.job, self.read = job, read
        on, signals = job.training.cache != "off", job.method.signals
        frozen = job.teacher is not None  # a moving average is not
        self.judged = tuple(view for view in judged(signals) if on and frozen and view.fixed)
        self.compared = tuple(view for view in compared(signals) if on and view.fixed)
        on_disk = job.training.cache == "disk"
        self.store: Store = OnDisk(job.folder / FOLDER, identity, say) if on_disk else InMemory()
        self._where: dict[tuple[View, tuple[int, ...], tuple[int, ...]], tuple[int, slice, slice]] = {}

    @property
    def empty(self) -> bool:
        """Whether there is something to keep, and it has not been read yet."""
        return bool(self.judged or self.compared) and not self._where

    def fill(self, stop: faults.Stop, device: torch.device) -> None:
        """Read all rows, the processes in turns. A stop by a signal keeps the files that are written.

        Every process reads equally often, so that a teacher may be spread over them.
        """
        groups = self._groups()
        missing = self.store.missing(groups)
        rank, world = processes.place()
        for start in range(0, len(missing), world):
            if stop.due():
                raise stop.preempted("while the cache was filled")
            mine = missing[start + rank : start + rank + 1] if start + rank < len(missing) else []
            blocks: dict[View, Block] = {}
            for number in mine:
                blocks = collate(groups[number].window, groups[number].places, self.job.builder.chat.pad, device)
            found = self.read(blocks, self.judged, self.compared)
            tensors = {f"teacher.{view.name}": tensor.cpu() for view, tensor in found.teacher.items()}
            tensors |= {f"reference.{view.name}": tensor.cpu() for view, tensor in found.reference.items()}
            self.store.put((mine[0], tensors) if mine else None)
        for number, group in enumerate(groups):
            self._enter(number, group)

    def _groups(self) -> list[Group]:
        """All rows, those of the training first, in micro-batches of similar lengths."""
        job, training = self.job, self.job.training
        windows = [
            builder.fixed(job.method.signals, rows)
            for builder, rows in ((job.builder, job.rows), (job.eval_builder, job.eval_rows))
        ]
        kept = {*self.judged, *self.compared}
        for window in windows:
            window.items = {view: items for view, items in window.items.items() if view in kept}
        return [
            Group(window, places)
            for window in windows
            for places in window.micro_batches(training.micro_batch, training.micro_batch_tokens)
        ]

    def _enter(self, number: int, group: Group) -> None:
        """Note where a group's rows are."""
        for view, items in group.window.items.items():
            start = 0
            for k, item in enumerate(items[place] for place in group.places):
                assert item is not None
                end = start + len(item.response)
                self._where[view, item.student, item.response] = number, slice(start, end), slice(k, k + 1)
                start = end

    def of(
        self, window: Window, places: Sequence[int], blocks: Mapping[View, Block], signals: Sequence[Signal]
    ) -> Frozen:
        """What teacher and R say of a micro-batch: what is kept of it, and the rest, read now."""
        asked, against = judged(signals), compared(signals)
        found = self.read(
            blocks,
            [view for view in asked if view not in self.judged],
            [view for view in against if view not in self.compared],
        )
        for view, block in blocks.items():
            items = [window.items[view][place] for place in places]
            if view in asked and view in self.judged:
                found.teacher[view] = self._kept("teacher", view, items).to(block.labels.device)
            if view in against and view in self.compared:
                found.reference[view] = self._kept("reference", view, items).to(block.labels.device)
        return found

    def _kept(self, who: str, view: View, items: Sequence[Item | None]) -> Tensor:
        """One model's values, one row after the other."""
        parts = []
        for item in items:
            assert item is not None, "a fixed view leaves out no row"
            number, tokens, row = self._where[view, item.student, item.response]
            parts.append(self.store.part(number, f"{who}.{view.name}", tokens if who == "teacher" else row))
        return torch.cat(parts)


def remove(stage: Path) -> None:
    """The cache of a training that has its result."""
    shutil.rmtree(stage / FOLDER, ignore_errors=True)


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(as_bytes(tensors[name]))
    return digest.hexdigest()
