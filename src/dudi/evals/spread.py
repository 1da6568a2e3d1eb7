"""How well a score is known: intervals of the averages, by a bootstrap over what the items ask. No torch.

Items that share a key, such as one question in other words or languages, are drawn together. In each of `DRAWS` draws
with replacement every average is computed anew, as `aggregate` does it. An interval is of this very model: so much
other items of this kind would have moved its score. What another training would have moved is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dudi.evals.aggregate import averages
from dudi.evals.bench import Benchmark
from dudi.evals.cells import normalised
from dudi.evals.metrics import METRICS
from dudi.records import Average, ByName, GradedAnswer, Table, TaskScore

DRAWS = 1_000
LEVEL = 0.95
Floats = NDArray[np.float64]


def with_intervals(
    table: Table, scores: Iterable[TaskScore], responses: Sequence[Sequence[GradedAnswer]], benchmark: Benchmark
) -> Table:
    """The table with intervals of the languages' averages and of the overall ones. responses: of each decoding seed."""
    asked = [benchmark.by_id[one.id] for one in responses[0]]
    places = {key: place for place, key in enumerate(dict.fromkeys(item.key or item.id for item in asked))}
    if table.refused or len(places) < 2:
        return table
    generator = np.random.default_rng(list(f"intervals {benchmark.sha256}".encode()))
    times = generator.multinomial(len(places), np.full(len(places), 1 / len(places)), DRAWS).astype(np.float64)
    of = {item.id: places[item.key or item.id] for item in asked}
    cells = {(score.task, score.language): score for score in scores}
    drawn = {cell: _drawn(score, responses, times, of, benchmark) for cell, score in cells.items()}
    tables = [averages({cell: float(column[at]) for cell, column in drawn.items()}, benchmark) for at in range(DRAWS)]

    def known(average: Average, columns: list[Average]) -> Average:
        low, high = np.quantile([one.mean for one in columns], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return replace(average, low=float(low), high=float(high))

    def each(name: str) -> ByName:
        return {l: known(one, [getattr(t, name)[l] for t in tables]) for l, one in getattr(table, name).items()}

    def overall(name: str) -> Average:
        return known(getattr(table, name), [getattr(t, name) for t in tables])

    return replace(
        table,
        by_language=each("by_language"),
        by_language_without_translation=each("by_language_without_translation"),
        overall=overall("overall"),
        overall_without_translation=overall("overall_without_translation"),
    )


def _drawn(
    score: TaskScore,
    responses: Sequence[Sequence[GradedAnswer]],
    times: Floats,
    of: Mapping[str, int],
    benchmark: Benchmark,
) -> Floats:
    """The normalised score of one task and language in each draw, (DRAWS,); times: how often each key is drawn."""
    rows = [[one for one in seed if (one.task, one.language) == (score.task, score.language)] for seed in responses]
    items = [benchmark.by_id[one.id] for one in rows[0]]
    metric = METRICS[score.metric]
    values = np.mean([[one.value or 0.0 for one in row] for row in rows], axis=0)
    counts = times[:, [of[item.id] for item in items]]
    strata = np.array(metric.strata(items))
    shifts = []
    for stratum in set(strata.tolist()):
        here = strata == stratum
        n, mean = counts[:, here].sum(axis=1), values[here].mean()
        shifts.append(np.where(n > 0, counts[:, here] @ values[here] / np.maximum(n, 1), mean) - mean)
    # A corpus score, as chrF++ is one, is not the mean of its items: a draw moves it as far as it moves the mean.
    assert score.raw is not None
    baseline = metric.baseline(items)
    return np.array([normalised(raw, baseline) for raw in score.raw + 100 * np.mean(shifts, axis=0)])
