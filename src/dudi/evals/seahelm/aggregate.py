"""SEA-HELM's averages by name: tasks and groups -> competency -> language -> overall. No torch.

per_run       what SEA-HELM writes into a results file (`aggregate_metrics`), for all that was to be scored
paper7        the seven competencies that need no LLM judge, in the seven languages, with the tasks of commit 41cbb6a
leaderboard   what its leaderboard shows: each question from a run drawn at random, 30 times

A task that is missing makes every average over it None, with a line that says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dudi.errors import DudiError
from dudi.evals.aggregate import aggregate
from dudi.evals.seahelm.collect import DIAGNOSTICS, GROUPS, METRICS, Results, TaskResult
from dudi.evals.seahelm.rows import balanced
from dudi.records import Table, TaskScore

CHANCE = 50.0
"""Of pragmatics, in percent."""
SUBJECTS = GROUPS["global_mmlu_lite"]
PRAGMATICS = ("pragmatic-single", "pragmatic-pair")
BOOTSTRAPS, BOOTSTRAP_SEED = 30, 94370244
IGNORED = "syntax-criteria"
"""A task of linguistic diagnostics that SEA-HELM's totals leave out, but its leaderboard does not."""
NEAR = 1e-9
_SHARED = {"nlg": ("translations", "abssum"), "nlr": ("causal", "nli"), "instruction-following": ("if-eval",)}
_TOXIC, _DIAGNOSED = {"safety": ("toxicity",)}, {DIAGNOSTICS: ("mp-r", "pragmatics")}
_KNOWN = {"knowledge": ("global_mmlu_lite",)}
PAPER7: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "id": {"nlu": ("sentiment", "qa", "metaphor"), **_SHARED, **_TOXIC, **_DIAGNOSED, **_KNOWN},
    "vi": {"nlu": ("sentiment", "qa"), **_SHARED, **_TOXIC, **_KNOWN},
    "th": {"nlu": ("sentiment", "qa"), **_SHARED, **_TOXIC, "knowledge": ("thai_exam",)},
    "ta": {"nlu": ("sentiment", "qa"), **_SHARED, **_DIAGNOSED},
    "tl": {"nlu": ("sentiment", "belebele-qa-mc"), **_SHARED, **_TOXIC, **_KNOWN},
    "ms": {
        "nlu": ("sentiment", "belebele-qa-mc"),
        "nlg": ("translations",),
        "instruction-following": ("if-eval",),
        **_TOXIC,
        **_KNOWN,
    },
    "my": {"nlu": ("sentiment", "belebele-qa-mc"), **_SHARED, **_TOXIC, **_KNOWN},
}
"""Language -> competency -> tasks and groups: the columns of the paper's Table 8."""
ORDER = ("nlu", "nlg", "nlr", "safety", DIAGNOSTICS, "instruction-following", "knowledge", "multi-turn", "cultural")


@dataclass(frozen=True)
class Unit:
    """What a competency is the mean of: a task, or a group of tasks."""

    language: str
    competency: str
    name: str
    score: float | None
    raw: float | None
    missing: str | None
    tasks: tuple[TaskResult, ...]

    @property
    def metric(self) -> str:
        """The key that SEA-HELM averages."""
        return self.tasks[0].metric if self.tasks else next(iter(METRICS))


@dataclass(frozen=True)
class Expected:
    """A task that was to be scored: why it is not among the results is said where it is missing."""

    language: str
    competency: str
    task: str
    group: str | None
    why: str | None = None
    rows: int = 0
    """How many prompts it has, as far as they are known."""
    prompts_sha256: str | None = None

    @property
    def unit(self) -> tuple[str, str, str]:
        """(language, competency, unit) that it is a part of."""
        return self.language, self.competency, self.group or self.task


@dataclass(frozen=True)
class Member:
    """A unit's place."""

    competency: str
    group: str | None = None


