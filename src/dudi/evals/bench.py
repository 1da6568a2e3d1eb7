"""A benchmark folder: what is asked, how answers are scored, in which order scores are averaged. No torch.

benchmark.json     name, competencies, languages in the average, tasks
items/*.jsonl      one item a line
words/XX.txt       optional, one word or phrase a line: the vocabulary of language XX, for the response-language check
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dudi.errors import DudiError, unknown
from dudi.evals.metrics import METRICS
from dudi.evals.metrics.metric import Metric
from dudi.languages import ENGLISH, LANGUAGES, language_code
from dudi.records import Description, Item, Task, benchmark_files
from dudi.strict import numbered, parsed, read_one, read_text


@dataclass(frozen=True)
class Benchmark:
    """A benchmark folder that has been read and checked."""

    description: Description
    items: tuple[Item, ...]
    words: dict[str, tuple[str, ...]]
    """Language -> its words and phrases; empty where the folder has none."""
    sha256: str
    """Of all its files, with their names."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.description.name

    @property
    def tasks(self) -> dict[str, Task]:
        """Task by name, in the order of the file."""
        return self.description.tasks

    @cached_property
    def by_id(self) -> dict[str, Item]:
        """Item by id."""
        return {item.id: item for item in self.items}

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Languages that have items: those of the average first, in its order."""
        found = dict.fromkeys((*self.description.averaged, *sorted({item.language for item in self.items})))
        return tuple(found)

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """The languages that an answer is recognised among: those of the word lists, or all that occur and English."""
        asked = {code for item in self.items for code in (item.language, item.asked)}
        return tuple(sorted(self.words or {*asked, ENGLISH}))

    @cached_property
    def cells(self) -> dict[tuple[str, str], tuple[Item, ...]]:
        """(task, language) -> its items, in the order of tasks and languages; only those that have items."""
        found: dict[tuple[str, str], list[Item]] = {(t, l): [] for t in self.tasks for l in self.languages}
        for item in self.items:
            found[item.task, item.language].append(item)
        return {cell: tuple(items) for cell, items in found.items() if items}

    def metric(self, item: Item) -> Metric:
        """What scores an item."""
        return METRICS[self.tasks[item.task].metric]

    def by_likelihood(self, item: Item) -> bool:
        """Whether its answer is log p of each choice. A metric of another evaluator asks for a text."""
        metric = METRICS.get(self.tasks[item.task].metric)
        return metric is not None and metric.by_likelihood

    def max_new_tokens(self, item: Item) -> int:
        """The limit of an item's answer, in tokens."""
        limit = self.tasks[item.task].max_new_tokens
        assert limit is not None, "a task whose answers are written has a limit"
        return limit if isinstance(limit, int) else limit.get(item.language, limit["default"])

    def limited(self, limit: int | None) -> tuple[Item, ...]:
        """The items, at most the first `limit` of each task and language."""
        if limit is None:
            return self.items
        kept = {item.id for items in self.cells.values() for item in items[:limit]}
        return tuple(item for item in self.items if item.id in kept)


def read_benchmark(folder: Path | str) -> Benchmark:
    """Read and check a benchmark folder. Raises `DudiError` with file, line, field, what was found and wanted."""
    files = benchmark_files(Path(folder))
    description = read_one(Description, files.main)
    _check_description(description, str(files.main))
    items: dict[str, Item] = {}
    places: dict[str, str] = {}
    for file in files.items:
        for where, line in numbered(file):
            item = parsed(Item, line, where)
            _check_item(item, description, where)
            if item.id in items:
                raise DudiError(f"{where}: id: {item.id!r} is taken already by {places[item.id]}; ids are unique")
            items[item.id], places[item.id] = item, where
    words = {_checked_code(file.stem, str(file), "file name"): _words(file) for file in files.words}
    benchmark = Benchmark(description, tuple(items.values()), words, files.sha256)
    _check_whole(benchmark, Path(folder))
    return benchmark


def _words(file: Path) -> tuple[str, ...]:
    words = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not words:
        raise DudiError(f"{file}: empty; expected one word or phrase a line")
    return words


# ── what has to fit together ─────────────────────────────────────────────────────────────────────────────────────────
def _checked_code(code: str, where: str, field: str) -> str:
    """A language code as this package writes it, or `DudiError`."""
    try:
        known = language_code(code)
    except DudiError as error:
        raise DudiError(f"{where}: {field}: {error}") from None
    if known != code:
        raise DudiError(f"{where}: {field}: use the language code {known!r} instead of {code!r}")
    return code


