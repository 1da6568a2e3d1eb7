"""The evaluations as tables: averages, competencies, differences over items, what the responses were like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dudi.languages import LANGUAGES
from dudi.records import FEW, Average
from dudi.report.blocks import Block, Bullets, Folded, Section, Sub, Table, Text, Value, number, percent, signed
from dudi.report.compare import AVERAGE, Manner, OverItems, difference
from dudi.report.evals import Evaluation
from dudi.report.runs import Run
from dudi.report.stats.intervals import Interval

EOS_LOW = 0.5

MARKS = {"above 0": "▲", "below 0": "▼", "contains 0": "○"}
SIDES = {"above 0": "up", "below 0": "down", "contains 0": ""}


def language_name(code: str) -> str:
    """`Thai (th)`; a code that is not one of the eight stands for itself."""
    return f"{LANGUAGES[code].name} ({code})" if code in LANGUAGES else code


def other_marks(evaluations: Sequence[Evaluation], best: int) -> str:
    """What is said after "right and wrong" of answers that are neither: `; chrF++ from 0 to 100`, or nothing."""
    names = dict.fromkeys(name for e in evaluations for name in e.about.marks.values() if name is not None)
    return "".join(f"; {name} from 0 to {best}" for name in names)


def scores_section(
    evaluations: Sequence[Evaluation], baseline: Evaluation, gains: Mapping[str, OverItems], runs: Sequence[Run]
) -> Section:
    """Languages x models, differences over items, then each model's competencies."""
    first = evaluations[0].about.benchmark
    blocks: list[Block] = [Text(f"Benchmark {first.name}, version {first.version}. {_scale(baseline, evaluations)}")]
    blocks += [_main(evaluations, baseline), *refused(evaluations)]
    blocks += [Text(text, "note") for text in _seeds(evaluations, runs)]
    if gains:
        blocks += _bootstrap(evaluations, baseline, gains)
    blocks.append(Sub("Competencies, by model"))
    blocks += [_competencies(one, baseline) for one in evaluations]
    return Section("scores", "Scores", tuple(blocks))


