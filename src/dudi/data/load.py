"""The rows of a recipe's [data] table: read, checked, sampled; with a manifest to make the sample again."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

import dudi
from dudi.data.chat import NO_LANGUAGE, ChatReader, ChatScan
from dudi.data.conversation import fingerprint
from dudi.data.files_by_language import by_config, default_languages, languages_of, of_language, of_split, splits_of
from dudi.data.formats import BY_LOOK, SEA_INSTRUCT
from dudi.data.hub import Hub
from dudi.data.language_files import LanguageFiles
from dudi.data.quality import FILTERS, STRATUM
from dudi.data.report import DataReport
from dudi.data.rows import Rows, read_rows, sha256_of, write_rows
from dudi.data.sea_instruct import check_language, load_language
from dudi.data.settings import check_names
from dudi.data.source import Source, open_source
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
    kind = _kind(data)
    source = open_source(data.source, data.revision, hub)
    report = _report(data, source)
    given = None if data.eval_source is None else _held_out(data, data.eval_source, hub)
    train, held_out, extra = kind.load(source, data, seed, report, given or [])
    if given is not None:
        held_out = _evaluated(given, {example.l for example in train}, report)
        extra["eval_source"] = data.eval_source
    for language, counts in report.languages.items():
        if counts.kept == 0 and language != NO_LANGUAGE:
            raise DudiError(f"{data.source}: no row of {language!r} is left to train on: {counts.line()}")
        for name, wanted, got in (
            ("training", data.rows_per_language, counts.kept),
            ("evaluation", data.eval_rows_per_language, counts.eval),
        ):
            if wanted is not None and got < wanted and language != NO_LANGUAGE:
                report.notes.append(f"{language}: {wanted} {name} rows asked for, {got} there")
    if not train:
        raise DudiError(f"{data.source}: no row is left to train on: {_summary(report)}")
    return Rows(train, held_out, report, _manifest(source, data, seed, train, held_out, extra))


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
    kind = _kind(data)
    source = open_source(data.source, data.revision, hub)
    report = _report(data, source)
    found = report.special = None if special is None else {}

    def seen(example: Example) -> None:
        if special is not None and found is not None and (token := special(example)):
            found.setdefault(example.l, Counter())[token] += 1
        if look is not None:
            look(example)

    kind.check(source, data, report, seen)
    return report


def _report(data: Data, source: Source) -> DataReport:
    report = DataReport()
    if data.revision is not None and source.revision is None:
        # Not an error: a recipe that pins the hub's revision may be pointed at a local copy.
        report.notes.append(f"data.revision {data.revision!r} is not used: {data.source!r} is local")
    return report


def _held_out(data: Data, name: str, hub: Hub | None) -> list[Example]:
    """The rows of `data.eval_source`: chat data in any format, every row of it.

    Raises `DudiError` for data that cannot be read, and for a broken row unless `bad_rows` is "skip".
    """
    changes = {"source": name, "revision": None, "format": BY_LOOK, "eval_source": None, "rows_per_language": None}
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
    scan, _ = _scan(source, data, report, strict=data.bad_rows != "skip", seed=0, own_columns=True)
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


_Loaded = tuple[list[Example], list[Example], dict[str, Any]]
_Look = Callable[[Example], None]


@dataclass(frozen=True)
class _Kind:
    """Data of one kind: how its rows are drawn, without those that are held out; and how all of them are looked at."""

    load: Callable[[Source, Data, int, DataReport, list[Example]], _Loaded]
    check: Callable[[Source, Data, DataReport, _Look], None]


def _kind(data: Data) -> _Kind:
    """What `data.format` says. Raises `DudiError` for names that there are not."""
    check_names(data)
    if data.format == SEA_INSTRUCT:
        return _Kind(_load_sea_instruct, _check_sea_instruct)
    return _Kind(_load_chat, _check_chat)


def _check_sea_instruct(source: Source, data: Data, report: DataReport, look: _Look) -> None:
    def seen(example: Example) -> None:
        report.suspect(example)
        look(example)

    for files in _language_files(source, data, report):
        counts = report.languages[files.language] = check_language(files, data, seen)
        report.read_as["SEA-Instruct"] += counts.read


def _check_chat(source: Source, data: Data, report: DataReport, look: _Look) -> None:
    _scan(source, data, report, strict=False, seed=None, look=look)


def _load_sea_instruct(source: Source, data: Data, seed: int, report: DataReport, given: list[Example]) -> _Loaded:
    train: list[Example] = []
    held_out: list[Example] = []
    strata: dict[str, Any] = {}
    paths: list[str] = []
    seen = {fingerprint(example) for example in given}
    for files in _language_files(source, data, report):
        drawn = load_language(files, data, seed, seen)
        report.languages[files.language] = drawn.report
        train += drawn.train
        held_out += drawn.eval
        for example in (*drawn.train, *drawn.eval):
            report.suspect(example)
        strata[files.language] = drawn.strata
        paths += files.paths
    filters = list(FILTERS) if data.quality_filter else []
    return train, held_out, {"files": paths, "filters": filters, "stratum": list(STRATUM), "strata": strata}


def _language_files(source: Source, data: Data, report: DataReport) -> list[LanguageFiles]:
    """The files of each language, all found before any is read."""
    if data.language is not None:
        raise DudiError(
            "data.language: is for chat data, not for sea_instruct; choose among its languages by data.languages"
        )
    configs = by_config(source.paths)
    languages: Sequence[str] = data.languages
    if not languages:
        languages, rest = default_languages(configs)
        if rest:
            report.notes.append(f"not trained on unless named in data.languages: {', '.join(rest)}")
    if not languages:
        raise DudiError(f"{data.source}: no file is named after a known language; found {', '.join(configs)}")
    found = []
    for language in languages:
        paths = of_language(configs, language, data.source)
        of_it = of_split(paths, data.split, data.source)[0]
        found.append(LanguageFiles.open(source, of_it, language, data.ignore))
    return found


def _load_chat(source: Source, data: Data, seed: int, report: DataReport, given: list[Example]) -> _Loaded:
    held_out_rows = frozenset(fingerprint(example) for example in given)
    scan, paths = _scan(source, data, report, strict=data.bad_rows != "skip", seed=seed, held_out=held_out_rows)
    missing = [language for language in data.languages if language not in report.languages]
    if missing:
        there = ", ".join(sorted({*report.languages, *scan.others} - {NO_LANGUAGE})) or "none"
        raise DudiError(f"{data.source}: no row in {', '.join(missing)}; its languages: {there}")
    train: list[Example] = []
    held_out: list[Example] = []
    order = data.languages or tuple(sorted(scan.pools))
    for language in order:
        if language not in scan.pools:
            continue
        of_train, of_eval = scan.pools[language].result()
        counts = report.of(language)
        counts.undrawn, counts.kept, counts.eval = (
            counts.kept - len(of_train) - len(of_eval),
            len(of_train),
            len(of_eval),
        )
        train += of_train
        held_out += of_eval
    return train, held_out, {"files": paths, "filters": [], "stratum": [], "strata": {}}


def _scan(
    source: Source,
    data: Data,
    report: DataReport,
    strict: bool,
    seed: int | None,
    look: _Look | None = None,
    held_out: frozenset[int] = frozenset(),
    own_columns: bool = False,
) -> tuple[ChatScan, list[str]]:
    paths, left_out = (list(source.paths), []) if source.single else of_split(source.paths, data.split, data.source)
    if left_out:
        report.notes.append(f"files left out (not of split {data.split!r}): {', '.join(left_out)}")
    if source.left_out:
        report.notes.append(f"files left out (beside the others, not taken for data): {', '.join(source.left_out)}")
    scan = ChatScan(data, report, look, held_out=held_out)
    scan.run(ChatReader(data, languages_of(paths), own_columns).rows(source, paths), strict, seed)
    if scan.others:
        report.notes.append(f"rows left out: languages not in data.languages ({', '.join(sorted(scan.others))})")
    if scan.overridden:
        said = ", ".join(f"{label} {count:,}" for label, count in scan.overridden.most_common(5))
        report.notes.append(f"data.language = '{data.language}' overrides what rows say of their language ({said})")
    report.languages = dict(sorted(report.languages.items()))
    return scan, paths


def _summary(report: DataReport) -> str:
    lines = [f"{language}: {counts.line()}" for language, counts in report.languages.items()]
    return "; ".join(lines) or "it holds no rows"


def _manifest(
    source: Source, data: Data, seed: int, train: list[Example], held_out: list[Example], extra: dict[str, Any]
) -> dict[str, Any]:
    return {
        "source": data.source,
        "revision": source.revision,
        "format": data.format,
        "split": data.split,
        "languages": list(dict.fromkeys(example.l for example in train)),
        "seed": seed,
        "rows_per_language": data.rows_per_language,
        "eval_rows_per_language": data.eval_rows_per_language,
        "rows": {"train": len(train), "eval": len(held_out)},
        "sha256": {"train": sha256_of(train), "eval": sha256_of(held_out)},
        **extra,
        "versions": {
            "dudi": dudi.__version__,
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            "numpy": np.__version__,
        },
    }
