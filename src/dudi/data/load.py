"""The rows of a recipe's [data] table: read, checked, sampled; with a manifest to make the sample again."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

import dudi
from dudi.data.chat import NO_LANGUAGE, ChatScan, read_chat
from dudi.data.files_by_language import by_config, default_languages, of_language, of_split
from dudi.data.hub import Hub
from dudi.data.language_files import LanguageFiles
from dudi.data.quality import FILTERS, STRATUM
from dudi.data.report import DataReport
from dudi.data.rows import Rows, read_rows, sha256_of, write_rows
from dudi.data.sea_instruct import check_language, load_language
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
    source = open_source(data.source, data.revision, hub)
    report = _report(data, source)
    load = _load_sea_instruct if data.format == "sea_instruct" else _load_chat
    train, held_out, extra = load(source, data, seed, report)
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


def check(data: Data, hub: Hub | None = None, special: Callable[[Example], str | None] | None = None) -> DataReport:
    """What is in the data, every row of it read, nothing drawn; `kept` rows are those that could be trained on.

    special: finds a special token in a row's text, to be counted (`Specials.in_row` of a tokenizer). Broken rows are
    counted and the first of each language quoted. Raises `DudiError` only for data that cannot be read.
    """
    source = open_source(data.source, data.revision, hub)
    report = _report(data, source)
    found = report.special = None if special is None else {}

    def look(example: Example) -> None:
        if special is not None and found is not None and (token := special(example)):
            found.setdefault(example.l, Counter())[token] += 1

    if data.format == "sea_instruct":
        for files in _language_files(source, data, report):
            report.languages[files.language] = check_language(files, data, look)
    else:
        _scan(source, data, report, strict=False, seed=None, look=look)
    return report


def _report(data: Data, source: Source) -> DataReport:
    report = DataReport()
    if data.revision is not None and source.revision is None:
        # Not an error: a recipe that pins the hub's revision may be pointed at a local copy.
        report.notes.append(f"data.revision {data.revision!r} is not used: {data.source!r} is local")
    return report


_Loaded = tuple[list[Example], list[Example], dict[str, Any]]


def _load_sea_instruct(source: Source, data: Data, seed: int, report: DataReport) -> _Loaded:
    train: list[Example] = []
    held_out: list[Example] = []
    strata: dict[str, Any] = {}
    paths: list[str] = []
    seen: set[int] = set()
    for files in _language_files(source, data, report):
        drawn = load_language(files, data, seed, seen)
        report.languages[files.language] = drawn.report
        train += drawn.train
        held_out += drawn.eval
        strata[files.language] = drawn.strata
        paths += files.paths
    filters = list(FILTERS) if data.quality_filter else []
    return train, held_out, {"files": paths, "filters": filters, "stratum": list(STRATUM), "strata": strata}


def _language_files(source: Source, data: Data, report: DataReport) -> list[LanguageFiles]:
    """The files of each language, all found before any is read."""
    if data.language is not None:
        raise DudiError("data.language: is for chat data without a language column; name languages in data.languages")
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
        found.append(LanguageFiles.open(source, of_split(paths, data.split, data.source)[0], language))
    return found


def _load_chat(source: Source, data: Data, seed: int, report: DataReport) -> _Loaded:
    scan, paths = _scan(source, data, report, strict=data.bad_rows != "skip", seed=seed)
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
    look: Callable[[Example], None] | None = None,
) -> tuple[ChatScan, list[str]]:
    paths, left_out = (list(source.paths), []) if source.single else of_split(source.paths, data.split, data.source)
    if left_out:
        report.notes.append(f"files left out (not of split {data.split!r}): {', '.join(left_out)}")
    scan = ChatScan(data, report, look)
    scan.run(read_chat(source, paths, data), strict, seed)
    if scan.others:
        report.notes.append(f"rows left out: languages not in data.languages ({', '.join(sorted(scan.others))})")
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