@dataclass(frozen=True)
class Columns:
    """What a table shows, in its order."""

    competencies: tuple[str, ...]
    averaged: tuple[str, ...]
    translation: tuple[str, ...] = ()
    version: int = 1


@dataclass(frozen=True)
class Averaging:
    """What is averaged, as `dudi.evals.aggregate` asks for it. cells: (unit, language)."""

    name: str
    description: Columns
    tasks: Mapping[str, Member]
    cells: tuple[tuple[str, str], ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """All of them are averaged."""
        return self.description.averaged


def _place(one: tuple[str, str, str]) -> tuple[object, ...]:
    """Languages and competencies in the paper's order, others behind them."""
    language, competency, unit = one
    known, order = list(PAPER7), list(ORDER)
    at = known.index(language) if language in known else len(known)
    return at, language, order.index(competency) if competency in order else len(order), competency, unit


def averaging(name: str, places: Iterable[tuple[str, str, str]]) -> Averaging:
    """Of (language, competency, unit)."""
    listed = sorted(set(places), key=_place)
    languages = tuple(dict.fromkeys(language for language, _, _ in listed))
    found = {competency for _, competency, _ in listed}
    competencies = (*(c for c in ORDER if c in found), *sorted(found - set(ORDER)))
    cells = tuple((unit, language) for language, _, unit in listed)
    return Averaging(name, Columns(competencies, languages), {unit: Member(c) for _, c, unit in listed}, cells)


def paper7() -> Averaging:
    """The paper's: all of it is wanted, whatever was run."""
    return averaging(
        "paper7", [(l, c, unit) for l, row in PAPER7.items() for c, units in row.items() for unit in units]
    )


def per_run(found: Sequence[Sequence[Unit]]) -> Averaging:
    """What was to be scored in any run."""
    return averaging("per_run", [(u.language, u.competency, u.name) for run in found for u in run])


# ── units ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def units(results: Results, expected: Sequence[Expected] = ()) -> list[Unit]:
    """The units of one run's results and of what was expected beside them, checked against SEA-HELM's own totals."""
    done = {task.key for task in results.tasks}
    lost = [one for one in expected if (one.language, one.task) not in done]
    gone: dict[tuple[str, str, str], list[str]] = {}
    for one in lost:
        why = f"{one.task}: {one.why or 'not in the results'}" if one.group else one.why or "not in the results"
        gone.setdefault(one.unit, []).append(why)
    members: dict[tuple[str, str, str], list[TaskResult]] = {place: [] for place in gone}
    for task in results.tasks:
        members.setdefault((task.language, task.competency, task.group or task.task), []).append(task)
    for place in results.groups:
        if place not in members:
            raise DudiError(f"{results.file}: {'.'.join(place)}: a group of tasks that are not in the file")
    found = [_unit(place, tasks, gone.get(place, []), results) for place, tasks in members.items()]
    found = [unit for unit in found if unit.name != IGNORED]
    _check_totals(results, found)
    return found


def _unit(place: tuple[str, str, str], tasks: Sequence[TaskResult], gone: Sequence[str], results: Results) -> Unit:
    language, competency, name = place
    why = [*gone, *(f"{one.task}: {one.missing}" if one.group else one.missing for one in tasks if one.missing)]
    if why:
        return Unit(language, competency, name, None, None, "; ".join(why), tuple(tasks))
    if competency == DIAGNOSTICS and name == "pragmatics":
        score: float | None = _pragmatics(tasks) if len(tasks) == len(PRAGMATICS) else None
        missing = None if score is not None else f"it takes the rows of {' and '.join(PRAGMATICS)}"
        return Unit(language, competency, name, score, score, missing, tuple(tasks))
    if len(tasks) == 1 and tasks[0].group is None:
        return Unit(language, competency, name, tasks[0].score, tasks[0].raw, None, tuple(tasks))
    own = results.groups.get(place)  # some groups are weighted by the rows of files that are not here
    scores = [one.score for one in tasks if one.score is not None]
    value = own if own is not None else sum(scores) / len(scores)
    return Unit(language, competency, name, value, value, None, tuple(tasks))


def _pragmatics(tasks: Sequence[TaskResult]) -> float | None:
    """Right answers of both tasks pooled by phenomenon; the phenomena averaged; chance taken off."""
    shares = []
    for phenomenon in ("scalar_implicatures", "presuppositions"):
        pairs = [one.phenomena[phenomenon] for one in tasks if one.phenomena and phenomenon in one.phenomena]
        if sum(every for _, every in pairs) == 0:
            return None
        shares.append(100 * sum(right for right, _ in pairs) / sum(every for _, every in pairs))
    return 100 * max((sum(shares) / len(shares) - CHANCE) / (100 - CHANCE), 0.0)


def _check_totals(results: Results, found: Sequence[Unit]) -> None:
    """Raises `DudiError` where SEA-HELM's totals do not follow from its tasks: somebody changed the file."""
    table = per_run_table("", results.file.name, [found], (0,))
    by_place: dict[tuple[str, ...], float | None] = {(): table.overall.mean}
    by_place |= {(l,): average.mean for l, average in table.by_language.items()}
    by_place |= {(l, c): average.mean for l, row in table.by_competency.items() for c, average in row.items()}
    for place, total in results.totals.items():
        mine = by_place.get(place)
        if mine is not None and abs(mine - total) > NEAR * max(abs(total), 1):
            where = ".".join((*place, "total"))
            raise DudiError(f"{results.file}: {where} is {total}, but its tasks give {mine}: the file was changed")


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def scores(wanted: Averaging, found: Sequence[Unit], model: str, run: int) -> list[TaskScore]:
    """One run's units as score records, in the order of the averaging; what nobody scored is missing."""
    by_cell = {(unit.name, unit.language): unit for unit in found}
    return [
        _score(wanted, name, language, by_cell.get((name, language)), model, run) for name, language in wanted.cells
    ]


def _score(wanted: Averaging, name: str, language: str, unit: Unit | None, model: str, run: int) -> TaskScore:
    return TaskScore(
        model=model,
        benchmark=wanted.name,
        task=name,
        competency=wanted.tasks[name].competency,
        language=language,
        seed=run,
        metric=unit.metric if unit else next(iter(METRICS)),
        raw=unit.raw if unit else None,
        score=unit.score if unit else None,
        n=sum(len(one.rows) for one in unit.tasks) if unit else 0,
        error=unit.missing if unit else "not among what was run",
    )


def per_run_table(model: str, benchmark: str, found: Sequence[Sequence[Unit]], runs: Sequence[int]) -> Table:
    """Mean over runs of SEA-HELM's own averages."""
    wanted = per_run(found)
    return aggregate([s for run, one in zip(runs, found, strict=True) for s in scores(wanted, one, model, run)], wanted)


# ── leaderboard ──────────────────────────────────────────────────────────────────────────────────────────────────────
def leaderboard(model: str, runs: Sequence[Results], expected: Sequence[Expected]) -> Table:
    """Means and standard deviations over bootstraps, as `helpers/results_aggregation.ipynb` takes them.

    Each question's score is drawn from one of the runs; a task whose labels repeat is a choice, with balanced accuracy
    and chance taken off; any other is the mean. Random numbers are drawn task by task in the order of `expected`.
    """
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    by_key = [{task.key: task for task in run.tasks} for run in runs]
    bootstraps = BOOTSTRAPS if len(runs) > 1 else 1  # of one run, they are all the same
    drawn: list[list[TaskScore]] = [[] for _ in range(bootstraps)]
    places = []
    members: dict[str, Member] = {}
    for one, found, why in _pooled([(one, *_of(one, by_key, generator)) for one in expected]):
        members[one.task] = Member(one.competency, one.group)
        places.append((one.task, one.language))
        for number, row in enumerate(drawn):
            value = None if found is None else found[number]
            row.append(_drawn(model, one, value, one.why or why, number))
    wanted = averaging("leaderboard", [(l, members[task].competency, task) for task, l in places])
    wanted = Averaging("leaderboard", wanted.description, members, tuple(places))
    table = aggregate([score for row in drawn for score in row], wanted)
    once = dict.fromkeys(re.sub(r", seed \d+:", ":", line, count=1) for line in table.refused)
    return replace(table, refused=tuple(once))


Drawn = tuple[list[float] | None, str | None]
"""A task's score in each bootstrap; or why there is none."""


def _of(
    one: Expected, by_key: Sequence[Mapping[tuple[str, str], TaskResult]], generator: np.random.Generator
) -> tuple[list[float] | None, str | None, int]:
    """A task's bootstraps, and how many rows it has."""
    versions = [tasks.get((one.language, one.task)) for tasks in by_key]
    return *_bootstrapped(versions, generator), max((len(task.rows) for task in versions if task), default=0)


def _pooled(
    found: Iterable[tuple[Expected, list[float] | None, str | None, int]],
) -> list[tuple[Expected, list[float] | None, str | None]]:
    """With the subjects of Global MMLU Lite as one task, weighted by rows: as they were before v1.2."""
    kept, subjects = [], dict[str, list[tuple[Expected, list[float] | None, str | None, int]]]()
    for one, scores, why, rows in found:
        if one.task.startswith(SUBJECTS):
            subjects.setdefault(one.language, []).append((one, scores, why, rows))
        else:
            kept.append((one, scores, why))
    for parts in subjects.values():
        whole = replace(parts[0][0], task=SUBJECTS.rstrip("_"), group=None)
        reason = next((part[0].why or part[2] for part in parts if part[1] is None), None)
        rows = sum(part[3] for part in parts)
        weighted = [[value * part[3] / rows for value in part[1] or ()] for part in parts] if rows else []
        kept.append((whole, None if reason else [sum(column) for column in zip(*weighted, strict=True)], reason))
    return kept


def _drawn(model: str, one: Expected, value: float | None, why: str | None, number: int) -> TaskScore:
    return TaskScore(
        model=model,
        benchmark="leaderboard",
        task=one.task,
        competency=one.competency,
        language=one.language,
        seed=number,
        metric="bootstrap",
        raw=value,
        score=value,
        n=0,
        error=None if value is not None else why or "no score",
    )


def _bootstrapped(versions: Sequence[TaskResult | None], generator: np.random.Generator) -> Drawn:
    missing = next((one.missing for one in versions if one is not None and one.missing), None)
    there = [one for one in versions if one is not None and one.missing is None]
    if missing or len(there) < len(versions):
        return None, missing or "not in every run's results"
    values = [_values(one) for one in there]
    if not values[0] or len({len(row) for row in values}) > 1:
        return None, "no rows, or not as many in every run"
    table = np.array(values)
    index = generator.integers(0, len(values), size=(BOOTSTRAPS, table.shape[1]))
    picked = table[index, np.arange(table.shape[1])]
    labels = [row.label for row in there[0].rows]
    subject = there[0].task.startswith(SUBJECTS)
    if None not in labels and len(labels) == table.shape[1] and (subject or len(set(labels)) != len(labels)):
        k = 4 if subject else None
        return [balanced(labels, [float(int(v)) for v in row], k) for row in picked.tolist()], None
    return [100 * float(mean) for mean in picked.mean(axis=1)], None


def _values(task: TaskResult) -> list[float]:
    """As the notebook reads them: each turn by itself; no score is 0, except where if-eval leaves a question out."""
    if task.task == "if-eval":
        return [row.value for row in task.rows if row.value is not None]
    return [value for row in task.rows for value in row.turns or (row.value or 0.0,)]
