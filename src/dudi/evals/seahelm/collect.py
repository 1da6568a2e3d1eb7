"""What SEA-HELM wrote, read: one run's results file and its rows, in both layouts. No torch.

<model>/run_<N>/results/<model>_seahelm_results_<time>.json
<model>/run_<N>/inferences/<language>/<task or group>/<model>_<task>_<language>.jsonl     rows with individual_scores
<model>/run_<N>/inferences/.../<model>_<task>_<language>_turn1_batch_response.jsonl       v1.2: the answers alone

SEA-HELM writes a task that failed as 0 with an `error`. It is missing here, unless its rows show a real 0: if-eval
without a pass raises in SEA-HELM after its rows were scored, or before they could be written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.evals.seahelm.rows import Row, check_rows, read_responses, read_rows

METRICS = {
    "overall_lang_normalized_acc": None,
    "normalized_metricx_wmt24_scores": "MetricX-24",
    "normalized_rougel_f1": "ROUGE-L",
    "normalized_f1": "F1",
    "average_criteria_score": "judge's score",
    "weighted_win_rate": "win rate",
    "normalized_accuracy": None,
}
"""What SEA-HELM averages, by its key -> what the value of an answer is called; None: right or wrong."""
RAW = {"normalized_accuracy": "accuracy", "normalized_f1": "f1", "normalized_rougel_f1": "rougel_f1"}
"""Metric -> the key of its value before chance is taken off, where SEA-HELM writes one."""
GROUPS = {
    "translations": "translation-",
    "pragmatics": "pragmatic-",
    "safeguard": "safeguard_",
    "thai_exam": "thai_exam_",
    "global_mmlu_lite": "global_mmlu_lite_",
}
"""Group -> how the names of its tasks begin."""
DIAGNOSTICS = "linguistic-diagnostics"
DERIVED = ("pragmatics", "lindsea")
"""In linguistic diagnostics, what SEA-HELM's aggregation adds beside the tasks."""
ZERO_WITH_ERROR = "if-eval"
NAME = re.compile(r"^(?P<model>.+)_seahelm_results_(?P<time>\d{4}-\d\d-\d\dT[\d:.]+)\.json$")


@dataclass(frozen=True)
class TaskResult:
    """One task in one language of one run. score: 0..100 as SEA-HELM normalises; None where `missing` says why."""

    language: str
    task: str
    competency: str
    group: str | None
    metric: str
    score: float | None
    raw: float | None
    missing: str | None
    rows: tuple[Row, ...]
    note: str | None = None
    phenomena: Mapping[str, tuple[float, float]] | None = None
    """Of pragmatics: right and all, by phenomenon."""

    @property
    def key(self) -> tuple[str, str]:
        """(language, task)."""
        return self.language, self.task


@dataclass(frozen=True)
class Results:
    """One run: its tasks, and the groups and totals that SEA-HELM wrote."""

    file: Path
    tasks: tuple[TaskResult, ...]
    groups: Mapping[tuple[str, str, str], float]
    """(language, competency, group)."""
    totals: Mapping[tuple[str, ...], float]
    """(language, competency), (language,) and (), as far as the file has them."""


def read_results(file: Path) -> Results:
    """A results file with the rows beside it. Raises `DudiError` for one that is cut off, stale or changed."""
    table = _read(file)
    tasks, groups = [], {}
    totals: dict[tuple[str, ...], float] = {}
    for language, competencies in table.items():
        if language == "total":
            totals[()] = _number(competencies, f"{file}: total")
            continue
        for competency, entries in _table(competencies, f"{file}: {language}").items():
            at = f"{file}: {language}.{competency}"
            if competency == "total":
                totals[language,] = _number(entries, at)
                continue
            for name, entry in _table(entries, at).items():
                if name == "total":
                    totals[language, competency] = _number(entry, f"{at}.total")
                elif competency == DIAGNOSTICS and name in DERIVED:
                    continue
                elif isinstance(entry, Mapping):
                    tasks.append(_task(file, language, competency, name, entry))
                else:
                    groups[language, competency, name] = _number(entry, f"{at}.{name}")
    if not tasks:
        raise DudiError(f"{file}: no task in it; expected SEA-HELM's {{language: {{competency: {{task: ...}}}}}}")
    found = Results(file, tuple(tasks), groups, totals)
    _check_finished(found)
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DudiError(f"{file}: {error.strerror}; expected a results file of SEA-HELM") from None
    except (ValueError, RecursionError) as error:
        raise DudiError(f"{file}: not valid JSON: {error}") from None
    _check_newest(file)
    return _table(table, str(file))