def _check_description(d: Description, where: str) -> None:
    for field, values in (("competencies", d.competencies), ("averaged", d.averaged), ("translation", d.translation)):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise DudiError(f"{where}: {field}: {twice[0]!r} occurs twice")
    for code in d.averaged:
        _checked_code(code, where, "averaged")
    for name in d.translation:
        if name not in d.competencies:
            raise DudiError(f"{where}: translation: {unknown(name, d.competencies, 'competency')}")
    group_of: dict[str, str] = {}
    for name, task in d.tasks.items():
        at = f"{where}: tasks.{name}"
        if task.competency not in d.competencies:
            raise DudiError(f"{at}.competency: {unknown(task.competency, d.competencies, 'competency')}")
        if task.metric not in METRICS:
            raise DudiError(f"{at}.metric: expected one of {', '.join(map(repr, METRICS))}, found {task.metric!r}")
        silent = METRICS[task.metric].by_likelihood
        if silent != (task.max_new_tokens is None):
            fault = "not read" if silent else "missing"
            writes = "writes nothing" if silent else "needs a limit of its answers in tokens"
            raise DudiError(f"{at}.max_new_tokens: {fault}; metric {task.metric!r} {writes}")
        if isinstance(task.max_new_tokens, dict):
            if "default" not in task.max_new_tokens:
                raise DudiError(f"{at}.max_new_tokens: a table by language needs a `default`")
            for code in set(task.max_new_tokens) - {"default"}:
                _checked_code(code, at, "max_new_tokens")
        if task.group is not None:
            if task.group in d.tasks:
                raise DudiError(f"{at}.group: {task.group!r} is the name of a task; choose another name for the group")
            if group_of.setdefault(task.group, task.competency) != task.competency:
                raise DudiError(
                    f"{at}.group: {task.group!r} has tasks of two competencies ({group_of[task.group]},"
                    f" {task.competency}); a group lies within one"
                )
    for name in d.competencies:
        if name not in {task.competency for task in d.tasks.values()}:
            raise DudiError(f"{where}: competencies: {name!r} has no task")


def _check_item(item: Item, d: Description, where: str) -> None:
    if item.task not in d.tasks:
        raise DudiError(f"{where}: task: {unknown(item.task, d.tasks, 'task')}")
    _checked_code(item.language, where, "language")
    if item.response_language is not None:
        _checked_code(item.response_language, where, "response_language")
    if item.messages[-1].role != "user":
        raise DudiError(f"{where}: messages: the last is of {item.messages[-1].role!r}, expected 'user'")
    name = d.tasks[item.task].metric
    metric = METRICS[name]
    for field in ("choices", "constraints"):
        needed = field in metric.needs
        if (getattr(item, field) is not None) != needed:
            fault = "missing" if needed else "not read"
            raise DudiError(f"{where}: {field}: {fault}; task {item.task!r} has metric {name!r}")
    if not item.targets and "targets" in metric.needs:
        raise DudiError(f"{where}: targets: expected one or more accepted answers, found none")
    if wrong := metric.check(item):
        raise DudiError(f"{where}: {wrong}")


def _check_whole(b: Benchmark, folder: Path) -> None:
    if not b.items:
        raise DudiError(f"{folder / 'items'}: no items; expected .jsonl files with one item a line")
    found = {item.language for item in b.items}
    for name, task in b.tasks.items():
        if name not in {item.task for item in b.items}:
            raise DudiError(f"{folder / 'items'}: task {name!r} of benchmark.json has no items")
        if isinstance(task.max_new_tokens, dict):
            for code in set(task.max_new_tokens) - {"default"} - found:
                raise DudiError(f"{folder / 'benchmark.json'}: tasks.{name}.max_new_tokens: no items in {code!r}")
    for code in b.description.averaged:
        if code not in found:
            raise DudiError(f"{folder / 'benchmark.json'}: averaged: {code!r} has no items")
    for (name, language), items in b.cells.items():
        if fault := METRICS[b.tasks[name].metric].check_all(items):
            raise DudiError(f"{folder / 'items'}: task {name!r}, language {language!r}: {fault}")
    for code in sorted({code for item in b.items for code in (item.language, item.asked)}):
        if b.words and code not in b.words:
            raise DudiError(f"{folder / 'words'}: no {code}.txt; with word lists, every language needs one")
        if not b.words and code not in LANGUAGES:
            raise DudiError(
                f"{folder}: answers in {code!r} cannot be recognised without word lists: give words/{code}.txt and one"
                f" for each other language (known without: {', '.join(LANGUAGES)})"
            )
