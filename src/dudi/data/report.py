"""DataReport: what became of every row read, by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dudi.data.suspect import suspicions
from dudi.example import Example

MAX_FAULTS = 3
"""Broken rows quoted per language; all are counted."""
COLUMNS = ("language", "read", "duplicated", "filtered", "broken", "zawgyi", "undrawn", "eval", "kept")


@dataclass
class LanguageReport:
    """Counts of one language. Every row read is in exactly one of the other counts (`balanced`).

    A full reading (`check`, chat files, SEA-Instruct without `rows_per_language`) looks at the content first: broken,
    duplicated, Zawgyi, then the quality filter. A SEA-Instruct sample reads the content only of rows that pass the
    filter and are drawn, so its broken, duplicated and Zawgyi rows are those met on the way, and the rest is `undrawn`.
    """

    read: int = 0
    duplicated: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    zawgyi: int = 0
    undrawn: int = 0
    eval: int = 0
    kept: int = 0
    faults: list[str] = field(default_factory=list)

    def add_broken(self, reason: str, line: str) -> None:
        """Count one broken row; the first few are quoted."""
        self.broken[reason] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(line)

    def add(self, other: LanguageReport) -> None:
        """Count the rows of another source too; the first broken rows stay those that are quoted."""
        for name in ("read", "duplicated", "zawgyi", "undrawn", "eval", "kept"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.filtered += other.filtered
        self.broken += other.broken
        self.faults = (self.faults + other.faults)[:MAX_FAULTS]

    @property
    def balanced(self) -> bool:
        """Whether the counts add up to the rows read."""
        left_out = self.duplicated + self.filtered.total() + self.broken.total() + self.zawgyi + self.undrawn
        return self.read == left_out + self.eval + self.kept

    @property
    def total(self) -> int:
        """Rows that are neither broken nor left out for what they hold."""
        return self.kept + self.eval + self.undrawn

    def line(self) -> str:
        """All counts that are not zero, in one line."""
        parts = [f"{self.read} read"]
        parts += [f"{self.duplicated} duplicated"] if self.duplicated else []
        parts += [f"{self.filtered.total()} filtered ({_reasons(self.filtered)})"] if self.filtered else []
        parts += [f"{self.broken.total()} broken ({_reasons(self.broken)})"] if self.broken else []
        parts += [f"{self.zawgyi} in Zawgyi encoding"] if self.zawgyi else []
        parts += [f"{self.eval} set aside for evaluation"] if self.eval else []
        return ", ".join(parts)


@dataclass(frozen=True)
class SourceRows:
    """What one of several sources gives. read, kept, eval: its rows; train: by language, how many rows of it an epoch
    has, repeated ones each time; None where nothing is drawn."""

    source: str
    weight: float
    read: int
    kept: int
    eval: int
    train: dict[str, int] | None = None

    def line(self) -> str:
        """In one line."""
        parts = [f"{self.source}: {self.read:,} rows read"]
        if self.train is None:
            return f"{parts[0]}, {self.kept:,} that could be trained on"
        by_language = ", ".join(f"{l} {n:,}" for l, n in self.train.items())
        parts.append(f"weight {self.weight:g}: {sum(self.train.values()):,} training rows an epoch ({by_language})")
        parts += [f"{self.eval:,} set aside for evaluation"] if self.eval else []
        return ", ".join(parts)


@dataclass
class DataReport:
    """Counts by language, and notes on what else was left out."""

    languages: dict[str, LanguageReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    special: dict[str, Counter[str]] | None = None
    """Kept rows with a special token in their text, by language and token; None where no tokenizer was given. Not part
    of the JSON: a sample depends on no tokenizer."""
    read_as: Counter[str] = field(default_factory=Counter)
    """Rows by the format that they were read as; not part of the JSON, and so not kept."""
    suspected: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Kept rows whose text looks wrong, by language and by what is wrong: their ids. They are trained on."""
    sources: list[SourceRows] = field(default_factory=list)
    """Where there are several, what each gives."""

    def of(self, language: str) -> LanguageReport:
        """The counts of a language, made when first asked for."""
        return self.languages.setdefault(language, LanguageReport())

    def add(self, other: DataReport, source: str) -> None:
        """Take in the report of one of several sources; its notes name it."""
        for language, counts in other.languages.items():
            self.of(language).add(counts)
        self.languages = dict(sorted(self.languages.items()))
        self.notes += [f"{source}: {note}" for note in other.notes]
        self.read_as += other.read_as
        for language, kinds in other.suspected.items():
            for kind, ids in kinds.items():
                self.suspected.setdefault(language, {}).setdefault(kind, []).extend(ids)

    def suspect(self, example: Example) -> None:
        """Look at the text of a row that is kept."""
        for kind in suspicions(example):
            self.suspected.setdefault(example.l, {}).setdefault(kind, []).append(example.id)

    @property
    def broken(self) -> int:
        """Broken rows of all languages."""
        return sum(one.broken.total() for one in self.languages.values())

    @property
    def first_fault(self) -> str | None:
        """The first broken row: file, row, field, what was found and what was wanted."""
        return next((one.faults[0] for one in self.languages.values() if one.faults), None)

    def table(self) -> list[tuple[str, ...]]:
        """One row of strings a language, under `COLUMNS`."""
        return [
            (
                language,
                str(one.read),
                str(one.duplicated),
                str(one.filtered.total()),
                str(one.broken.total()),
                str(one.zawgyi),
                str(one.undrawn),
                str(one.eval),
                str(one.kept),
            )
            for language, one in self.languages.items()
        ]

    def details(self) -> list[str]:
        """What rows were read as, why they were filtered or broken, and what looks wrong in the text of the others."""
        read_as = [
            f"read as {', '.join(f'{name}, {counted_rows(count)}' for name, count in self.read_as.most_common())}"
        ]
        suspected = [
            f"{language}: {len(ids)} of {self.of(language).total} kept rows: {kind} (first {', '.join(ids[:3])})"
            for language, kinds in sorted(self.suspected.items())
            for kind, ids in sorted(kinds.items())
        ]
        special = [
            f"{language}: {counts.total()} kept rows hold a special token as text: {_reasons(counts)}"
            for language, counts in sorted((self.special or {}).items())
        ]
        if self.special == {}:
            special = ["no kept row holds a special token of the tokenizer"]
        return (
            [one.line() for one in self.sources]
            + (read_as if self.read_as else [])
            + suspected
            + special
            + [
                f"{language}: {kind}: {_reasons(counts)}"
                for language, one in self.languages.items()
                for kind, counts in (("filtered", one.filtered), ("broken", one.broken))
                if counts
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        languages = {
            language: {**vars(one), "filtered": dict(one.filtered), "broken": dict(one.broken)}
            for language, one in self.languages.items()
        }
        suspected = {"suspected": self.suspected} if self.suspected else {}
        sources = {"sources": [vars(one) for one in self.sources]} if self.sources else {}
        return {"languages": languages, "notes": self.notes, **suspected, **sources}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataReport:
        """The report that `as_json` wrote."""
        sources = [SourceRows(**one) for one in value.get("sources", [])]
        report = cls(notes=list(value["notes"]), suspected=dict(value.get("suspected", {})), sources=sources)
        for language, one in value["languages"].items():
            counters = {"filtered": Counter(one["filtered"]), "broken": Counter(one["broken"])}
            report.languages[language] = LanguageReport(**{**one, **counters})
        return report


def counted_rows(count: int) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _reasons(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in ordered)
