"""The rows of a recipe's [data] table: read, checked, sampled; with a manifest to make the sample again."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

import dudi
from dudi.data.chat import NO_LANGUAGE, ChatReader, ChatScan
from dudi.data.conversation import fingerprint
from dudi.data.files_by_language import (
    by_config,
    default_languages,
    is_named,
    languages_of,
    of_language,
    of_split,
    splits_of,
)
from dudi.data.formats import BY_LOOK, SEA_INSTRUCT
from dudi.data.hub import Hub
from dudi.data.language_files import LanguageFiles
from dudi.data.mixture import Taken, add, mix
from dudi.data.quality import FILTERS, STRATUM
from dudi.data.report import DataReport, counted_rows
from dudi.data.rows import Rows, read_rows, sha256_of, write_rows
from dudi.data.sea_instruct import check_language, load_language
from dudi.data.settings import Part, check_names, parts_of
from dudi.data.source import open_source
from dudi.errors import DudiError
from dudi.example import Example
from dudi.recipe.schema import Data

__all__ = ["DataReport", "Rows", "check", "load_rows", "read_rows", "write_rows"]


def load_rows(data: Data, seed: int, hub: Hub | None = None) -> Rows:
    """The training and evaluation rows, a pure function of the data and the seed; ordered by language, then as read.

    Training and evaluation rows differ in content, over all languages. `hub` replaces the Hugging Face hub. Raises
    `DudiError` for data that cannot be read, for a broken row where `bad_rows` says so (chat data, by default),
    and when a language has no row left to train on.
    """
    parts, report = parts_of(data), DataReport()
    where = parts[0].name if len(parts) == 1 else "data.sources"
    opened = [(_kind(part.data), _open(part, hub)) for part in parts]
    given = None if data.eval_source is None else _held_out(data, data.eval_source, hub)
    met = _Met(frozenset(fingerprint(example) for example in given or ()), several=bool(data.sources))
    for kind, one in opened:
        kind.load(one, seed, met)
        _say_short(one)
    taken = mix([one for _, one in opened], data.languages, seed, report) if data.sources else opened[0][1]
    report = taken.report
    if missing := [language for language in data.languages if language not in report.languages]:
        there = ", ".join(sorted({*report.languages, *taken.others} - {NO_LANGUAGE})) or "none"
        raise DudiError(f"{where}: no row in {', '.join(missing)}; its languages: {there}")
    if given is not None:
        taken.eval = _evaluated(given, {example.l for example in taken.train}, report)
        taken.extra["eval_source"] = data.eval_source
    for language, counts in report.languages.items():
        if counts.kept == 0 and language != NO_LANGUAGE:
            undrawn = f", {counts.undrawn} left out by the weight of their source" if data.sources else ""
            raise DudiError(f"{where}: no row of {language!r} is left to train on: {counts.line()}{undrawn}")
    if not taken.train:
        raise DudiError(f"{where}: no row is left to train on: {_summary(report)}")
    return Rows(taken.train, taken.eval, report, _manifest(data, seed, taken))


def check(
    data: Data,
    hub: Hub | None = None,
    special: Callable[[Example], str | None] | None = None,
    look: Callable[[Example], None] | None = None,
) -> DataReport:
    """What is in the data, every row of it read, nothing drawn; `kept` rows are those that could be trained on.

    special: finds a special token in a row's text, to be counted (`Specials.in_row` of a tokenizer). look: is shown
    every row that is kept. Broken rows are counted and the first of each language quoted. Raises `DudiError` only for
    data that cannot be read.
    """
    opened = [(_kind(part.data), _open(part, hub)) for part in parts_of(data)]
    report = DataReport() if data.sources else opened[0][1].report
    found = report.special = None if special is None else {}

    def seen(example: Example) -> None:
        if special is not None and found is not None and (token := special(example)):
            found.setdefault(example.l, Counter())[token] += 1
        if look is not None:
            look(example)

    met = _Met(several=bool(data.sources))
    for kind, one in opened:
        kind.check(one, met, seen)
        if data.sources:
            add(report, one)
    return report


def _open(part: Part, hub: Hub | None) -> Taken:
    """A source, of which nothing is read yet."""
    source, revision = open_source(part.name, part.data.revision, hub, part.key), part.data.revision
    taken = Taken(part, source, DataReport())
    if revision is not None and source.revision is None:
        # Not an error: a recipe that pins the hub's revision may be pointed at a local copy.
        taken.report.notes.append(f"data.revision {revision!r} is not used: {part.name!r} is local")
    return taken


def _say_short(one: Taken) -> None:
    """Note where a source has fewer rows of a language than were asked for."""
    data = one.part.data
    for language, counts in one.report.languages.items():
        for name, wanted, got in (
            ("training", data.rows_per_language, counts.kept),
            ("evaluation", data.eval_rows_per_language, counts.eval),
        ):
            if wanted is not None and got < wanted and language != NO_LANGUAGE:
                one.report.notes.append(f"{language}: {wanted} {name} rows asked for, {got} there")


def _held_out(data: Data, name: str, hub: Hub | None) -> list[Example]:
    """The rows of `data.eval_source`: chat data in any format, every row of it.

    Raises `DudiError` for data that cannot be read, and for a broken row unless `bad_rows` is "skip".
    """
    changes = {"source": name, "sources": (), "revision": None, "format": BY_LOOK, "eval_source": None}
    changes["rows_per_language"] = None
    data = data.model_copy(update=changes)
    source = open_source(name, None, hub, "data.eval_source")
    if not source.single:
        splits = splits_of(source.paths)
        held_out = [split for split in ("eval", "validation", "test") if split in splits]
        if splits and not held_out:
            raise DudiError(
                f"data.eval_source: {name!r} has files of {', '.join(splits)} only; name a file to evaluate on"
            )
        data = data.model_copy(update={"split": held_out[0] if held_out else "train"})
    report = DataReport()
    one = Taken(Part("data.eval_source", name, data), source, report)
    scan, _ = _scan(one, _Met(), strict=data.bad_rows != "skip", seed=0, own_columns=True)
    rows = [example for pool in scan.pools.values() for example in pool.result()[0]]
    if not rows:
        raise DudiError(f"data.eval_source: {name!r} has no row to evaluate on: {_summary(report)}")
    return rows


def _evaluated(given: list[Example], trained: set[str], report: DataReport) -> list[Example]:
    """The rows of `data.eval_source` in the languages trained on, counted as read and as evaluation rows."""
    rows = sorted((example for example in given if example.l in trained), key=lambda example: example.l)
    for example in rows:
        counts = report.of(example.l)
        counts.read, counts.eval = counts.read + 1, counts.eval + 1
    if others := sorted({example.l for example in given} - trained):
        report.notes.append(
            f"not evaluated on: rows of data.eval_source in languages not trained on ({', '.join(others)})"
        )
    return rows


_Look = Callable[[Example], None]


@dataclass
class _Met:
    """What is known of the rows of all sources while they are read: fingerprints of those held out, and of those met.
    several: whether there are several sources, each of which may lack a language."""

    held_out: frozenset[int] = frozenset()
    seen: set[int] = field(default_factory=set)
    several: bool = False


@dataclass(frozen=True)
class _Kind:
    """Data of one kind: how its rows are drawn, without those that are held out; and how all of them are looked at."""

    load: Callable[[Taken, int, _Met], None]
    check: Callable[[Taken, _Met, _Look], None]


def _kind(data: Data) -> _Kind:
    """What `data.format` says. Raises `DudiError` for names that there are not."""
    check_names(data)
    if data.format == SEA_INSTRUCT:
        return _Kind(_load_sea_instruct, _check_sea_instruct)
    return _Kind(_load_chat, _check_chat)


def _check_sea_instruct(one: Taken, met: _Met, look: _Look) -> None:
    report = one.report

    def seen(example: Example) -> None:
        report.suspect(example)
        look(example)

    before = set(met.seen)
    for files in _language_files(one, met):
        kept = set(before)
        counts = report.languages[files.language] = check_language(files, one.part.data, seen, kept)
        report.read_as["SEA-Instruct"] += counts.read
        met.seen |= kept


def _check_chat(one: Taken, met: _Met, look: _Look) -> None:
    _scan(one, met, strict=False, seed=None, look=look)


def _load_sea_instruct(one: Taken, seed: int, met: _Met) -> None:
    data = one.part.data
    strata: dict[str, Any] = {}
    paths: list[str] = []
    met.seen |= met.held_out
    for files in _language_files(one, met):
        drawn = load_language(files, data, seed, met.seen)
        one.report.languages[files.language] = drawn.report
        one.train += drawn.train
        one.eval += drawn.eval
        for example in (*drawn.train, *drawn.eval):
            one.report.suspect(example)
        strata[files.language] = drawn.strata
        paths += files.paths
    filters = list(FILTERS) if data.quality_filter else []
    one.extra = {"files": paths, "filters": filters, "stratum": list(STRATUM), "strata": strata}


def _language_files(one: Taken, met: _Met) -> list[LanguageFiles]:
    """The files of each language, all found before any is read."""
    source, data, name = one.source, one.part.data, one.part.name
    if data.language is not None:
        raise DudiError(
            "data.language: is for chat data, not for sea_instruct; choose among its languages by data.languages"
        )
    configs = by_config(source.paths)
    languages: Sequence[str] = data.languages
    if met.several:
        languages = [l for l in languages if any(is_named(config, l) for config in configs)]
    if not data.languages:
        languages, rest = default_languages(configs)
        if rest:
            one.report.notes.append(f"not trained on unless named in data.languages: {', '.join(rest)}")
    if not languages:
        wanted = "data.languages" if data.languages else "a known language"
        raise DudiError(f"{name}: no file is named after {wanted}; found {', '.join(configs)}")
    found = []
    for language in languages:
        paths = of_language(configs, language, name)
        of_it = of_split(paths, data.split, name)[0]
        found.append(LanguageFiles.open(source, of_it, language, data.ignore))
    return found


def _load_chat(one: Taken, seed: int, met: _Met) -> None:
    data = one.part.data
    scan, paths = _scan(one, met, strict=data.bad_rows != "skip", seed=seed)
    for language in data.languages or tuple(sorted(scan.pools)):
        if language not in scan.pools:
            continue
        of_train, of_eval = scan.pools[language].result()
        counts = one.report.of(language)
        counts.undrawn, counts.kept, counts.eval = (
            counts.kept - len(of_train) - len(of_eval),
            len(of_train),
            len(of_eval),
        )
        one.train += of_train
        one.eval += of_eval
    one.others = scan.others
    one.extra = {"files": paths, "filters": [], "stratum": [], "strata": {}}


def _scan(
    one: Taken, met: _Met, strict: bool, seed: int | None, look: _Look | None = None, own_columns: bool = False
) -> tuple[ChatScan, list[str]]:
    source, data, report = one.source, one.part.data, one.report
    paths, left_out = (list(source.paths), []) if source.single else of_split(source.paths, data.split, one.part.name)
    if left_out:
        report.notes.append(f"files left out (not of split {data.split!r}): {', '.join(left_out)}")
    if source.left_out:
        report.notes.append(f"files left out (beside the others, not taken for data): {', '.join(source.left_out)}")
    scan = ChatScan(data, report, look, held_out=met.held_out, seen=met.seen)
    scan.run(ChatReader(data, languages_of(paths), own_columns).rows(source, paths), strict, seed)
    if scan.others:
        said = ", ".join(f"{language} {count:,}" for language, count in sorted(scan.others.items()))
        report.notes.append(f"{counted_rows(scan.others.total())} left out: languages not in data.languages ({said})")
    if scan.overridden:
        said = ", ".join(f"{label} {count:,}" for label, count in scan.overridden.most_common(5))
        report.notes.append(f"data.language = '{data.language}' overrides what rows say of their language ({said})")
    report.languages = dict(sorted(report.languages.items()))
    return scan, paths


def _summary(report: DataReport) -> str:
    lines = [f"{language}: {counts.line()}" for language, counts in report.languages.items()]
    return "; ".join(lines) or "it holds no rows"


def _manifest(data: Data, seed: int, taken: Taken) -> dict[str, Any]:
    return {
        "source": data.source,
        "revision": None if data.sources else taken.source.revision,
        "format": data.format,
        "split": data.split,
        "languages": list(dict.fromkeys(example.l for example in taken.train)),
        "seed": seed,
        "rows_per_language": data.rows_per_language,
        "eval_rows_per_language": data.eval_rows_per_language,
        "rows": {"train": len(taken.train), "eval": len(taken.eval)},
        "sha256": {"train": sha256_of(taken.train), "eval": sha256_of(taken.eval)},
        **taken.extra,
        "versions": {
            "dudi": dudi.__version__,
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            "numpy": np.__version__,
        },
    }
