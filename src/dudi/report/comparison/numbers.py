"""What is compared: scores with their deviation over training seeds, differences to the baseline, intervals, tests."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from dudi.records import Average, Table
from dudi.report.compare import AVERAGE, Paired, item_values, mean_of, over_items
from dudi.report.comparison.read import Group
from dudi.report.evals import Evaluation
from dudi.report.stats.aso import eps_min, false_positive_rate
from dudi.report.stats.exact import MOST, holm, permutation_p
from dudi.report.stats.intervals import Interval, t_interval


@dataclass(frozen=True)
class Row:
    """One average of a table: of a language, a competency, both, a task in a language; of none of them: the overall."""

    language: str | None = None
    competency: str | None = None
    task: str | None = None
    translation: bool = True
    """False: the overall without translation."""

    def of(self, table: Table) -> Average | None:
        """None: there are no items for it."""
        if self.language is None:
            overall = table.overall if self.translation else table.overall_without_translation
            return overall if self.competency is None else table.competency_overall.get(self.competency)
        if self.task is not None:
            return table.by_task.get(self.language, {}).get(self.task)
        if self.competency is not None:
            return table.by_competency[self.language].get(self.competency)
        return table.by_language[self.language]


OVERALL = Row()


@dataclass(frozen=True)
class Scores:
    """A score of each training seed; None: refused, since a part of it is missing."""

    values: tuple[float | None, ...]

    @property
    def there(self) -> tuple[float, ...]:
        """All of them; none where one is missing."""
        there = tuple(value for value in self.values if value is not None)
        return there if len(there) == len(self.values) else ()

    @property
    def mean(self) -> float | None:
        """None: refused."""
        return statistics.fmean(self.there) if self.there else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over training seeds, of two or more."""
        return statistics.stdev(self.there) if len(self.there) > 1 else None


