"""Scores averaged in SEA-HELM's order: task (groups first) -> competency -> language -> overall, plain means each time.

A task that failed is missing, never 0: an average that would contain it is refused, and the table says why. No torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dudi.evals.bench import Benchmark
from dudi.records import Average, ByName, Measures, Table, TaskScore


def aggregate(scores: Iterable[TaskScore], benchmark: Benchmark) -> Table:
    """The averages of one model's scores, under one decoding seed or several."""
    scores = list(scores)
    (model,) = {s.model for s in scores} or {""}
    seeds = tuple(dict.fromkeys(s.seed for s in scores))
    found = {(s.task, s.language, s.seed): s for s in scores}
    assert len(found) == len(scores), "one score for each task, language and seed"
    single = [
        averages({(t, l): s.score for (t, l, at), s in found.items() if at == seed}, benchmark)
        for seed in seeds or (0,)
    ]
    return replace(
        single[0],
        model=model,
        seeds=seeds,
        by_task={l: _over([t.by_task[l] for t in single]) for l in benchmark.languages},
        by_competency={l: _over([t.by_competency[l] for t in single]) for l in benchmark.languages},
        by_language=_over([t.by_language for t in single]),
        by_language_without_translation=_over([t.by_language_without_translation for t in single]),
        competency_overall=_over([t.competency_overall for t in single]),
        overall=_average([t.overall.mean for t in single]),
        overall_without_translation=_average([t.overall_without_translation.mean for t in single]),
        measures=_measures(scores, benchmark),
        refused=_refused(found, seeds, benchmark),
    )


def averages(scores: Mapping[tuple[str, str], float | None], b: Benchmark) -> Table:
    """The averages of normalised scores by (task, language), under one seed."""
    d = b.description
    value = {cell: scores.get(cell) for cell in b.cells}
    by_task = {l: {t: value[t, l] for t in b.tasks if (t, l) in value} for l in b.languages}
    by_competency = {l: _competencies(by_task[l], b) for l in b.languages}
    others = [c for c in d.competencies if c not in d.translation]
    by_language = {l: _mean(list(by_competency[l].values())) for l in b.languages}
    without = {l: _mean([by_competency[l][c] for c in others if c in by_competency[l]]) for l in b.languages}
    columns = {c: [by_competency[l][c] for l in d.averaged if c in by_competency[l]] for c in d.competencies}
    return Table(
        model="",
        benchmark=b.name,
        seeds=(),
        languages=b.languages,
        averaged=d.averaged,
        competencies=d.competencies,
        by_task={l: _averages(row) for l, row in by_task.items()},
        by_competency={l: _averages(row) for l, row in by_competency.items()},
        by_language=_averages(by_language),
        by_language_without_translation=_averages(without),
        competency_overall=_averages({c: _mean(column) for c, column in columns.items()}),
        overall=Average(_mean([by_language[l] for l in d.averaged])),
        overall_without_translation=Average(_mean([without[l] for l in d.averaged])),
        measures={},
        refused=(),
    )


def _competencies(by_task: Mapping[str, float | None], b: Benchmark) -> dict[str, float | None]:
    """Competency -> mean over its tasks and groups, of those that a language has."""
    result: dict[str, float | None] = {}
    for competency in b.description.competencies:
        units: dict[str, list[float | None]] = {}
        for name, value in by_task.items():
            task = b.tasks[name]
            if task.competency == competency:
                units.setdefault(task.group or name, []).append(value)
        if units:
            result[competency] = _mean([_mean(unit) for unit in units.values()])
    return result


def _mean(values: Sequence[float | None]) -> float | None:
    """A plain mean; None where a value is missing, or where there is none at all."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there and len(there) == len(values) else None


def _averages(row: Mapping[str, float | None]) -> ByName:
    return {name: Average(value) for name, value in row.items()}


def _average(values: Sequence[float | None]) -> Average:
    """Mean and standard deviation over seeds."""
    there = [value for value in values if value is not None]
    mean = _mean(values)
    return Average(mean, statistics.stdev(there) if mean is not None and len(there) > 1 else None)


def _over(rows: Sequence[ByName]) -> ByName:
    """The same row of several tables, cell by cell over seeds."""
    return {name: _average([row[name].mean for row in rows]) for name in rows[0]}


def _measures(scores: Sequence[TaskScore], b: Benchmark) -> dict[str, dict[str, Measures]]:
    result: dict[str, dict[str, Measures]] = {l: {} for l in b.languages}
    for task, language in b.cells:
        here = [s for s in scores if (s.task, s.language) == (task, language)]
        if here:
            result[language][task] = Measures(
                here[0].n,
                *(_known([getattr(s, q) for s in here]) for q in ("stopped", "tokens", "in_language", "undetermined")),
            )
    return result


def _known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are."""
    return _mean([value for value in values if value is not None])


def _refused(found: Mapping[tuple[str, str, int], TaskScore], seeds: Sequence[int], b: Benchmark) -> tuple[str, ...]:
    lines = []
    for task, language in b.cells:
        for seed in seeds or (0,):
            score = found.get((task, language, seed))
            if score is None or score.score is None:
                why = "no score" if score is None else score.error or "no score"
                lines.append(f"{task}, {language}" + (f", seed {seed}" if len(seeds) > 1 else "") + f": {why}")
    return tuple(lines)