def _scale(baseline: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    text = "Scores are normalised: 0 is chance, 100 the best there is."
    small = ["its 95 % interval over items"] if baseline.table.overall.low is not None else []
    small += [f"the difference to {baseline.name} in points"] if len(evaluations) > 1 else []
    if small:
        text += f" Below each score, in small, {' and '.join(small)}."
    shown = [language_name(l) for l in baseline.table.languages if l not in baseline.table.averaged]
    return text + (f" {', '.join(shown)}: shown, not averaged." if shown else "")


def _cell(cell: Average, base: Average | None) -> Value:
    text = number(cell.mean) + ("" if cell.mean is None or cell.spread is None else f" ± {number(cell.spread)}")
    known = [] if cell.low is None or cell.high is None else [f"{number(cell.low)} to {number(cell.high)}"]
    return Value(text, "; ".join(known + ([] if base is None else [signed(difference(cell.mean, base.mean))])))


def _main(evaluations: Sequence[Evaluation], baseline: Evaluation) -> Table:
    table = baseline.table

    def row(name: str, pick: Callable[[Evaluation], Average]) -> tuple[Value | str, ...]:
        return (name, *(_cell(pick(e), None if e is baseline else pick(baseline)) for e in evaluations))

    def of(language: str) -> Callable[[Evaluation], Average]:
        return lambda e: e.table.by_language[language]

    rows = [row(language_name(l), of(l)) for l in table.averaged]
    rows += [row(f"{language_name(l)}, not averaged", of(l)) for l in table.languages if l not in table.averaged]
    rows.append(row("average", lambda e: e.table.overall))
    sums = 1
    if _has_translation(evaluations):
        rows.append(row("without translation", lambda e: e.table.overall_without_translation))
        sums += 1
    return Table("Score by language and model", ("language", *(e.name for e in evaluations)), tuple(rows), sums)


def _has_translation(evaluations: Sequence[Evaluation]) -> bool:
    tables = [e.table for e in evaluations]
    return any(t.by_language != t.by_language_without_translation for t in tables)


def refused(evaluations: Sequence[Evaluation]) -> list[Block]:
    """Which scores are missing, and why."""
    lines = [f"{e.name}: {line}" for e in evaluations for line in e.table.refused]
    if not lines:
        return []
    return [
        Text("Missing scores. A “-” is an average that would contain one of them; nothing is counted as 0.", "warning"),
        Bullets(tuple(lines), "warning"),
    ]


def _seeds(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[str]:
    ways = {e.decoding for e in evaluations}
    how = ways.pop() if len(ways) == 1 else "; ".join(f"{e.name}: {e.decoding}" for e in evaluations)
    texts = [f"How answers were drawn: {how}."]
    if any(len(e.table.seeds) > 1 for e in evaluations):
        texts[0] += (
            " ± is the standard deviation over the decoding seeds of one trained model: how much sampling moves the"
            " score, not how much another training would."
        )
    limits = {e.about.decoding.limit for e in evaluations} - {None}
    if limits:
        texts.append(f"Only the first {max(l for l in limits if l)} items of each task and language were asked.")
    repeated = training_seeds(runs)
    if repeated:
        told = "; ".join(f"{', '.join(labels)} (training seeds {', '.join(map(str, s))})" for labels, s in repeated)
        texts.append(
            f"Runs of one recipe under several training seeds: {told}. Compare methods by the spread between such runs;"
            " a difference smaller than it means nothing."
        )
    else:
        texts.append(
            "Each column is one trained model, so one training seed. The same recipe with another seed scores higher or"
            " lower: a difference smaller than this seed noise, which one training cannot show, means nothing. Saying"
            " that one method beats another takes several training runs of each."
        )
    return texts


def training_seeds(runs: Sequence[Run]) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(labels, seeds) of runs that are the same recipe but for the seed, where there are several."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = run.recipe.model_dump_json(exclude={"seed", "output", "name", "description"})
        groups.setdefault(same, []).append(run)
    found = []
    for group in groups.values():
        seeds = tuple(run.recipe.seed for run in group)
        if len(set(seeds)) > 1:
            found.append((tuple(run.label for run in group), seeds))
    return found


def _bootstrap(evaluations: Sequence[Evaluation], baseline: Evaluation, gains: Mapping[str, OverItems]) -> list[Block]:
    others = [e for e in evaluations if e is not baseline]
    languages = [*baseline.table.averaged, *(l for l in baseline.table.languages if l not in baseline.table.averaged)]
    rows: list[tuple[Value | str, ...]] = []
    for key in (*languages, AVERAGE):
        here = [gains[e.name].get(key) for e in others]
        items = next((str(g.n) for g in here if g), "0")
        rows.append((key if key == AVERAGE else language_name(key), items, *map(interval_value, here)))
    few = [language_name(l) for l in languages if any((g := gains[e.name].get(l)) and g.n < FEW for e in others)]
    table = Table(
        f"Difference to {baseline.name} over items, in points",
        ("language", "items", *(e.name for e in others)),
        tuple(rows),
        1,
    )
    text = (
        f"Each item's value (right 1, wrong 0{other_marks(evaluations, 1)}) minus {baseline.name}'s on the same item;"
        " mean times 100, with a 95 % interval from a paired bootstrap (10,000 resamples of the items)."
        " ▲ the interval lies above 0, ▼ below 0, ○ it contains 0. The values are not normalised, so the mean differs"
        " from the difference of scores. The interval says what other items of this kind might have shown for these"
        " very models; it holds no noise of training."
    )
    if few:
        text += f" Under {FEW} items, and so too narrow to trust: {', '.join(few)}."
    tests = sum(len(g) for g in gains.values())
    if tests > 20:
        text += f" Of {tests} intervals about {round(tests / 20)} would miss 0 by chance alone."
    return [Sub("Is the difference more than the choice of items?"), table, Text(text, "note")]


def interval_value(gain: Interval | None) -> Value:
    """A cell: on which side of 0, the mean, and the interval below."""
    if gain is None:
        return Value("-")
    return Value(
        f"{MARKS[gain.side]} {signed(gain.mean)}", f"[{signed(gain.low)}, {signed(gain.high)}]", SIDES[gain.side]
    )


def _competencies(one: Evaluation, baseline: Evaluation) -> Folded:
    table, base = one.table, None if one is baseline else baseline.table
    extra = _has_translation([one])
    head = ("language", *table.competencies, "average", *(["without translation"] if extra else []))
    rows: list[tuple[Value | str, ...]] = []
    for l in (*table.averaged, *(l for l in table.languages if l not in table.averaged)):
        cells: list[Value | str] = [language_name(l) + ("" if l in table.averaged else ", not averaged")]
        for c in table.competencies:
            cell = table.by_competency[l].get(c)
            cells.append("" if cell is None else _cell(cell, base.by_competency[l].get(c) if base else None))
        cells.append(_cell(table.by_language[l], base.by_language[l] if base else None))
        if extra:
            without = base.by_language_without_translation[l] if base else None
            cells.append(_cell(table.by_language_without_translation[l], without))
        rows.append(tuple(cells))
    last: list[Value | str] = ["average"]
    for c in table.competencies:
        cell = table.competency_overall.get(c)
        last.append("" if cell is None else _cell(cell, base.competency_overall.get(c) if base else None))
    last.append(_cell(table.overall, base.overall if base else None))
    if extra:
        last.append(_cell(table.overall_without_translation, base.overall_without_translation if base else None))
    rows.append(tuple(last))
    return Folded(one.name, (Table(f"{one.name}: score by language and competency", head, tuple(rows), 1),))


def responses_section(evaluations: Sequence[Evaluation], manners: Mapping[str, Mapping[str, Manner]]) -> Section:
    """Response language, EOS rate, length: languages x models, each."""
    table = evaluations[0].table
    languages = (*table.averaged, *(l for l in table.languages if l not in table.averaged))
    head = ("language", *(e.name for e in evaluations))

    def rows(show: Callable[[Manner], str]) -> tuple[tuple[Value | str, ...], ...]:
        return tuple((language_name(l), *(show(manners[e.name][l]) for e in evaluations)) for l in languages)

    blocks: list[Block] = [
        Table("In the language asked for", head, rows(lambda m: percent(m.in_language))),
        Text(
            "Of the responses whose language can be told: a letter, a number or a few Latin words that several"
            " languages share are left out.",
            "note",
        ),
        Table("Ended by themselves (EOS rate)", head, rows(lambda m: percent(m.eos_rate))),
        Table("Mean length in tokens", head, rows(lambda m: number(m.tokens))),
    ]
    return Section("responses", "What the responses are like", tuple(blocks))


def evaluation_warnings(evaluations: Sequence[Evaluation], manners: Mapping[str, Mapping[str, Manner]]) -> list[str]:
    """What should be mended before the scores are read."""
    found = []
    for e in evaluations:
        low = [l for l, m in manners[e.name].items() if m.eos_rate is not None and m.eos_rate < EOS_LOW]
        if low:
            rates = ", ".join(f"{l} {percent(manners[e.name][l].eos_rate)}" for l in low)
            found.append(f"{e.name}: fewer than half of the answers ended by themselves ({rates}).")
        if e.table.refused:
            n = len(e.table.refused)
            found.append(f"{e.name}: {n} score{'s are' if n > 1 else ' is'} missing; see under Scores.")
    return found
