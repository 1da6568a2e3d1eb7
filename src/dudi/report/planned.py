"""What `dudi plan` said of a run (its folder's `plan.json`), beside what the run took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dudi.report.blocks import Block, Section, Table, Text, Value, number
from dudi.report.runs import PlannedStage, Run, Timed, TriedStage

NOTE = (
    "Modelled: from a data sheet, or the speed of a CPU, without running anything; it knows no loading and no saving."
    " Measured: from real steps before the run, with the range of those that were drawn. In small beside the actual"
    " figure: how much more or less it is than the last of them. A peak of memory is that of the steps."
)
Row = tuple[Value | str, ...]


def planned_section(runs: Sequence[Run]) -> Section | None:
    """For each run with a plan, two tables: seconds by stage and phase, peaks by stage."""
    blocks: list[Block] = []
    for run in runs:
        if run.planned is None:
            continue
        seconds: list[Row] = []
        peaks: list[Row] = []
        for timed, planned, tried in _stages(run):
            seconds += _seconds(timed, planned, tried)
            peaks.append(_peak(timed, planned, tried))
        if seconds:
            where = f"{run.label}, planned for {run.planned.device.title}"
            head = ("modelled", "measured", "actual")
            blocks.append(Table(f"Seconds of {where}", ("stage, phase", *head), tuple(seconds)))
            blocks.append(Table(f"Peak of memory of {where}", ("stage", *head), tuple(peaks)))
    return Section("planned", "Planned and actual", (*blocks, Text(NOTE, "note"))) if blocks else None


def _stages(run: Run) -> Iterator[tuple[Timed, PlannedStage, TriedStage | None]]:
    """The stages that a run and its plan both have."""
    assert run.planned is not None
    planned = {one.stage: one for one in run.planned.stages}
    tried = {one.stage: one for one in run.planned.measured.stages} if run.planned.measured else {}
    for timed in run.timed:
        if timed.name in planned:
            yield timed, planned[timed.name], tried.get(timed.name)


def _seconds(timed: Timed, planned: PlannedStage, tried: TriedStage | None) -> Iterator[Row]:
    """By phase, and in all."""
    measured = tried.seconds if tried else {}
    for phase in dict.fromkeys((*timed.seconds, *planned.seconds, *measured)):
        found = (planned.seconds.get(phase), measured.get(phase), timed.seconds.get(phase))
        yield (f"{timed.name}: {phase}", *(number(one, 2) if one is not None else "" for one in found))
    steps = "" if timed.steps in (0, planned.steps) else f" ({timed.steps} of {planned.steps} steps)"
    modelled, actual = sum(planned.seconds.values()), sum(timed.seconds.values())
    before = Value(number(tried.wall.expected, 2), f"{tried.wall.low:.2f} to {tried.wall.high:.2f}") if tried else ""
    last = tried.wall.expected if tried else modelled
    yield f"{timed.name}: in all{steps}", number(modelled, 2), before, Value(number(actual, 2), _more(actual, last))


def _peak(timed: Timed, planned: PlannedStage, tried: TriedStage | None) -> Row:
    """Of the steps, or of the writing of answers."""
    found = [peak for phase, peak in timed.memory.items() if phase in timed.of_steps or phase == "generation"]
    actual = Value(_gib(max(found)), _more(max(found), planned.peak)) if found else ""
    return timed.name, _gib(planned.peak), _gib(tried.peak) if tried else "", actual


def _gib(size: float) -> str:
    return f"{number(size / 2**30, 2)}\u00a0GiB"


def _more(actual: float, said: float) -> str:
    """By how much the actual figure is above, or below, what was said."""
    return f"{100 * (actual / said - 1):+.0f}\u00a0%" if said else ""
