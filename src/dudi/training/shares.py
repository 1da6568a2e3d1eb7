"""Shares of the languages in the loss of a step: `training.equalize`.

    L = sum over the languages l of the step of a_l L_l        a_l = s_l / sum of s over the languages of the step

L_l is the method's loss on the step's rows in l alone: the means of its signals (`dudi.loss.objective`) are over what
the whole step counts of that signal in l, over all micro-batches and all ranks. So the gradient of a step is that of
each language's own mean loss, in the proportions asked for, whatever the languages' tokens are; what is sampled in the
step is counted after sampling, as everywhere. s_l is 1 for each language ("tokens"), or as the recipe's table says. By
default ("none") languages are not told apart: each has the share of its tokens (or rows), which is the paper's mean.

A language of which a step counts nothing has no part in it, and the others divide the step in their proportions: the
loss of a step stays a mean. A term that no row of a language has (z too long) is missing from that language's loss; no
other language fills in. So that few steps lack a language, each language's rows are dealt out evenly over the epoch:
with twice as many rows of it as there are steps, none lacks it but perhaps a ragged last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dudi.signals import Signal
from dudi.training.window import Row, Window

Equalize = Literal["none", "tokens"] | Mapping[str, float]
Counts = Mapping[tuple[str, str], float]
"""By signal and language, what a step counts."""
_ALL = ""
"""The only group of rows, where languages are not told apart."""


@dataclass(frozen=True)
class Shares:
    """s_l by language; None: languages are not told apart."""

    asked: Mapping[str, float] | None

    @staticmethod
    def of(equalize: Equalize, languages: Sequence[str]) -> Shares:
        """Those of a training on these languages, which a table must all name."""
        if isinstance(equalize, str):
            return Shares(None if equalize == "none" else dict.fromkeys(languages, 1.0))
        return Shares(equalize)

    def counts(self, window: Window, signals: Sequence[Signal]) -> dict[tuple[str, str], float]:
        """What each signal counts in a window, by group of rows; the same keys on every rank."""
        if self.asked is None:
            return {(name, _ALL): count for name, count in window.counts(signals).items()}
        found: dict[tuple[str, str], float] = {}
        for l in sorted(self.asked):
            weight = [w if row.example.l == l else 0.0 for row, w in zip(window.rows, window.weight, strict=True)]
            found |= {(s.name, l): s.count(window.items, weight) for s in signals}
        return found

    def divisors(self, counts: Counts, rows: Sequence[Row]) -> dict[str, float | Tensor]:
        """By signal, what its mean is divided by, for these rows: N_l / a_l in place of N. counts: of the step."""
        if self.asked is None:
            return {name: count for (name, _), count in counts.items()}
        whole = self._whole({l for (_, l), count in counts.items() if count})
        share = [self.asked[row.example.l] / whole for row in rows]
        by_row = {
            name: [counts[name, row.example.l] / a for row, a in zip(rows, share, strict=True)]
            for name in {name for name, _ in counts}
        }
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in by_row.items()}

    def loss(self, signals: Mapping[str, Mapping[str, Any]]) -> float:
        """The loss of the means that metrics hold by signal (`dudi.training.metrics.record`)."""
        found = {name: entry for name, entry in signals.items() if "loss" in entry}
        if self.asked is None:
            return float(sum(entry["weight"] * entry["loss"] for entry in found.values()))
        whole = self._whole({l for entry in found.values() for l in entry["by_language"]})
        return sum(
            entry["weight"] * self.asked[l] / whole * mean["loss"]
            for entry in found.values()
            for l, mean in entry["by_language"].items()
        )

    def dealt(self, order: Sequence[int], rows: Sequence[Row]) -> list[int]:
        """The rows of an epoch in a drawn order, each language's at even distances; as drawn where languages are not
        told apart."""
        if self.asked is None:
            return list(order)
        total = Counter(row.example.l for row in rows)
        met: Counter[str] = Counter()
        place: dict[int, float] = {}
        for number in order:
            l = rows[number].example.l
            place[number] = (met[l] + 0.5) / total[l]
            met[l] += 1
        return sorted(order, key=place.__getitem__)

    def _whole(self, present: set[str]) -> float:
        assert self.asked is not None
        return sum(self.asked[l] for l in sorted(present)) or 1.0
