"""SEA-Instruct-2602: one language checked in full, or sampled with its shares of domains, tasks, complexities kept.

The sample (paper section 4.1) is drawn in two passes that never hold a file. The first reads only the quality and
stratum columns and orders each stratum's rows by a random number that is a pure function of (seed, language, row
number). The second reads `conversations` of the first rows of each order only. A row that turns out broken, in Zawgyi
encoding (left out and counted, never converted), or a repetition of one already taken is passed over for the next of
its stratum, and a stratum that has no more gives its places to the others in proportion.

Duplicates are told by content (roles and texts), whatever their `conversations_id`: rows that share an id and differ
in content are different rows, and rows of the same content under two ids are one row.

Memory: about 20 bytes a row of the data, the rows drawn with their spares, and one record batch
(`source.BATCH_BYTES`, decoded a few times over); `MAX_MEMORY` in all beside the rows themselves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dudi.data.conversation import RowError, fingerprint, is_zawgyi
from dudi.data.language_files import CONVERSATIONS, LanguageFiles
from dudi.data.quality import STRATUM, QualityFilter, StratumIndex
from dudi.data.report import LanguageReport
from dudi.data.strata import Strata, allocate
from dudi.errors import DudiError
from dudi.example import Example
from dudi.recipe.schema import Data

MAX_MEMORY = 300 << 20
"""Bytes that reading one language may take beside the rows returned, whatever the size of its files."""


@dataclass
class Drawn:
    """Rows of one language, in file order, and where they came from."""

    train: list[Example] = field(default_factory=list)
    eval: list[Example] = field(default_factory=list)
    report: LanguageReport = field(default_factory=LanguageReport)
    strata: list[dict[str, Any]] = field(default_factory=list)
    """Each stratum with its rows before (after the filter) and in the evaluation and training samples."""


def check_language(
    files: LanguageFiles,
    data: Data,
    look: Callable[[Example], None] | None = None,
    kept: set[int] | None = None,
) -> LanguageReport:
    """Every row of a language, nothing drawn: content first, then the quality filter. About 100 bytes a row.

    look: is shown every row that is kept. kept: fingerprints of rows kept before, added to.
    """
    files.require(data, sampled=False)
    quality = QualityFilter(files.language, data.quality_filter, files.columns)
    report = LanguageReport()
    kept = set() if kept is None else kept
    dropped: set[int] = set()
    for path in files.paths:
        for first, batch in files.source.batches(path, (CONVERSATIONS, *quality.columns)):
            failed = quality.failed(batch)
            report.read += batch.num_rows
            for i, scalar in enumerate(batch.column(CONVERSATIONS)):
                example = files.example(scalar, path, first + i)
                if isinstance(example, RowError):
                    report.add_broken(example.reason, files.fault(example, path, first + i))
                elif _keep(example, quality.reason(failed[i]), report, kept, dropped) and look is not None:
                    look(example)
    return report


def _keep(example: Example, reason: str | None, report: LanguageReport, kept: set[int], dropped: set[int]) -> bool:
    """Whether a row is kept; it is counted under what became of it."""
    key = fingerprint(example)
    zawgyi = is_zawgyi(example)
    # A repetition of a row that was left out is a duplicate too, unless this copy would be kept.
    if key in kept or (key in dropped and (zawgyi or reason)):
        report.duplicated += 1
    elif zawgyi:
        dropped.add(key)
        report.zawgyi += 1
    elif reason:
        dropped.add(key)
        report.filtered[reason] += 1
    else:
        kept.add(key)
        report.kept += 1
        return True
    return False


def load_language(files: LanguageFiles, data: Data, seed: int, seen: set[int]) -> Drawn:
    """The evaluation and training rows of a language. `seen`: fingerprints already taken, added to.

    The evaluation rows are drawn first, so that they do not change with the number of training rows. Without
    `rows_per_language` every row that passes is taken, and the report is that of `check_language`. Raises `DudiError`
    for unreadable files, and for the first broken row where `bad_rows` is "error".
    """
    drawn = Drawn()
    sampled = data.rows_per_language is not None or data.eval_rows_per_language > 0
    files.require(data, sampled)
    quality = QualityFilter(files.language, data.quality_filter, files.columns)
    strata = _survey(files, quality, STRATUM if sampled else (), seed, drawn.report)
    draw = _Draw(files, strata, seed, seen, drawn.report, strict=data.bad_rows == "error")
    held_out = draw.take(data.eval_rows_per_language, "eval")
    wanted = sum(strata.counts) if data.rows_per_language is None else data.rows_per_language
    train = draw.take(wanted, "train")
    if data.rows_per_language is None:  # every row is taken, so every row is accounted for as `check` does
        drawn.report = check_language(files, data)
        drawn.report.duplicated += drawn.report.kept - len(held_out) - len(train)  # those met in another language
    drawn.eval = [row.example for row in sorted(held_out, key=lambda row: row.number)]
    drawn.train = [row.example for row in sorted(train, key=lambda row: row.number)]
    drawn.report.eval, drawn.report.kept, drawn.report.undrawn = len(held_out), len(train), draw.left
    of_eval, of_train = Counter(row.stratum for row in held_out), Counter(row.stratum for row in train)
    drawn.strata = [
        {"stratum": list(name), "before": before, "eval": of_eval[i], "train": of_train[i]}
        for i, (name, before) in enumerate(zip(strata.names, strata.counts, strict=True))
        if before
    ]
    return drawn


def _survey(
    files: LanguageFiles, quality: QualityFilter, columns: tuple[str, ...], seed: int, report: LanguageReport
) -> Strata:
    """The first pass: the stratum of every row that passes the filter, from the describing columns alone."""
    index = StratumIndex()
    parts: list[npt.NDArray[np.int32]] = []
    needed = tuple(dict.fromkeys((*quality.columns, *columns)))
    for path, groups in zip(files.paths, files.row_groups, strict=True):
        report.read += sum(groups)
        if not needed:  # neither filter nor strata: nothing to read
            parts.append(np.full(sum(groups), index.number(()), dtype=np.int32))
            continue
        for _, batch in files.source.batches(path, needed):
            failed = quality.failed(batch)
            quality.count(failed, report.filtered)
            parts.append(np.where(failed == 0, index.of(batch, columns), np.int32(-1)).astype(np.int32))
    whole = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return Strata(whole, index.names, "sample", seed, files.language)


@dataclass(frozen=True)
class _Row:
    stratum: int
    number: int
    example: Example


class _Draw:
    """Takes rows from the strata's orders, reading their conversations in as few passes as it can."""

    def __init__(
        self, files: LanguageFiles, strata: Strata, seed: int, seen: set[int], report: LanguageReport, strict: bool
    ) -> None:
        self._files, self._strata, self._key = files, strata, (seed, files.language)
        self._seen, self._report, self._strict = seen, report, strict
        self._next = [0] * len(strata.queues)
        self._starts = np.concatenate(([0], np.cumsum([sum(groups) for groups in files.row_groups]))).tolist()
        self._cache: dict[int, Example | RowError] = {}

    @property
    def left(self) -> int:
        """Rows never looked at."""
        return sum(self._remaining())

    def _remaining(self) -> list[int]:
        return [count - done for count, done in zip(self._strata.counts, self._next, strict=True)]

    def take(self, wanted: int, purpose: str) -> list[_Row]:
        """The next rows of each stratum in proportion to what it has left; fewer than wanted if there are no more."""
        taken: list[_Row] = []
        turn = 0
        while len(taken) < wanted and self.left:
            remaining = self._remaining()
            total = min(wanted - len(taken), sum(remaining))
            need = allocate(remaining, total, "strata", *self._key, purpose, turn)
            while self._fetch(need):
                for stratum in range(len(need)):
                    need[stratum] -= self._advance(stratum, need[stratum], taken)
            turn += 1
        return taken

    def _advance(self, stratum: int, need: int, taken: list[_Row]) -> int:
        """Take up to `need` good rows of one stratum, among those fetched; the number taken."""
        queue, before = self._strata.queues[stratum], len(taken)
        while len(taken) - before < need and self._next[stratum] < len(queue):
            number = int(queue[self._next[stratum]])
            if number not in self._cache:
                break
            self._next[stratum] += 1
            example = self._accepted(self._cache.pop(number), number)
            if example is not None:
                taken.append(_Row(stratum, number, example))
        return len(taken) - before

    def _accepted(self, example: Example | RowError, number: int) -> Example | None:
        if isinstance(example, RowError):
            path, row = self._place(number)
            line = self._files.fault(example, path, row)
            if self._strict:
                raise DudiError(line)
            self._report.add_broken(example.reason, line)
            return None
        key = fingerprint(example)
        if key in self._seen:
            self._report.duplicated += 1
            return None
        if is_zawgyi(example):
            self._report.zawgyi += 1
            return None
        self._seen.add(key)
        return example

    def _place(self, number: int) -> tuple[str, int]:
        file = bisect_right(self._starts, number) - 1
        return self._files.paths[file], number - self._starts[file]

    def _fetch(self, need: list[int]) -> bool:
        """Read the conversations that `need` asks for, with spares for those that fall out; whether any is needed."""
        numbers: list[int] = []
        any_needed = False
        for queue, start, count in zip(self._strata.queues, self._next, need, strict=True):
            if count and start < len(queue):
                any_needed = True
                wanted = [int(number) for number in queue[start : start + count + max(4, count // 10)]]
                if any(number not in self._cache for number in wanted[:count]):
                    numbers += [number for number in wanted if number not in self._cache]
        if numbers:
            self._read(np.array(sorted(numbers), dtype=np.int64))
        return any_needed

    def _read(self, numbers: npt.NDArray[np.int64]) -> None:
        """The second pass: only `conversations`, only row groups that hold a wanted row."""
        for file, (start, end) in enumerate(pairwise(self._starts)):
            inside = numbers[(numbers >= start) & (numbers < end)] - start
            if len(inside):
                self._read_file(file, inside)

    def _read_file(self, file: int, rows: npt.NDArray[np.int64]) -> None:
        path, start = self._files.paths[file], self._starts[file]
        ends = np.cumsum(self._files.row_groups[file])
        groups = np.unique(np.searchsorted(ends, rows, side="right")).tolist()
        for first, batch in self._files.source.batches(path, (CONVERSATIONS,), groups):
            column = batch.column(CONVERSATIONS)
            for row in rows[(rows >= first) & (rows < first + batch.num_rows)].tolist():
                self._cache[start + row] = self._files.example(column[row - first], path, row)