def _check_newest(file: Path) -> None:
    """Rows are overwritten by each scoring, so those of an older results file are no longer there."""
    name = NAME.match(file.name)
    if name is None:
        return
    beside = [(other, m["time"]) for other in file.parent.iterdir() if (m := NAME.match(other.name))]
    newer = [other.name for other, time in beside if time > name["time"]]
    if newer:
        raise DudiError(f"{file}: stale: {max(newer)} is newer, and the rows beside are its; give that file")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DudiError(f"{where}: expected a table (JSON object), found {str(value)[:40]!r}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise DudiError(f"{where}: expected a number, found {str(value)[:40]!r}")
    return float(value)


def _task(file: Path, language: str, competency: str, task: str, entry: Mapping[str, Any]) -> TaskResult:
    at = f"{file}: {language}.{competency}.{task}"
    counts = _counts(entry, at) if competency == DIAGNOSTICS and task.startswith(GROUPS["pragmatics"]) else None
    metric = "normalized_accuracy" if counts else next((name for name in METRICS if name in entry), None)
    if metric is None:
        raise DudiError(f"{at}: none of the metrics that are read here: {', '.join(METRICS)}")
    value = None if counts else _number(entry[metric], f"{at}.{metric}")
    folder, rows = _rows(file, language, task)
    missing, note = None, None
    if "error" in entry:
        missing, note = _judged(file, language, task, value, rows)
    elif value is not None and competency != DIAGNOSTICS:  # there, phenomena are averaged
        check_rows(rows, metric, value, at)
    raw = entry.get(RAW.get(metric, metric), value)
    return TaskResult(
        language=language,
        task=task,
        competency=competency,
        group=folder if folder not in (None, task) else _group(task),
        metric=metric,
        score=None if missing else value,
        raw=None if missing or raw is None else _number(raw, at),
        missing=missing,
        rows=rows,
        note=note,
        phenomena=counts,
    )


def _counts(entry: Mapping[str, Any], where: str) -> dict[str, tuple[float, float]] | None:
    """Of pragmatics, {phenomenon: (right, all)}; None where the task failed."""
    if "error" in entry:
        return None
    found = _table(entry.get("subcategories"), f"{where}.subcategories")
    for name, pair in found.items():
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int | float) for n in pair)):
            raise DudiError(f"{where}.subcategories.{name}: expected [right, all], found {str(pair)[:40]!r}")
    return {name: (pair[0], pair[1]) for name, pair in found.items()}


def _group(task: str) -> str | None:
    return next((group for group, start in GROUPS.items() if task.startswith(start)), None)


def _rows(file: Path, language: str, task: str) -> tuple[str | None, tuple[Row, ...]]:
    """(folder name, rows) of a task, where there are any."""
    found = _beside(file, language, task, "")
    if found is None:
        return None, ()
    rows, answers = read_rows(found), _beside(file, language, task, "_turn1_batch_response")
    if answers is not None and len(read_responses(answers)) != len(rows):
        raise DudiError(f"{answers}: not as many answers as {found.name} has rows ({len(rows)}): one of them is stale")
    return found.parent.name, rows


def _beside(file: Path, language: str, task: str, ending: str) -> Path | None:
    name = NAME.match(file.name)
    if name is None:
        return None
    folder = file.parent.parent / "inferences" / language
    wanted = f"{name['model']}_{task}_{language}{ending}.jsonl"
    return next((one / wanted for one in sorted(folder.glob("*")) if (one / wanted).is_file()), None)


def _judged(
    file: Path, language: str, task: str, value: float | None, rows: Sequence[Row]
) -> tuple[str | None, str | None]:
    """(why it is missing, what to say) of a task with an error. Told by its rows: a real 0 was answered and scored."""
    if task != ZERO_WITH_ERROR or value != 0:
        return "SEA-HELM failed to score it (error, written as 0)", None
    scored = [row for row in rows if row.value is not None]
    if scored:
        passed = sum(row.value for row in scored if row.value is not None)
        if passed:
            return f"SEA-HELM failed to score it, though {passed:g} of {len(scored)} rows passed", None
        return None, f"{language}, {task}: 0 of {len(scored)} rows passed: a real 0, which SEA-HELM marks as an error"
    answers = _beside(file, language, task, "_turn1_batch_response")
    responses = [row.response for row in rows] or (read_responses(answers) if answers is not None else [])
    if responses and all(response is not None for response in responses):
        return None, (
            f"{language}, {task}: taken for a real 0: all {len(responses)} rows were answered, and SEA-HELM marks 0"
            " passes as an error"
        )
    return "SEA-HELM marks it as an error, and no rows show that it was answered", None


def _check_finished(found: Results) -> None:
    """Totals are written last; they are absent too where a part of linguistic diagnostics failed or was not run."""
    parts: dict[str, set[str]] = {}
    for one in found.tasks:
        if one.competency == DIAGNOSTICS:
            parts.setdefault(one.language, set()).update([one.task] if one.missing is None else [])
    explained = any(not {"mp-r", "pragmatic-single", "pragmatic-pair"} <= done for done in parts.values())
    if () not in found.totals and not explained:
        raise DudiError(f"{found.file}: no totals: the run was stopped before its end; run SEA-HELM again")
