"""The records by which parts of the package meet in files: what evaluation writes and the report reads. No torch.

A benchmark folder is written by hand, so an unknown key in it is refused; an evaluation folder is written by `dudi
eval`, and keys of a later version are left alone.

benchmark.json, items/*.jsonl, words/XX.txt     `Description`, `Item`; `benchmark_sha256` is of all of them
eval.json                                       `About`
responses-<seed>.jsonl                          `GradedAnswer`
scores.jsonl                                    `TaskScore`
table.json                                      `Table`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PositiveInt

from dudi.errors import DudiError
from dudi.example import Message
from dudi.files import sha256_of
from dudi.records.form import Constraints, Written
from dudi.strict import PerLanguage, Text

T = TypeVar("T")
FEW = 30
"""Below so many items, an interval from a bootstrap is too narrow to trust."""
Number = Annotated[float, Field(allow_inf_nan=False)]
"""Of a record: NaN and infinities are refused."""
CHAT_KWARGS = "chat_kwargs.json"
"""Beside a model's tokenizer: a JSON object of what its chat template was passed in training."""


# ── a benchmark folder ───────────────────────────────────────────────────────────────────────────────────────────────
class Task(Written):
    """One kind of question, in any number of languages."""

    competency: Text
    metric: Text
    """A name of `dudi.evals.metrics.METRICS`."""
    max_new_tokens: PerLanguage | None = None
    """Limit of an answer in tokens: one number, or by language with a `default`; None where none is written."""
    group: Text | None = None
    """Tasks of the same group are averaged before they enter their competency, as one task."""


class Description(Written):
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


class Turn(Written):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Item(Written):
    """One question with its accepted answers: a line of items/*.jsonl."""

    id: Text
    task: Text
    language: Text
    messages: Annotated[tuple[Turn, ...], Field(min_length=1)]
    targets: tuple[Text, ...] = ()
    choices: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    constraints: Constraints | None = None
    response_language: Text | None = None
    """The language in which the answer has to be, where it is not the item's own."""
    key: Text | None = None
    """Items that share one, such as a question in other words or languages, count as one draw in intervals."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages as chat templates take them."""
        return tuple(Message(turn.role, turn.content) for turn in self.messages)

    @property
    def asked(self) -> str:
        """The language that the answer should be in."""
        return self.response_language or self.language


@dataclass(frozen=True)
class BenchmarkFiles:
    """The files of a benchmark folder, hidden ones left out, in the order in which they are read and hashed."""

    main: Path
    items: tuple[Path, ...]
    words: tuple[Path, ...]

    @property
    def sha256(self) -> str:
        """Of all files, with their names: by this an evaluation knows its benchmark."""
        return sha256_of(self.main.parent, (self.main, *self.items, *self.words))


def benchmark_files(folder: Path) -> BenchmarkFiles:
    """The files of a benchmark folder. Raises `DudiError` for one of another kind: it would be ignored in silence."""
    main = folder / "benchmark.json"
    if not main.is_file():
        raise DudiError(f"no benchmark in {str(folder)!r}: expected a folder with benchmark.json and items/*.jsonl")
    return BenchmarkFiles(main, _only(folder / "items", ".jsonl"), _only(folder / "words", ".txt"))


def _only(folder: Path, suffix: str) -> tuple[Path, ...]:
    files = sorted(f for f in folder.iterdir() if not f.name.startswith(".")) if folder.is_dir() else []
    for file in files:
        if file.suffix != suffix or not file.is_file():
            raise DudiError(f"{file}: expected only {suffix} files in {folder.name}/")
    return tuple(files)


# ── an evaluation folder ─────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class AskedModel:
    """Which model was asked, and what of its folder its answers depend on."""

    path: str
    weights_sha256: str
    files_sha256: str
    """Of config, tokenizer, template and generation config."""
    generation_config: Any


@dataclass(frozen=True, kw_only=True)
class AskedBenchmark:
    """What it was asked; path: where the folder lay, if the evaluation says so."""

    path: str | None = None
    name: str
    version: int
    sha256: str


@dataclass(frozen=True)
class Decoding:
    """How it answered. temperature 0 is greedy; attention None: what transformers chooses for the model."""

    temperature: float
    seeds: tuple[int, ...]
    batch: int
    limit: int | None
    dtype: str
    attention: str | None
    template_sha256: str | None
    chat_kwargs: dict[str, str | bool | int]
    engine: str = "local"


DECODERS = ("torch", "transformers")