@dataclass(frozen=True)
class Difference:
    """One row of a method minus the baseline's. None: there is none, as where a score is missing.

    score: of the means. items: of the mean item values, over items. seeds: of the scores, paired over training seeds.
    p: exact permutation test of the scores. eps_min: of the method over the baseline.
    """

    score: float | None
    items: Interval | None = None
    seeds: Interval | None = None
    p: float | None = None
    eps_min: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Groups against one of them. differences: by name, of the rows in `by_language` and `by_competency`.

    least: of these rows, how many items of different keys one of its languages has at least. holm: name -> p of the
    overall difference, corrected for all of them. false_positives: (seeds of a method, of the baseline), where both are
    two or more -> `false_positive_rate`.
    """

    groups: tuple[Group, ...]
    baseline: Group
    by_language: tuple[Row, ...]
    by_competency: tuple[Row, ...]
    cells: tuple[Row, ...]
    """Each language's competencies, then each language's tasks."""
    scores: dict[str, dict[Row, Scores]]
    differences: dict[str, dict[Row, Difference]]
    least: dict[Row, int]
    holm: dict[str, float]
    false_positives: dict[tuple[int, int], tuple[float, float]]

    @property
    def others(self) -> tuple[Group, ...]:
        """All but the baseline."""
        return tuple(group for group in self.groups if group is not self.baseline)

    @property
    def table(self) -> Table:
        """For what is the same in all evaluations."""
        return self.baseline.evaluations[0].table


def compare(groups: Sequence[Group], baseline: Group) -> Comparison:
    """Everything about the groups that is a number."""
    tables = [one.table for group in groups for one in group.evaluations]
    t = baseline.evaluations[0].table
    languages = (*t.averaged, *(l for l in t.languages if l not in t.averaged))
    by_language = [*(Row(l) for l in languages), OVERALL]
    if any(one.by_language != one.by_language_without_translation for one in tables):
        by_language.append(Row(translation=False))
    by_competency = [Row(competency=c) for c in t.competencies if c in t.competency_overall]
    cells = [Row(l, c) for l in languages for c in t.competencies if c in t.by_competency[l]]
    cells += [Row(l, task=task) for l in languages for task in t.by_task.get(l, {})]
    rows = (*by_language, *by_competency, *cells)
    scores = {group.name: {row: _scores(group, row) for row in rows} for group in groups}
    differences: dict[str, dict[Row, Difference]] = {}
    least: dict[Row, int] = {}
    for group in groups:
        if group is not baseline:
            ours, theirs, paired = scores[group.name], scores[baseline.name], _paired(baseline, group)
            over = _over_items(paired, (*by_language, *by_competency), baseline.evaluations[0])
            differences[group.name] = {row: difference(ours[row], theirs[row], over[row][0]) for row in over}
            least |= {row: min(n, least.get(row, n)) for row, (_, n) in over.items()}
    ps = {name: here[OVERALL].p for name, here in differences.items()}
    there = {name: p for name, p in ps.items() if p is not None}
    sizes = {(len(group.evaluations), len(baseline.evaluations)) for group in groups if group is not baseline}
    return Comparison(
        groups=tuple(groups),
        baseline=baseline,
        by_language=tuple(by_language),
        by_competency=tuple(by_competency),
        cells=tuple(cells),
        scores=scores,
        differences=differences,
        least=least,
        holm=dict(zip(there, holm(list(there.values())), strict=True)) if there else {},
        false_positives={(n, m): false_positive_rate(n, m) for n, m in sorted(sizes) if min(n, m) > 1},
    )


def _scores(group: Group, row: Row) -> Scores:
    averages = [row.of(one.table) for one in group.evaluations]
    return Scores(tuple(None if average is None else average.mean for average in averages))


def difference(ours: Scores, theirs: Scores, items: Interval | None) -> Difference:
    """One row. An interval over seeds needs as many of both, a test two of each; nothing is said of missing scores."""
    mine, base = ours.there, theirs.there
    if not mine or not base:
        return Difference(None)
    gap = statistics.fmean(mine) - statistics.fmean(base)
    n, m = len(mine), len(base)
    if min(n, m) < 2:
        return Difference(gap, items)
    paired = t_interval([a - b for a, b in zip(mine, base, strict=True)]) if n == m else None
    p = permutation_p(mine, base) if comb(n + m, n) <= MOST else None
    return Difference(gap, items, paired, p, eps_min(mine, base))


# ── over items ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _over_items(
    paired: Sequence[Paired], rows: Sequence[Row], first: Evaluation
) -> dict[Row, tuple[Interval | None, int]]:
    """The interval of each row, and how many items of different keys one of its languages has at least.

    None where that is a single one, which has no spread; and without translation, since no record says which
    competencies that leaves out.
    """
    averaged = first.table.averaged
    overall = over_items(paired, averaged)
    found: dict[Row, tuple[Interval | None, int]] = {}
    for row in rows:
        here, languages, interval = paired, averaged, overall.get(row.language or AVERAGE)
        if row.language is not None:
            languages = (row.language,)
        elif row.competency is not None:
            here = [one for one in paired if first.tasks[one.task].competency == row.competency]
            languages = tuple(l for l in averaged if row.competency in first.table.by_competency[l])
            interval = over_items([one for one in here if one.language in languages], languages).get(AVERAGE)
        least = min((len({one.key for one in here if one.language == l}) for l in languages), default=0)
        found[row] = (interval if least > 1 and row.translation else None), least
    return found


def _paired(baseline: Group, group: Group) -> list[Paired]:
    """Differences of the items that have a value in every evaluation of both; by id, whatever the files' order."""
    first = baseline.evaluations[0]
    ours, theirs = _values(group), _values(baseline)
    paired = [Paired.of(one, ours[one.id], theirs[one.id]) for one in sorted(first.items, key=lambda one: one.id)]
    return [one for one in paired if one is not None]


def _values(group: Group) -> dict[str, float | None]:
    """Item -> the mean of its value over training seeds."""
    columns = zip(*(item_values(one) for one in group.evaluations), strict=True)
    means = (mean_of(column) for column in columns)
    return dict(zip((one.id for one in group.evaluations[0].items), means, strict=True))
