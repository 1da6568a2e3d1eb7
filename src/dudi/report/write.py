"""Runs and evaluations -> one folder: figures/*.png, report.json, report.md, and report.html last."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dudi.errors import DudiError, unknown
from dudi.files import write_text
from dudi.report.blocks import Bullets, Page, Section
from dudi.report.compare import AVERAGE, all_gains, difference, manners
from dudi.report.curves import data_section, rollout_section, time_section, training_section
from dudi.report.evals import Evaluation, find_evals, parse_evals, read_evals
from dudi.report.html import html
from dudi.report.markdown import markdown
from dudi.report.opening import opening_section
from dudi.report.planned import planned_section
from dudi.report.results import evaluation_warnings, responses_section, scores_section
from dudi.report.runs import Run, read_runs
from dudi.report.samples import samples_section
from dudi.report.side_by_side import answers_section, find_items
from dudi.report.stats.intervals import Interval
from dudi.report.training import run_warnings, sampled, signals


@dataclass(frozen=True)
class Report:
    """What the three files say."""

    page: Page
    numbers: dict[str, Any]


def write_report(
    folders: Sequence[Path],
    evals: Sequence[str] = (),
    baseline: str | None = None,
    output: Path | None = None,
    benchmark: Path | None = None,
    subject: str | None = None,
) -> Path:
    """Write the report; returns the page's path.

    folders: of runs. evals: NAME=FOLDER, by default those found below the run folders. baseline: the name of one, by
    default the first. subject: the one that the first sentence speaks of, by default the best but the baseline. output:
    by default `report/` in the first run's folder. benchmark: the folder of the prompts.
    Raises `DudiError` before anything is written.
    """
    if not folders and not evals:
        raise DudiError("nothing to report on: give run folders, or evaluations with --eval NAME=FOLDER")
    if output is None and not folders:
        raise DudiError("without a run there is no default folder: give --output FOLDER")
    target = output if output is not None else folders[0] / "report"
    runs = read_runs(folders)
    named = parse_evals(evals) if evals else find_evals([(run.label, run.folder) for run in runs])
    report = make_report(runs, read_evals(named), baseline, benchmark, subject)
    if target.exists() and not target.is_dir():
        raise DudiError(f"--output {str(target)!r} is a file; expected a folder")
    try:
        _write(report, target)
    except OSError as error:
        raise DudiError(f"--output: {error.filename or target}: {error.strerror or error}") from None
    return target / "report.html"


def make_report(
    runs: Sequence[Run],
    evaluations: Sequence[Evaluation],
    baseline: str | None,
    benchmark: Path | None,
    subject: str | None = None,
) -> Report:
    """Everything but the files."""
    base = _named(evaluations, baseline, "--baseline")
    if benchmark is not None and not evaluations:
        raise DudiError("--benchmark is for evaluations, and there are none")
    sections: list[Section | None] = []
    numbers: dict[str, Any] = {"runs": [_run_numbers(run) for run in runs], "evaluations": []}
    warnings = [line for run in runs for line in run_warnings(run)]
    if base is not None:
        gains = all_gains(evaluations, base)
        manner = {e.name: manners(e) for e in evaluations}
        warnings += evaluation_warnings(evaluations, manner)
        items, why_not = find_items(evaluations, benchmark)
        about = _named(evaluations, subject, "--subject") if subject else _best(evaluations, base)
        assert about is not None
        sections += [opening_section(evaluations, about), scores_section(evaluations, base, gains, runs)]
        sections.append(responses_section(evaluations, manner))
        numbers["baseline"] = base.name
        for e in evaluations:
            found = _eval_numbers(e, base)
            found["over_items"] = {l: _interval(g) for l, g in gains.get(e.name, {}).items()}
            found["responses"] = {l: asdict(m) for l, m in manner[e.name].items()}
            numbers["evaluations"].append(found)
    trained = [run for run in runs if run.stages]
    if trained:
        sections += [training_section(trained), rollout_section(trained), samples_section(trained)]
    if runs:
        sections += [data_section(runs), time_section(runs), planned_section(runs)]
    if base is not None:
        sections.append(answers_section(evaluations, items, why_not))
    if warnings:
        sections.insert(
            1 if base else 0, Section("warnings", "To look at first", (Bullets(tuple(warnings), "warning"),))
        )
    numbers["warnings"] = warnings
    sections.append(Section("made", "What was run", (Bullets(_lines(runs, evaluations), "note"),)))
    page = Page(_title(runs, evaluations), (), tuple(s for s in sections if s))
    names = [figure.name for figure in page.figures()]
    assert len(set(names)) == len(names), "each figure has a file of its own"
    numbers["figures"] = [f"figures/{name}.png" for name in names]
    return Report(page, _plain(numbers))


def _named(evaluations: Sequence[Evaluation], name: str | None, option: str) -> Evaluation | None:
    """The evaluation that an option names, by default the first."""
    if not evaluations:
        if name is not None:
            raise DudiError(f"{option} {name!r}: there are no evaluations")
        return None
    by_name = {e.name: e for e in evaluations}
    if name is not None and name not in by_name:
        raise DudiError(f"{option}: {unknown(name, by_name, 'evaluation')}")
    return by_name[name] if name is not None else evaluations[0]


def _best(evaluations: Sequence[Evaluation], baseline: Evaluation) -> Evaluation:
    others = [e for e in evaluations if e is not baseline and e.table.overall.mean is not None]
    return max(others, key=lambda e: e.table.overall.mean or 0.0, default=baseline)


# ── the head of the page ─────────────────────────────────────────────────────────────────────────────────────────────
def _title(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> str:
    names = [run.label for run in runs] or [e.name for e in evaluations]
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    return "Report: " + ", ".join(names[:4] if more else names) + more


def _lines(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    lines = []
    names = ("dudi", "torch", "transformers")
    for run in runs:
        method, models, machine = run.recipe.to_method(), run.recipe.models, run.environment
        steps = ", ".join(f"{stage.name} {stage.steps} steps" for stage in run.stages) or "no step yet"
        rows = sum(one.rows for one in run.lengths.values())
        teacher = f", teacher {_short(models.teacher)}" if models.teacher else ""
        lines.append(
            f"{run.label}: recipe {run.recipe.name}, method {method.name} ({method.variant}), student"
            f" {_short(models.student)}{teacher}; {rows} rows in {len(run.lengths)} languages; {steps}; seed"
            f" {run.recipe.seed}; {machine.device}, {_count(machine.processes, 'process', 'processes')};"
            f" {_versions(machine.packages, names)}"
        )
    if evaluations:
        versions = {_versions(e.about.versions, names) for e in evaluations}
        each = "; ".join(f"{e.name} = {_short(e.about.model.path)}, {e.about.decoding.dtype}" for e in evaluations)
        lines.append(
            f"Evaluated on {_count(len(evaluations[0].items), 'item', 'items')}: {each}; {' / '.join(sorted(versions))}"
        )
    return tuple(lines)


def _short(model: str) -> str:
    """A hub name as it is; of a folder, the end of its path."""
    return "/".join(Path(model).parts[-3:]) if Path(model).is_absolute() else model


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _versions(packages: dict[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {packages[name]}" for name in names if name in packages)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _run_numbers(run: Run) -> dict[str, Any]:
    return {
        "run": run.label,
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "finished": run.finished,
        "steps": {stage.name: stage.steps for stage in run.stages},
        "signals": [asdict(one) for one in signals(run)],
        "rollouts": [asdict(one) for one in sampled(run)],
        "data": {l: one.model_dump() for l, one in run.data.items()},
        "lengths": {l: one.model_dump() for l, one in run.lengths.items()},
        "seconds": {stage.name: stage.seconds for stage in run.timed},
        "memory": {stage.name: stage.memory for stage in run.timed},
        "planned": None if run.planned is None else run.planned.model_dump(),
    }


def _eval_numbers(e: Evaluation, base: Evaluation) -> dict[str, Any]:
    t, b = e.table, base.table
    gap = {l: difference(t.by_language[l].mean, b.by_language[l].mean) for l in t.languages}
    gap[AVERAGE] = difference(t.overall.mean, b.overall.mean)
    gap["without_translation"] = difference(t.overall_without_translation.mean, b.overall_without_translation.mean)
    return {
        "name": e.name,
        "model": _short(e.about.model.path),
        "benchmark": _without(asdict(e.about.benchmark), "path"),
        "decoding": asdict(e.about.decoding),
        "scores": _without(asdict(t), "model", "benchmark", "seeds"),
        "difference": gap,
    }


def _interval(g: Interval) -> dict[str, Any]:
    return {"mean": g.mean, "low": g.low, "high": g.high, "items": g.n, "side": g.side}


def _without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}


def _plain(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _write(report: Report, target: Path) -> None:
    """Pictures first, the page last; pictures of an earlier report that this one has not are removed."""
    page, text = html(report.page), markdown(report.page)
    old = _old_figures(target)
    for figure in report.page.figures():
        _write_bytes(target / "figures" / f"{figure.name}.png", figure.png)
    write_text(target / "report.json", json.dumps(report.numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(target / "report.md", text)
    write_text(target / "report.html", page)
    for name in old - set(report.numbers["figures"]):
        (target / name).unlink(missing_ok=True)


def _old_figures(target: Path) -> set[str]:
    try:
        listed = json.loads((target / "report.json").read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in listed if name == f"figures/{Path(name).name}" and name.endswith(".png")}


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(data)
    os.replace(aside, path)
