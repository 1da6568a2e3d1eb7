"""A benchmark folder: what is asked, how answers are scored, in which order scores are averaged. No torch.

benchmark.json     name, competencies, languages in the average, tasks
items/*.jsonl      one item a line
words/XX.txt       optional, one word or phrase a line: the vocabulary of language XX, for the response-language check
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from dudi.errors import DudiError, unknown
from dudi.evals.parse import checked_code, read_text, validated
from dudi.evals.scoring import Constraints, normalise
from dudi.example import Message
from dudi.files import sha256_of
from dudi.languages import ENGLISH, LANGUAGES
from dudi.recipe.schema import PerLanguage, Section, Text, shown

Metric = Literal["choice", "exact", "chrf", "constraints"]


class Task(Section):
    """One kind of question, in any number of languages."""

    competency: Text
    metric: Metric
    max_new_tokens: PerLanguage
    """Limit of an answer in tokens: one number, or by language with a `default`."""
    group: Text | None = None
    """Tasks of the same group are averaged before they enter their competency, as one task."""


class Description(Section):
    """benchmark.json."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: PositiveInt
    competencies: Annotated[tuple[Text, ...], Field(min_length=1)]
    """In the order of the tables."""
    averaged: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Languages of the overall average; others are shown only."""
    translation: tuple[Text, ...] = ()
    """Competencies left out of the second average."""
    tasks: Annotated[dict[Text, Task], Field(min_length=1)]


class Turn(Section):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Item(Section):
    """One question with its accepted answers."""

    id: Text
    task: Text
    language: Text
    messages: Annotated[tuple[Turn, ...], Field(min_length=1)]
    targets: tuple[Text, ...] = ()
    choices: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    constraints: Constraints | None = None
    response_language: Text | None = None
    """The language in which the answer has to be, where it is not the item's own."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages as chat templates take them."""
        return tuple(Message(turn.role, turn.content) for turn in self.messages)

    @property
    def asked(self) -> str:
        """The language that the answer should be in."""
        return self.response_language or self.language


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

    def max_new_tokens(self, item: Item) -> int:
        """The limit of an item's answer, in tokens."""
        limit = self.tasks[item.task].max_new_tokens
        return limit if isinstance(limit, int) else limit.get(item.language, limit["default"])

    def limited(self, limit: int | None) -> tuple[Item, ...]:
        """The items, at most the first `limit` of each task and language."""
        if limit is None:
            return self.items
        kept = {item.id for items in self.cells.values() for item in items[:limit]}
        return tuple(item for item in self.items if item.id in kept)


def read_benchmark(folder: Path | str) -> Benchmark:
    """Read and check a benchmark folder. Raises `DudiError` with file, line, field, what was found and wanted."""
    folder = Path(folder)
    main = folder / "benchmark.json"
    if not main.is_file():
        raise DudiError(f"no benchmark in {str(folder)!r}: expected a folder with benchmark.json and items/*.jsonl")
    description = validated(Description, read_text(main), str(main), {"tasks": Task})
    _check_description(description, str(main))
    item_files, word_files = _files(folder / "items", ".jsonl"), _files(folder / "words", ".txt")
    items: dict[str, Item] = {}
    places: dict[str, str] = {}
    for file in item_files:
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{file}: line {number}"
            item = validated(Item, line, where, {"messages": Turn, "constraints": Constraints})
            _check_item(item, description, where)
            if item.id in items:
                raise DudiError(f"{where}: id: {item.id!r} is taken already by {places[item.id]}; ids are unique")
            items[item.id], places[item.id] = item, where
    words = {checked_code(file.stem, str(file), "file name"): _words(file) for file in word_files}
    benchmark = Benchmark(
        description, tuple(items.values()), words, sha256_of(folder, (main, *item_files, *word_files))
    )
    _check_whole(benchmark, folder)
    return benchmark


