"""Several sources as one: each row as often as its source's weight says, and what each source gives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dudi.data.conversation import fingerprint
from dudi.data.report import DataReport, SourceRows
from dudi.data.settings import Part
from dudi.data.source import Source
from dudi.draws import draw
from dudi.example import Example


@dataclass
class Taken:
    """What was read of a source: its rows, each once, and their report; extra: for the manifest; others: languages met
    that the recipe does not ask for."""

    part: Part
    source: Source
    report: DataReport
    train: list[Example] = field(default_factory=list)
    eval: list[Example] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def copies(rows: Sequence[Example], weight: float, seed: int) -> list[int]:
    """How often an epoch has each row: as often as the whole part of a weight says, and once more for so many of each
    language as its fraction is, rounded. Which those are is drawn by (seed, content), whatever stands beside them."""
    whole, rest = int(weight), weight - int(weight)
    found = [whole] * len(rows)
    places: dict[str, list[int]] = {}
    for place, example in enumerate(rows):
        places.setdefault(example.l, []).append(place)
    for of_l in places.values():
        drawn = sorted(of_l, key=lambda place: (draw("weight", seed, fingerprint(rows[place])), place))
        for place in drawn[: math.floor(rest * len(of_l) + 0.5)]:
            found[place] += 1
    return found


def mix(taken: Sequence[Taken], languages: Sequence[str], seed: int, report: DataReport) -> Taken:
    """All sources as one: rows by language, within one by source, then as read. Their reports are added to `report`."""
    train: list[Example] = []
    held_out: list[Example] = []
    about: list[dict[str, Any]] = []
    for one in taken:
        data, often = one.part.data, copies(one.train, one.part.weight, seed)
        rows = [example for example, n in zip(one.train, often, strict=True) for _ in range(n)]
        for example, n in zip(one.train, often, strict=True):
            if n == 0:
                counts = one.report.of(example.l)
                counts.kept, counts.undrawn = counts.kept - 1, counts.undrawn + 1
        add(report, one, dict(sorted(Counter(example.l for example in rows).items())))
        about.append(
            {
                "source": one.part.name,
                "revision": one.source.revision,
                "format": data.format,
                "columns": data.columns,
                "language": data.language,
                "weight": one.part.weight,
                "rows": {"train": len(rows), "distinct": sum(n > 0 for n in often), "eval": len(one.eval)},
                **one.extra,
            }
        )
        train += rows
        held_out += one.eval
    order = languages or sorted({example.l for example in (*train, *held_out)})
    train, held_out = ([e for l in order for e in rows if e.l == l] for rows in (train, held_out))
    others = sum((one.others for one in taken), Counter[str]())
    return Taken(taken[0].part, taken[0].source, report, train, held_out, {"sources": about}, others)


def add(report: DataReport, one: Taken, train: dict[str, int] | None = None) -> None:
    """Add a source's report to that of all. train: by language, the rows that an epoch has of it, if any is drawn."""
    counts = one.report.languages.values()
    read, kept, held_out = (sum(getattr(of_l, name) for of_l in counts) for name in ("read", "kept", "eval"))
    report.sources.append(SourceRows(one.part.name, one.part.weight, read, kept, held_out, train))
    report.add(one.report, one.part.name)