@dataclass(frozen=True)
class About:
    """eval.json."""

    model: AskedModel
    benchmark: AskedBenchmark
    decoding: Decoding
    versions: dict[str, str]
    """Of packages; those of `DECODERS` may change an answer, the others only score."""
    marks: dict[str, str | None]
    """Metric -> what 100 times the value of one answer is called; None: an answer is right (1) or wrong."""

    def as_dict(self) -> dict[str, Any]:
        """What is written."""
        return asdict(self)


@dataclass(frozen=True)
class GradedAnswer:
    """An answer with what it is worth: a line of responses-<seed>.jsonl. The prompt is the benchmark's.

    tokens, finished: None where the evaluator that asked does not say; value: 0..1, None where `error` says why there
    is no answer; prediction: what the metric took the answer for, if it says; in_language: None where the response's
    language is undetermined.
    """

    id: str
    task: str
    language: str
    response: str
    tokens: int | None
    finished: bool | None
    value: Number | None
    prediction: str | None
    in_language: bool | None
    error: str | None = None
    key: str | None = None
    """The item's, if it has one."""
    log_p: tuple[Number, ...] | None = None
    """Of each choice, in nats, where the model wrote nothing and the response is the choice taken."""

    @property
    def written(self) -> bool:
        """Whether the model wrote it."""
        return self.error is None and self.log_p is None

    def as_dict(self) -> dict[str, Any]:
        """What is written."""
        there = asdict(self).items()
        return {name: value for name, value in there if name not in ("error", "key", "log_p") or value is not None}


@dataclass(frozen=True)
class TaskScore:
    """One task in one language under one decoding seed: a line of scores.jsonl.

    raw: 0..100 as the metric gives it; score: normalised; both None where `error` says why. stopped: share of responses
    that ended by themselves; tokens: mean length; in_language: share in the language asked for, of those whose language
    can be told (None: of none); undetermined: number of the others, such as a letter or a number.
    """

    model: str
    benchmark: str
    task: str
    competency: str
    language: str
    seed: int
    metric: str
    raw: Number | None
    score: Number | None
    n: int
    stopped: Number | None = None
    tokens: Number | None = None
    in_language: Number | None = None
    undetermined: int | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What is written."""
        return asdict(self)


@dataclass(frozen=True)
class Average:
    """An average over decoding seeds; spread: their standard deviation (None with one seed). mean None: refused.

    low, high: the 95 % interval over items, where it is known.
    """

    mean: Number | None
    spread: Number | None = None
    low: Number | None = None
    high: Number | None = None

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        shown = f"{self.mean:.1f}" if self.spread is None else f"{self.mean:.1f} ± {self.spread:.1f}"
        return shown if self.low is None else f"{shown} [{self.low:.1f}, {self.high:.1f}]"


ByName = dict[str, Average]


@dataclass(frozen=True)
class Measures:
    """Beside a score: number of items, and means over seeds of what `TaskScore` says of the responses."""

    n: int
    stopped: Number | None
    tokens: Number | None
    in_language: Number | None
    undetermined: Number | None


@dataclass(frozen=True)
class Table:
    """All averages of one model on one benchmark: table.json. What a language has no items for has no entry."""

    model: str
    benchmark: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    languages: tuple[str, ...]
    averaged: tuple[str, ...]
    competencies: tuple[str, ...]
    by_task: dict[str, ByName]
    """Language -> task -> normalised score."""
    by_competency: dict[str, ByName]
    """Language -> competency."""
    by_language: ByName
    by_language_without_translation: ByName
    competency_overall: ByName
    """Competency, over the averaged languages that have it."""
    overall: Average
    overall_without_translation: Average
    measures: dict[str, dict[str, Measures]]
    """Language -> task."""
    refused: tuple[str, ...]
    """One line for each missing score: what is missing and why."""

    @property
    def few(self) -> list[str]:
        """Averaged languages of so few items that their intervals are not to be trusted; none where there are none."""
        sizes = {l: sum(one.n for one in self.measures.get(l, {}).values()) for l in self.averaged}
        return [] if self.overall.low is None else [l for l, n in sizes.items() if n < FEW]

    def as_dict(self) -> dict[str, Any]:
        """What is written."""
        return asdict(self)


# ── a training's log ─────────────────────────────────────────────────────────────────────────────────────────────────
def fifths(logged: Iterable[tuple[int, T]], end: int) -> tuple[list[T], list[T]]:
    """What was logged, as (step, entry), over the first and the last fifth of `end` steps: at least an entry each."""
    entries = list(logged)
    first = [entry for step, entry in entries if step <= end / 5] or [entry for _, entry in entries[:1]]
    last = [entry for step, entry in entries if step > end * 4 / 5] or [entry for _, entry in entries[-1:]]
    return first, last
