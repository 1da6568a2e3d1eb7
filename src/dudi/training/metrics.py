"""Sums behind the metrics, and the JSON lines made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dudi import processes
from dudi.loss.objective import Objective
from dudi.methods import Method
from dudi.signals import Signal, View, views

MEASURES = ("entropy_student", "entropy_teacher", "overlap", "overlap_mass")


class Meter:
    """Sums by (kind, signal or view, language, quantity), on a fixed grid so that ranks can add theirs up."""

    def __init__(self, method: Method, languages: Sequence[str]) -> None:
        self.languages = tuple(sorted(languages))
        keys: list[str] = ["loss", "steps", "grad_norm"]
        for s in method.signals:
            keys += [f"signal/{s.name}/{l}/{q}" for l in self.languages for q in ("loss", "count", *s.quantities)]
        for view in views(method.signals):
            if view.response.sampled:
                quantities = ("rows", "tokens", "cut", "stopped", "dropped")
                keys += [f"rollout/{view.name}/{l}/{q}" for l in self.languages for q in quantities]
            keys += [f"measure/{view.name}/{l}/{q}" for l in self.languages for q in ("count", *MEASURES)]
        self.sums = dict.fromkeys(keys, 0.0)

    def add(self, key: str, value: float) -> None:
        """Add to one sum; the key must be of the grid."""
        self.sums[key] += value

    def add_objective(self, result: Objective, row_language: Sequence[str]) -> None:
        """All sums of one micro-batch. row_language: of each of its rows."""
        index = torch.tensor([self.languages.index(l) for l in row_language])
        for name, outcome in result.outcomes.items():
            told = {"loss": outcome.value, "count": torch.ones_like(outcome.value), **outcome.extra}
            by_row = torch.stack([outcome.per_row(values) for values in told.values()])
            self._spread(f"signal/{name}", tuple(told), by_row, index)
        for view, (block, measures) in result.measures.items():
            by_row = torch.stack(
                [block.per_row(block.weight)] + [block.per_row(block.weight * measures[q]) for q in MEASURES]
            )
            self._spread(f"measure/{view.name}", ("count", *MEASURES), by_row, index)

    def add_rollout(self, view: View, language: str, weight: float, length: int | None, finished: bool) -> None:
        """One row's sampled response; without a length: its prompt was too long, and it has none."""
        if length is None:
            self.add(f"rollout/{view.name}/{language}/dropped", weight)
            return
        for quantity, value in (("rows", 1), ("tokens", length), ("cut", not finished), ("stopped", finished)):
            self.add(f"rollout/{view.name}/{language}/{quantity}", weight * value)

    def _spread(self, prefix: str, quantities: Sequence[str], by_row: Tensor, index: Tensor) -> None:
        sums = torch.zeros(len(quantities), len(self.languages), dtype=torch.float64)
        sums.index_add_(1, index, by_row.detach().double().cpu())
        for quantity, values in zip(quantities, sums.tolist(), strict=True):
            for language, value in zip(self.languages, values, strict=True):
                self.sums[f"{prefix}/{language}/{quantity}"] += value

    def total(self) -> None:
        """Add up over processes: the first holds the sums, the others zero."""
        sums = processes.summed(list(self.sums.values()))
        self.sums = dict(zip(self.sums, sums if processes.is_first() else [0.0] * len(sums), strict=True))

    def state(self) -> list[dict[str, float]]:
        """What a checkpoint keeps: the sums of each process; added up now, they would round otherwise."""
        return processes.gathered(self.sums)

    def load(self, state: Sequence[Mapping[str, float]], rank: int, ranks: int) -> None:
        """Restore what `state` returned; saved by another number of processes, the first has it all."""
        self.clear()
        if len(state) == ranks:
            self.sums = {key: float(state[rank][key]) for key in self.sums}
        elif rank == 0:
            self.sums = {key: float(sum(one[key] for one in state)) for key in self.sums}

    def clear(self) -> None:
        """Start a new interval."""
        self.sums = dict.fromkeys(self.sums, 0.0)


def record(sums: Mapping[str, float], signals: Sequence[Signal]) -> dict[str, Any]:
    """Means of an interval: by signal and language, by sampled view and language. What has no data is absent."""
    steps = max(sums["steps"], 1)
    result: dict[str, Any] = {"loss": sums["loss"] / steps, "grad_norm": sums["grad_norm"] / steps}
    grid: dict[str, dict[str, dict[str, dict[str, float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for key, value in sums.items():
        if key.count("/") == 3:
            kind, name, language, quantity = key.split("/")
            grid[kind][name][language][quantity] = value
    for kind, total in (("signal", "count"), ("rollout", "rows"), ("measure", "count")):
        for name, languages in grid[kind].items():
            everything = {q: sum(row[q] for row in languages.values()) for q in next(iter(languages.values()))}
            means = {l: _means(kind, row, total) for l, row in languages.items()}
            entry = _means(kind, everything, total)
            if entry:
                entry["by_language"] = {l: row for l, row in means.items() if row}
                result.setdefault(kind, {})[name] = entry
    weights = {s.name: s.weight for s in signals}
    for name, entry in result.get("signal", {}).items():
        entry["weight"] = weights[name]
    return result


def _means(kind: str, row: Mapping[str, float], total: str) -> dict[str, Any]:
    count = row[total]
    found: dict[str, Any] = {}
    if count:
        names = {"tokens": "length", "cut": "share_cut", "stopped": "eos_rate"} if kind == "rollout" else {}
        found = {names.get(q, q): v / count for q, v in row.items() if q not in (total, "dropped")} | {total: count}
    if row.get("dropped"):
        found["dropped"] = row["dropped"]
    return found
