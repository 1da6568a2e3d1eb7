"""The runs as blocks: losses, rollouts, agreement with the teacher, data, time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dudi.languages import LANGUAGES
from dudi.report.blocks import Block, Figure, Figures, Folded, Section, Sub, Table, Text, Value, number, percent
from dudi.report.figures import Curve, Panel, draw
from dudi.report.results import language_name
from dudi.report.runs import Line, Run, Stage, Timed
from dudi.report.training import ALL, sampled, signals

Point = Callable[[Line], float | None]


def training_section(runs: Sequence[Run]) -> Section:
    """Losses, gradient norms, agreement with the teacher."""
    blocks: list[Block] = [Sub("Losses"), Figures(tuple(_losses(runs))), _signals(runs)]
    blocks.append(
        Text(
            "Lines are means over a window of about a tenth of the steps, with the logged values behind them in light;"
            " diamonds are the rows held out. First and last: mean over the first and the last fifth of the steps,"
            " weighted by tokens (rows, for sequence signals). Losses of different signals have different units.",
            "note",
        )
    )
    agreement = _agreement(runs)
    if agreement:
        blocks += [
            Sub("Agreement with the teacher"),
            Text(
                "overlap@16: share of the 16 likeliest tokens that student and teacher have in common; mass: the"
                " probability that the student gives to those. Entropy in nats. A view is the response that is scored:"
                " y from the data, y_prime and y_tilde sampled by the student.",
                "note",
            ),
            Figures(tuple(agreement)),
        ]
    blocks += [Sub("Gradient norm"), Figures(tuple(_norms(runs)))]
    return Section("training", "Training", tuple(blocks))


def _stages(runs: Sequence[Run]) -> dict[str, list[tuple[int, Run, Stage]]]:
    """Stage name -> (number of the run, run, stage): what shares a panel."""
    found: dict[str, list[tuple[int, Run, Stage]]] = {}
    for number_, run in enumerate(runs):
        for stage in run.stages:
            found.setdefault(stage.name, []).append((number_, run, stage))
    return found


def _curve(label: str, lines: Sequence[Line], point: Point, colour: int, dashed: bool = False) -> list[Curve]:
    points = [(line.step, value) for line in lines if (value := point(line)) is not None]
    if not points:
        return []
    steps, values = zip(*points, strict=True)
    return [Curve(label, steps, values, colour, dashed)]


def _loss_of(signal: str) -> Point:
    return lambda line: line.signal[signal].loss if signal in line.signal else None


def _measure_of(view: str, quantity: str) -> Point:
    return lambda line: getattr(line.measure[view], quantity) if view in line.measure else None


def _rollout_of(view: str, language: str, quantity: str) -> Point:
    def point(line: Line) -> float | None:
        cell = line.rollout[view].by_language.get(language) if view in line.rollout else None
        return getattr(cell, quantity) if cell and cell.rows else None

    return point


def _figure(name: str, caption: str, panel: Panel) -> Figure:
    return Figure(re.sub(r"[^A-Za-z0-9_.-]+", "-", name), caption, draw(panel))


def _losses(runs: Sequence[Run]) -> list[Figure]:
    found = []
    for stage_name, here in _stages(runs).items():
        for signal in dict.fromkeys(s for _, _, stage in here for s in stage.signals):
            curves: list[Curve] = []
            for colour, run, stage in here:
                curves += _curve(run.label, stage.lines, _loss_of(signal), colour)
                held = [(l.step, l.eval.signal[signal].loss) for l in stage.held if l.eval and signal in l.eval.signal]
                if held:
                    steps, values = zip(*held, strict=True)
                    curves.append(Curve(f"{run.label}, held out", steps, values, colour, dots=True))
            panel = Panel(f"{stage_name}: {signal}", "loss", tuple(curves))
            found.append(_figure(f"loss-{stage_name}-{signal}", f"Loss of signal {signal}, stage {stage_name}", panel))
    return found


def _signals(runs: Sequence[Run]) -> Table:
    rows: list[tuple[Value | str, ...]] = []
    for run in runs:
        for m in signals(run):
            name = f"{m.stage}: {m.signal}" if len(runs) == 1 else f"{run.label}, {m.stage}: {m.signal}"
            rows.append((name, f"{m.weight:g}", number(m.first, 4), number(m.last, 4), number(m.held, 4)))
    head = ("signal", "weight", "first fifth", "last fifth", "held out")
    return Table("Mean loss of each signal", head, tuple(rows))


def _norms(runs: Sequence[Run]) -> list[Figure]:
    found = []
    for stage_name, here in _stages(runs).items():
        curves = [
            c for colour, run, stage in here for c in _curve(run.label, stage.lines, lambda l: l.grad_norm, colour)
        ]
        if curves:
            panel = Panel(f"{stage_name}: gradient norm", "norm before clipping", tuple(curves))
            found.append(_figure(f"grad-norm-{stage_name}", f"Gradient norm, stage {stage_name}", panel))
    return found


def _agreement(runs: Sequence[Run]) -> list[Figure]:
    pairs = (
        ("overlap", "overlap with the teacher", "share", ("overlap", "overlap@16"), ("overlap_mass", "mass")),
        ("entropy", "entropy", "nats", ("entropy_student", "student"), ("entropy_teacher", "teacher")),
    )
    found = []
    for stage_name, here in _stages(runs).items():
        for view in dict.fromkeys(v for _, _, stage in here for line in stage.lines for v in line.measure):
            for key, what, unit, *quantities in pairs:
                curves: list[Curve] = []
                for colour, run, stage in here:
                    for dashed, (quantity, short) in enumerate(quantities):
                        label = short if len(runs) == 1 else f"{run.label}, {short}"
                        curves += _curve(
                            label,
                            stage.lines,
                            _measure_of(view, quantity),
                            colour,
                            bool(dashed),
                        )
                panel = Panel(f"{stage_name}: {what}, view {view}", unit, tuple(curves), share=key == "overlap")
                caption = f"{what.capitalize()} over steps, view {view}, stage {stage_name}"
                found.append(_figure(f"{key}-{stage_name}-{view}", caption, panel))
    return found


# ── rollouts ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def rollout_section(runs: Sequence[Run]) -> Section | None:
    """Length and share cut by language, for each run that samples."""
    with_rollouts = [run for run in runs if sampled(run)]
    if not with_rollouts:
        return None
    blocks: list[Block] = [
        Text(
            "What the student wrote during training, by view and language. Cut: ran into the length limit before its"
            " end. A student that is cut most of the time is trained on texts without an end.",
            "note",
        )
    ]
    for run in with_rollouts:
        inner = (_rollout_table(run), Figures(tuple(_rollout_figures(run, len(runs) > 1))))
        blocks += [Folded(run.label, inner, open=len(with_rollouts) == 1)] if len(with_rollouts) > 1 else inner
    return Section("rollouts", "Sampled responses", tuple(blocks))


def _rollout_table(run: Run) -> Table:
    found = sampled(run)
    views = list(dict.fromkeys((s.stage, s.view) for s in found))
    stages = {stage for stage, _ in views}
    head = ["language"]
    for stage, view in views:
        name = view if len(stages) == 1 else f"{stage}, {view}"
        head += [f"{name}: tokens", f"{name}: cut", f"{name}: EOS"]
    cells = {(s.stage, s.view, s.language): s for s in found}
    languages = [*(l for l in dict.fromkeys(s.language for s in found) if l != ALL), ALL]
    rows = []
    for l in languages:
        row: list[Value | str] = ["all languages" if l == ALL else language_name(l)]
        for stage, view in views:
            one = cells.get((stage, view, l))
            row += (
                ["", "", ""]
                if one is None
                else [
                    number(one.length),
                    percent(one.share_cut),
                    percent(one.eos_rate),
                ]
            )
        rows.append(tuple(row))
    return Table(f"{run.label}: mean over the last fifth of the steps", tuple(head), tuple(rows), 1)


def _rollout_figures(run: Run, named: bool) -> list[Figure]:
    found = []
    prefix = f"{run.label}-" if named else ""
    for stage in run.stages:
        for view in dict.fromkeys(v for line in stage.lines for v in line.rollout):
            codes = sorted({l for line in stage.lines if view in line.rollout for l in line.rollout[view].by_language})
            known = [*LANGUAGES, *(l for l in codes if l not in LANGUAGES)]
            for quantity, unit, share in (("length", "tokens", False), ("share_cut", "share cut", True)):
                curves: list[Curve] = []
                for l in codes:
                    curves += _curve(
                        l,
                        stage.lines,
                        _rollout_of(view, l, quantity),
                        (known.index(l) - 1) % len(known),
                    )
                title = f"{stage.name}: {'length' if quantity == 'length' else 'share cut'}, {view}"
                panel = Panel(title, unit, tuple(curves), share=share, at_ends=True)
                name = f"rollout-{prefix}{stage.name}-{view}-{quantity.replace('_', '-')}"
                found.append(_figure(name, f"{run.label}, {title}, by language", panel))
    return found


# ── data and time ────────────────────────────────────────────────────────────────────────────────────────────────────
def data_section(runs: Sequence[Run]) -> Section:
    """Rows by language; runs with the same data share a table."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr((run.data, run.lengths)), []).append(run)
    blocks: list[Block] = [_data_table(group, len(groups) > 1) for group in groups.values()]
    blocks.append(
        Text(
            "Read = kept + set aside for evaluation + dropped (duplicated, filtered, broken, Zawgyi) + not drawn."
            " Left out: the prompt is longer than the limit. Cut: the answer is, and loses its end.",
            "note",
        )
    )
    return Section("data", "Data", tuple(blocks))


