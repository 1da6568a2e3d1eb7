"""Answers -> values of items -> one `Score` for each task, language and seed. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dudi.evals import scoring
from dudi.evals.aggregate import Score
from dudi.evals.bench import Benchmark, Item
from dudi.evals.language import identify


@dataclass(frozen=True)
class Answer:
    """One response: its text without special tokens, its length in tokens, whether it stopped by itself.

    error: why there is none, as where the chat template refuses the prompt.
    """

    text: str
    tokens: int
    finished: bool
    error: str | None = None


@dataclass(frozen=True)
class Scored:
    """An item with its answer and what that is worth: a line of responses-<seed>.jsonl.

    value: 0..1; prediction: the choice (metric choice; "" for none of them) or the normalised text (exact);
    in_language: None where the response's language is undetermined.
    """

    item: Item
    answer: Answer
    value: float | None
    prediction: str | None
    in_language: bool | None

    def as_dict(self) -> dict[str, Any]:
        """What is written; the prompt is the benchmark's and is not repeated."""
        return {
            "id": self.item.id,
            "task": self.item.task,
            "language": self.item.language,
            "response": self.answer.text,
            "tokens": self.answer.tokens,
            "finished": self.answer.finished,
            "value": self.value,
            "prediction": self.prediction,
            "in_language": self.in_language,
            **({"error": self.answer.error} if self.answer.error is not None else {}),
        }


def score_item(item: Item, answer: Answer, benchmark: Benchmark) -> Scored:
    """One answer, by its task's metric."""
    if answer.error is not None:
        return Scored(item, answer, None, None, None)
    metric, text = benchmark.tasks[item.task].metric, answer.text
    languages = identify(text, benchmark.candidates, benchmark.words or None)
    in_language = item.asked in languages if languages else None
    prediction = None
    if metric == "choice":
        assert item.choices is not None
        prediction = scoring.predicted(text, item.choices)
        value = float(prediction == scoring.normalise(item.targets[0]))
    elif metric == "exact":
        prediction = scoring.normalise(text)
        value = scoring.exact(text, item.targets)
    elif metric == "chrf":
        value = scoring.sentence_chrf(text, item.targets)
    else:
        assert item.constraints is not None
        good = scoring.satisfies(text, item.constraints)
        good = good and (not item.targets or bool(scoring.exact(text, item.targets)))
        value = float(good and (item.response_language is None or bool(in_language)))
    return Scored(item, answer, value, prediction, in_language)


def score_cells(rows: Sequence[Scored], benchmark: Benchmark, model: str, seed: int) -> list[Score]:
    """One `Score` for each task and language that has items."""
    by_cell: dict[tuple[str, str], list[Scored]] = {}
    for row in rows:
        by_cell.setdefault((row.item.task, row.item.language), []).append(row)
    return [_score_cell(by_cell[cell], benchmark, cell, model, seed) for cell in benchmark.cells if by_cell.get(cell)]


def _score_cell(rows: Sequence[Scored], benchmark: Benchmark, cell: tuple[str, str], model: str, seed: int) -> Score:
    task, language = cell
    kind = benchmark.tasks[task]
    raw, baseline, error = _raw(rows, kind.metric)
    told = [row.in_language for row in rows if row.in_language is not None]
    answered = [row.answer for row in rows if row.answer.error is None]
    return Score(
        model=model,
        benchmark=benchmark.name,
        task=task,
        competency=kind.competency,
        language=language,
        seed=seed,
        metric=kind.metric,
        raw=raw,
        score=None if raw is None else scoring.normalised(raw, baseline),
        n=len(rows),
        stopped=_share([a.finished for a in answered]),
        tokens=_share([a.tokens for a in answered]),
        in_language=_share(told),
        undetermined=len(answered) - len(told),
        error=error,
    )


def _raw(rows: Sequence[Scored], metric: str) -> tuple[float | None, float, str | None]:
    """(raw score, baseline, error) of one task and language."""
    failed = [row.answer.error for row in rows if row.answer.error is not None]
    if failed:
        return None, 0.0, f"{len(failed)} of {len(rows)} items could not be asked: {failed[0]}"
    if metric == "choice":
        gold = [scoring.normalise(row.item.targets[0]) for row in rows]
        if len(set(gold)) < 2:
            return None, 0.0, f"the right choice is the same in all {len(rows)} items: balanced accuracy needs two"
        raw, baseline = scoring.balanced_accuracy(gold, [row.prediction or "" for row in rows])
        return raw, baseline, None
    if metric == "chrf":
        return scoring.corpus_chrf([row.answer.text for row in rows], [row.item.targets for row in rows]), 0.0, None
    values = [row.value for row in rows if row.value is not None]
    return 100 * sum(values) / len(rows), 0.0, None


def _share(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
