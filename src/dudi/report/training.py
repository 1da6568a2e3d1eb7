"""What is computed of runs: first and last fifths, rollouts by language, what should worry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dudi.records import fifths
from dudi.report.runs import RolloutCell, Run, SignalLoss, Stage

CUT_HIGH = 0.5
EOS_LOW = 0.5
LEFT_OUT_HIGH = 0.1


@dataclass(frozen=True)
class Moved:
    """A signal of a stage: its weight in the loss; its mean loss at both ends, and on the rows held out at last."""

    stage: str
    signal: str
    weight: float
    first: float
    last: float
    held: float | None


@dataclass(frozen=True)
class Sampled:
    """Responses sampled for one view and language (`all`: together) over the last fifth of the steps."""

    stage: str
    view: str
    language: str
    rows: float
    length: float
    share_cut: float
    eos_rate: float


ALL = "all"


def signals(run: Run) -> list[Moved]:
    """Each signal of each stage."""
    found = []
    for stage in run.stages:
        for name in stage.signals:
            entries = [(line.step, line.signal[name]) for line in stage.lines if name in line.signal]
            first, last = fifths(entries, stage.steps)
            held = [line.eval.signal[name].loss for line in stage.held if line.eval and name in line.eval.signal]
            found.append(
                Moved(stage.name, name, last[-1].weight, _loss(first), _loss(last), held[-1] if held else None)
            )
    return found


def _loss(entries: Sequence[SignalLoss]) -> float:
    total = sum(e.count for e in entries)
    return sum(e.loss * e.count for e in entries) / total if total else math.nan


def sampled(run: Run) -> list[Sampled]:
    """By stage, view and language; `all` first."""
    found = []
    for stage in run.stages:
        late = stage.late()
        for view in dict.fromkeys(view for line in stage.lines for view in line.rollout):
            there = [line.rollout[view] for line in late if view in line.rollout]
            cells: dict[str, list[RolloutCell]] = {ALL: list(there)}
            for language in sorted({l for one in there for l in one.by_language}):
                cells[language] = [one.by_language[language] for one in there if language in one.by_language]
            found += [s for l, row in cells.items() if (s := _sampled(stage, view, l, row))]
    return found


def _sampled(stage: Stage, view: str, language: str, cells: Sequence[RolloutCell]) -> Sampled | None:
    rows = sum(cell.rows for cell in cells)
    if not rows:
        return None
    mean = {q: sum(getattr(cell, q) * cell.rows for cell in cells) / rows for q in ("length", "share_cut", "eos_rate")}
    return Sampled(stage.name, view, language, rows, **mean)


def run_warnings(run: Run) -> list[str]:
    """What should be looked at before anything else is believed, in words."""
    found = []
    if not run.stages:
        found.append(f"{run.label}: no training step has been logged yet.")
    elif not run.finished:
        found.append(f"{run.label}: the run is not finished; the figures end at step {run.stages[-1].steps}.")
    found += [f"{run.label}: {text}" for text in _left_out(run)]
    for stage in run.stages:
        found += [f"{run.label}, {stage.name}: {text}" for text in _not_finite(stage)]
    by_stage: dict[str, list[Sampled]] = {}
    for one in sampled(run):
        by_stage.setdefault(one.stage, []).append(one)
    for name, rows in by_stage.items():
        found += [f"{run.label}, {name}: {text}" for text in cut_short(rows)]
    return found


def _left_out(run: Run) -> list[str]:
    """In a line, the languages that lose many of their rows to `limits.prompt`: what is trained on is other data."""
    parts = []
    for l, one in run.lengths.items():
        total = one.rows + one.left_out
        if total and one.left_out / total > LEFT_OUT_HIGH:
            parts.append(f"{l} {_percent(one.left_out / total)} ({one.left_out} of {total})")
    return [f"rows are left out, as x is longer than limits.prompt: {', '.join(parts)}."] if parts else []


def _not_finite(stage: Stage) -> list[str]:
    found = []
    for name in (*stage.signals, "loss", "grad_norm"):
        steps = []
        for line in stage.lines:
            value = line.signal[name].loss if name in line.signal else getattr(line, name, None)
            if value is not None and not math.isfinite(value):
                steps.append(line.step)
        if steps:
            kind = "signal " if name in stage.signals else ""
            count = f", {len(steps)} times in all" if len(steps) > 1 else ""
            found.append(f"{kind}{name} is not a finite number at step {steps[0]}{count}.")
    return found


def cut_short(rows: Sequence[Sampled]) -> list[str]:
    """In a line, the rollouts of a stage that run into the limit: a view as a whole, or single languages in it."""
    bad = [r for r in rows if r.share_cut > CUT_HIGH or r.eos_rate < EOS_LOW]
    parts = []
    for view in dict.fromkeys(r.view for r in bad):
        here = [r for r in bad if r.view == view]
        if here[0].language == ALL:
            parts.append(f"{view} {_percent(here[0].share_cut)} (EOS rate {_percent(here[0].eos_rate)})")
        else:
            parts.append(f"{view} in {', '.join(f'{r.language} {_percent(r.share_cut)}' for r in here)}")
    if not parts:
        return []
    return [f"sampled responses are cut at the length limit more often than not: {'; '.join(parts)}."]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"