def _data_table(group: Sequence[Run], named: bool) -> Table:
    run = group[0]
    rows: list[tuple[Value | str, ...]] = []
    total = [0] * 7
    for l in dict.fromkeys((*run.data, *run.lengths)):
        d, n = run.data.get(l), run.lengths.get(l)
        counts = [0] * 5
        if d:
            dropped = d.duplicated + sum(d.filtered.values()) + sum(d.broken.values()) + d.zawgyi
            counts = [d.read, dropped, d.undrawn, d.eval, d.kept]
        counts += [n.left_out, n.cut] if n else [0, 0]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        rows.append((language_name(l), *map(str, counts), number(n.characters_per_token, 2) if n else "-"))
    rows.append(("all languages", *map(str, total), ""))
    head = (
        "language",
        "read",
        "dropped",
        "not drawn",
        "held out",
        "kept",
        "left out",
        "answer cut",
        "characters a token",
    )
    return Table("Rows by language" + (f": {', '.join(r.label for r in group)}" if named else ""), head, tuple(rows), 1)


def time_section(runs: Sequence[Run]) -> Section | None:
    """Seconds by phase, summed over steps and with those outside of them; below each, its peak of memory."""
    timed = [(run, stage) for run in runs for stage in run.timed]
    if not timed:
        return None
    phases = list(dict.fromkeys(phase for _, stage in timed for phase in stage.seconds))
    rows: list[tuple[Value | str, ...]] = []
    for run, stage in timed:
        cells = [Value(number(stage.seconds[p]) if p in stage.seconds else "", _gib(stage, p)) for p in phases]
        total = Value(number(sum(stage.seconds.values())), _gib(stage, *stage.memory))
        a_step = number(sum(stage.of_steps.values()) / stage.steps, 2) if stage.steps else ""
        name = stage.name if len(runs) == 1 else f"{run.label}, {stage.name}"
        rows.append((name, str(stage.steps or ""), *cells, total, a_step))
    notes = []
    if any(stage.memory for _, stage in timed):
        notes.append(
            "In small, the peak of memory in that phase: what torch had allocated on a GPU, the resident memory of the"
            " process on a CPU; of several processes, the first one's."
        )
    if without := dict.fromkeys(stage.name for _, stage in timed if not stage.outside):
        notes.append(f"Loading, evaluation and saving are not in it yet: {', '.join(without)}.")
    table = Table("Seconds by phase", ("stage", "steps", *phases, "total", "a step"), tuple(rows))
    return Section("time", "Time and memory", (table, *(Text(note, "note") for note in notes)))


def _gib(stage: Timed, *phases: str) -> str:
    peaks = [stage.memory[phase] for phase in phases if phase in stage.memory]
    return f"{number(max(peaks) / 2**30, 2)}\u00a0GiB" if peaks else ""