def _files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder, hidden ones left out; another kind of file would be ignored in silence: refused."""
    files = sorted(f for f in folder.iterdir() if not f.name.startswith(".")) if folder.is_dir() else []
    for file in files:
        if file.suffix != suffix or not file.is_file():
            raise DudiError(f"{file}: expected only {suffix} files in {folder.name}/")
    return files


def _words(file: Path) -> tuple[str, ...]:
    words = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not words:
        raise DudiError(f"{file}: empty; expected one word or phrase a line")
    return words


# ── what has to fit together ─────────────────────────────────────────────────────────────────────────────────────────
def _check_description(d: Description, where: str) -> None:
    for field, values in (("competencies", d.competencies), ("averaged", d.averaged), ("translation", d.translation)):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise DudiError(f"{where}: {field}: {twice[0]!r} occurs twice")
    for code in d.averaged:
        checked_code(code, where, "averaged")
    for name in d.translation:
        if name not in d.competencies:
            raise DudiError(f"{where}: translation: {unknown(name, d.competencies, 'competency')}")
    group_of: dict[str, str] = {}
    for name, task in d.tasks.items():
        at = f"{where}: tasks.{name}"
        if task.competency not in d.competencies:
            raise DudiError(f"{at}.competency: {unknown(task.competency, d.competencies, 'competency')}")
        if isinstance(task.max_new_tokens, dict):
            if "default" not in task.max_new_tokens:
                raise DudiError(f"{at}.max_new_tokens: a table by language needs a `default`")
            for code in set(task.max_new_tokens) - {"default"}:
                checked_code(code, at, "max_new_tokens")
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
    checked_code(item.language, where, "language")
    if item.response_language is not None:
        checked_code(item.response_language, where, "response_language")
    if item.messages[-1].role != "user":
        raise DudiError(f"{where}: messages: the last is of {item.messages[-1].role!r}, expected 'user'")
    metric = d.tasks[item.task].metric
    for field, reader in (("choices", "choice"), ("constraints", "constraints")):
        if (getattr(item, field) is not None) != (metric == reader):
            fault = "missing" if metric == reader else "not read"
            raise DudiError(f"{where}: {field}: {fault}; task {item.task!r} has metric {metric!r}")
    if not item.targets and metric != "constraints":
        raise DudiError(f"{where}: targets: expected one or more accepted answers, found none")
    for field in ("targets", "choices"):
        for text in getattr(item, field) or ():
            if metric != "chrf" and not normalise(text):
                raise DudiError(f"{where}: {field}: {text!r} is only punctuation, and nothing once that is stripped")
    if item.choices is not None:
        labels = [normalise(choice) for choice in item.choices]
        if len(set(labels)) < len(labels):
            raise DudiError(f"{where}: choices: two are the same once normalised, in {shown(item.choices)}")
        if len(item.targets) != 1 or normalise(item.targets[0]) not in labels:
            raise DudiError(
                f"{where}: targets: expected exactly one, which is among the choices {shown(item.choices)}, found"
                f" {shown(item.targets)}"
            )
    if item.constraints is not None and not (item.targets or item.response_language or item.constraints.given):
        raise DudiError(f"{where}: constraints: nothing to check; expected a constraint, targets or response_language")


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
        if b.tasks[name].metric == "choice" and len({normalise(item.targets[0]) for item in items}) == 1:
            raise DudiError(
                f"{folder / 'items'}: task {name!r}, language {language!r}: the right choice is always"
                f" {items[0].targets[0]!r}; balanced accuracy needs items of two right choices or more"
            )
    for code in sorted({code for item in b.items for code in (item.language, item.asked)}):
        if b.words and code not in b.words:
            raise DudiError(f"{folder / 'words'}: no {code}.txt; with word lists, every language needs one")
        if not b.words and code not in LANGUAGES:
            raise DudiError(
                f"{folder}: answers in {code!r} cannot be recognised without word lists: give words/{code}.txt and one"
                f" for each other language (known without: {', '.join(LANGUAGES)})"
            )
