"""Responses -> the score of each cell: one task in one language under one decoding seed. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.evals.answers import value_of
from dudi.evals.bench import Benchmark
from dudi.evals.metrics import METRICS
from dudi.records import GradedAnswer, TaskScore


def task_scores(responses: Sequence[GradedAnswer], benchmark: Benchmark, model: str, seed: int) -> list[TaskScore]:
    """One score for each task and language that has responses."""
    by_cell: dict[tuple[str, str], list[GradedAnswer]] = {}
    for one in responses:
        by_cell.setdefault((one.task, one.language), []).append(one)
    return [_task_score(by_cell[cell], benchmark, model, seed) for cell in benchmark.cells if cell in by_cell]


def _task_score(responses: Sequence[GradedAnswer], benchmark: Benchmark, model: str, seed: int) -> TaskScore:
    task = benchmark.tasks[responses[0].task]
    error = _why_not(responses, benchmark)
    items, metric = [benchmark.by_id[one.id] for one in responses], METRICS[task.metric]
    values = [] if error else [value_of(one) for one in responses]
    raw = None if error else metric.score(items, [one.response for one in responses], values)
    written = [one for one in responses if one.written]
    told = [one.in_language for one in written if one.in_language is not None]
    return TaskScore(
        model=model,
        benchmark=benchmark.name,
        task=responses[0].task,
        competency=task.competency,
        language=responses[0].language,
        seed=seed,
        metric=task.metric,
        raw=raw,
        score=None if raw is None else normalised(raw, metric.baseline(items)),
        n=len(responses),
        stopped=_share([one.finished for one in written if one.finished is not None]),
        tokens=_share([one.tokens for one in written if one.tokens is not None]),
        in_language=_share(told),
        undetermined=len(written) - len(told) if written else None,
        error=error,
    )


def _why_not(responses: Sequence[GradedAnswer], benchmark: Benchmark) -> str | None:
    """Why these responses have no score; None: they have one."""
    failed = [one.error for one in responses if one.error is not None]
    if failed:
        return f"{len(failed)} of {len(responses)} items could not be asked: {failed[0]}"
    metric = METRICS[benchmark.tasks[responses[0].task].metric]
    return metric.check_all([benchmark.by_id[one.id] for one in responses])


def normalised(score: float, baseline: float, best: float = 100.0) -> float:
    """max((s - baseline) / (max - baseline), 0) * 100: 0 is chance or worse, 100 is the best there is."""
    return max((score - baseline) / (best - baseline), 0.0) * 100


def _share(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
