"""A plan as tables, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from dudi.errors import DudiError
from dudi.files import write_text
from dudi.run.plan.devices import BANDWIDTH, USABLE, UTILISATION
from dudi.run.plan.memory import AFTER_FIRST, HOST, PHASES
from dudi.run.plan.plan import Plan, Stage, gb
from dudi.run.plan.scaled import Measurement

Part = Table | str
MODEL = (
    "a model, never calibrated on a GPU: {flops:.0%} of the data sheet's arithmetic and {bytes:.0%} of its bandwidth,"
    " responses as long as the rows' own answers"
)


def parts(plan: Plan) -> Iterator[Part]:
    """Tables and lines, in the order to read them."""
    yield from _rows(plan)
    yield from _memory(plan)
    yield from _time(plan)
    if plan.measured is not None:
        yield from _measured(plan, plan.measured)
    yield from _disk(plan)
    for fault in plan.faults:
        yield f"does not fit: {fault}"
    if not plan.faults:
        yield "it fits"


def _rows(plan: Plan) -> Iterator[Part]:
    """1. What is read, and what the limits leave out and cut."""
    table = _table("rows", "rows", "left out", "cut", "refused", "tokens of x", "tokens of y", "characters a token")
    for l, one in plan.lengths.items():
        x, y = plan.tokens[l]
        refused = sum(one.get("refused", {}).values())
        numbers = (one["rows"], one["left_out"], one["cut"], refused, x, y)
        table.add_row(l, *(f"{n:,}" for n in numbers), f"{one['characters_per_token']:.2f}")
    yield table
    yield from plan.said
    names = next(iter(plan.proposed.values()), {})
    limits = _table("limits", *(f"{name}, {which}" for name in names for which in ("now", "proposed")))
    for l, found in plan.proposed.items():
        limits.add_row(l, *(f"{n:,}" for name in names for n in (plan.limits[l][name], found[name])))
    yield limits
    yield "proposed: limits that leave out or cut at most 2 % of the rows of each language, and take z from at most 1 %"


def _memory(plan: Plan) -> Iterator[Part]:
    """2. By item and stage."""
    table = _table("memory of a device", "when", *(stage.memory.stage for stage in plan.stages))
    by_stage = [{item.name: item for item in stage.memory.items} for stage in plan.stages]
    for name in dict.fromkeys(name for items in by_stage for name in items):
        phases = next(items[name].phases for items in by_stage if name in items)
        table.add_row(name, _when(phases), *(gb(items[name].bytes) if name in items else "" for items in by_stage))
    table.add_row("peak", "", *(_peak(stage) for stage in plan.stages))
    if plan.measured is not None:
        peaks = (f"{gb(one.peak)} ({one.phase})" for one in plan.measured.stages)
        table.add_row("peak, measured", "", *peaks)
    table.add_row("micro_batch: recipe's, largest", "", *(_micro(stage) for stage in plan.stages))
    yield table
    share = "" if plan.device.is_cpu else f", {USABLE:.0%} of it for tensors"
    yield f"{plan.device.title}: {gb(plan.device.memory)}{share}"
    for fault in dict.fromkeys(fault for stage in plan.stages for fault in stage.memory.unknown):
        yield f"not counted: {fault}"


def _time(plan: Plan) -> Iterator[Part]:
    """3. By phase and stage."""
    table = _table("time", *(stage.time.stage for stage in plan.stages))
    for name in dict.fromkeys(name for stage in plan.stages for name in stage.time.seconds):
        table.add_row(name, *(_duration(stage.time.seconds.get(name)) for stage in plan.stages))
    table.add_row("in all", *(_duration(stage.time.total) for stage in plan.stages))
    table.add_row("steps, or batches", *(f"{stage.time.steps:,}" for stage in plan.stages))
    yield table
    modelled = sum(stage.time.total for stage in plan.stages)
    yield f"{_duration(modelled)} on {plan.gpus} x {plan.device.title}: {_paid(plan, modelled)}"
    yield MODEL.format(flops=UTILISATION, bytes=BANDWIDTH)


def _paid(plan: Plan, seconds: float) -> str:
    """Device-hours, and what they cost."""
    hours = seconds * plan.gpus / 3600
    unit = "hours of this CPU" if plan.device.is_cpu else "GPU-hours"
    money = "" if plan.price is None else f", {hours * plan.price:,.2f} at {plan.price:g} an hour"
    return f"{hours:.2f} {unit}{money}"


def _measured(plan: Plan, found: Measurement) -> Iterator[Part]:
    """3 again, as real steps have it."""
    table, stages = _table("measured", *(one.stage for one in found.stages)), found.stages
    for name in dict.fromkeys(name for one in stages for name in one.seconds):
        table.add_row(name, *(_duration(one.seconds.get(name)) for one in stages))
    table.add_row("in all", *(_duration(float(one.total[0])) for one in stages))
    table.add_row("from, to", *(f"{_duration(float(one.low[0]))}, {_duration(float(one.high[0]))}" for one in stages))
    table.add_row("drawn, of steps or batches", *(f"{one.timed}, {one.steps:,}" for one in stages))
    yield table
    before = ", ".join(f"{name} {_duration(float(spent[0]))}" for name, spent in found.before.items())
    expected, low, high = (float(spent[0]) for spent in (found.total, found.low, found.high))
    cpu = f", {_duration(float(found.total[1]))} of CPU time over all threads" if plan.device.is_cpu else ""
    yield f"measured here: {_duration(expected)} ({_duration(low)} to {_duration(high)}): {_paid(plan, expected)}{cpu}"
    yield (
        f"of it before the first stage: {before}. The range is meant to hold 95 of 100 runs, by how the drawn steps"
        " differ and how far off such plans were on a CPU. Left out: the start of Python, the rehearsal, what the first"
        " steps take longer"
    )
    for one in stages:
        if one.rollouts is not None:
            written, limit = one.rollouts
            yield (
                f"{one.stage}: what was sampled had {written:.1f} tokens on average, of {limit:.1f} at most; a model"
                " that learns to stop earlier takes less"
            )


def _disk(plan: Plan) -> Iterator[Part]:
    """4. At the worst moment."""
    table = _table("disk", "at most")
    for name, size in plan.disk.items.items():
        table.add_row(name, gb(size))
    table.add_row("in all", gb(plan.disk.total))
    table.add_row(f"free on {plan.disk.folder}", gb(plan.disk.free))
    yield table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _when(phases: Sequence[str]) -> str:
    if phases == PHASES:
        return "always"
    if phases == (HOST,):
        return "beside the device"
    return "micro-batches, step" if phases == AFTER_FIRST else ", ".join(phases)


def _peak(stage: Stage) -> str:
    least = "at least " if stage.memory.unknown else ""
    return f"{least}{gb(stage.memory.peak)} ({stage.memory.phase})"


def _micro(stage: Stage) -> str:
    return "" if stage.micro_batch is None else f"{stage.micro_batch}, {stage.largest}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def write_json(file: Path, text: str) -> None:
    """A plan for machines. Raises `DudiError` where the file cannot be written."""
    try:
        write_text(file, text + "\n")
    except OSError as error:
        raise DudiError(f"--json {file}: cannot be written ({error.strerror}); name another file") from None
