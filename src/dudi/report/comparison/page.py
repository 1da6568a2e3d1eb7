"""A comparison as tables: scores, differences to the baseline, then every language's competencies and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from dudi.records import FEW
from dudi.report.blocks import Block, Page, Section, Sub, Table, Text, Value, number, signed
from dudi.report.comparison.numbers import OVERALL, Comparison, Row, Scores
from dudi.report.comparison.read import Group, remarks
from dudi.report.results import interval_value, language_name, other_marks, refused
from dudi.report.stats.aso import THRESHOLD
from dudi.report.stats.exact import MOST, smallest_p


def page(c: Comparison) -> Page:
    """Everything, as one page."""
    about = c.baseline.evaluations[0].about
    names = ", ".join(group.name for group in c.others)
    lines = (
        f"Benchmark {about.benchmark.name}, version {about.benchmark.version}: {len(c.baseline.evaluations[0].items)}"
        " items.",
        f"How answers were drawn: {c.baseline.evaluations[0].decoding}.",
        *(f"{group.name}: {_counted(group)}" for group in c.groups),
        *remarks(c.groups),
    )
    differences = [Section("differences", f"Differences to {c.baseline.name}", _differences(c))] if c.others else []
    return Page(
        f"{names} against {c.baseline.name}" if c.others else c.baseline.name,
        lines,
        (Section("scores", "Scores", _scores(c)), *differences, Section("cells", "By language", _cells(c))),
    )


def _counted(group: Group) -> str:
    n = len(group.evaluations)
    return f"{n} training seeds" if n > 1 else "one trained model"


def label(row: Row) -> str:
    """What a row of the overall tables is called."""
    if row.competency is not None:
        return row.competency
    if row.language is not None:
        return language_name(row.language)
    return "average" if row.translation else "without translation"


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _scores(c: Comparison) -> tuple[Block, ...]:
    text = "Scores are normalised: 0 is chance, 100 the best there is. In brackets: the difference to"
    text += f" {c.baseline.name} in points."
    if any(len(group.evaluations) > 1 for group in c.groups):
        text += " ± is the standard deviation over training seeds"
        decoding = len(c.baseline.evaluations[0].table.seeds) > 1
        text += ", of each model's mean over its decoding seeds." if decoding else "."
    shown = [language_name(l) for l in c.table.languages if l not in c.table.averaged]
    text += f" {', '.join(shown)}: shown, not averaged." if shown else ""
    sums = sum(row.language is None for row in c.by_language)
    return (
        Text(text),
        _table(c, "Score by language", "language", [(label(row), row) for row in c.by_language], sums),
        _table(c, "Score by competency", "competency", [(label(row), row) for row in c.by_competency]),
        *refused([one for group in c.groups for one in group.evaluations]),
    )


def _table(c: Comparison, caption: str, kind: str, rows: Sequence[tuple[str, Row]], sums: int = 0) -> Table:
    base = c.scores[c.baseline.name]

    def cell(group: Group, row: Row) -> Value:
        return _score(c.scores[group.name][row], None if group is c.baseline else base[row])

    body: list[tuple[Value | str, ...]] = [(name, *(cell(group, row) for group in c.groups)) for name, row in rows]
    return Table(caption, (kind, *(group.name for group in c.groups)), tuple(body), sums)


def _score(scores: Scores, base: Scores | None) -> Value:
    text = number(scores.mean) + ("" if scores.deviation is None else f" ± {number(scores.deviation)}")
    if base is None:
        return Value(text)
    missing = scores.mean is None or base.mean is None
    return Value(text, "" if missing else signed((scores.mean or 0.0) - (base.mean or 0.0)))


def _cells(c: Comparison) -> tuple[Block, ...]:
    found: list[Block] = []
    for language in dict.fromkeys(row.language or "" for row in c.cells):
        here = [row for row in c.cells if row.language == language]
        name = language_name(language)
        competencies = [(row.competency, row) for row in here if row.competency is not None]
        tasks = [(row.task, row) for row in here if row.task is not None]
        found.append(Sub(name))
        found.append(_table(c, f"{name}: score by competency", "competency", competencies))
        found.append(_table(c, f"{name}: score by task", "task", tasks))
    return tuple(found)


# ── differences ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _differences(c: Comparison) -> tuple[Block, ...]:
    seeds = bool(c.false_positives)
    blocks: list[Block] = [_difference_table(c, group, seeds) for group in c.others]
    text = (
        f"Over items: each item's value (right 1, wrong 0{other_marks(c.baseline.evaluations, 1)}), its mean over"
        f" seeds, minus {c.baseline.name}'s on the same item; mean times 100, with a 95 % interval from a paired"
        " bootstrap. ▲ the interval lies above 0, ▼ below 0, ○ it contains 0. The values are not normalised, so the"
        " mean differs from the difference of scores. This interval holds the choice of items and no noise of training."
    )
    if any(not row.translation for row in c.by_language):
        text += " There is none without translation: no record says which items that leaves out."
    few = [label(row) for row, least in c.least.items() if least < FEW and row not in (OVERALL, Row(translation=False))]
    text += f" Of fewer than {FEW} items a language, and so too narrow to trust: {', '.join(few)}." if few else ""
    blocks.append(Text(text, "note"))
    if seeds:
        blocks += [Text(one, "note") for one in _about_seeds(c)]
    lone = [group.name for group in c.groups if len(group.evaluations) == 1]
    if lone:
        blocks.append(
            Text(
                f"One trained model each: {', '.join(lone)}. What another training would score is not known, and a"
                " difference smaller than this noise means nothing: two training seeds or more are needed for an"
                " interval over seeds, p and eps_min.",
                "note",
            )
        )
    return tuple(blocks)


def _difference_table(c: Comparison, group: Group, seeds: bool) -> Table:
    found = c.differences[group.name]
    overall = [row for row in c.by_language if row.language is None]
    rows: list[tuple[Value | str, ...]] = []
    for row in (*(row for row in c.by_language if row.language is not None), *c.by_competency, *overall):
        d = found[row]
        cells = [Value(signed(d.score)), interval_value(d.items)]
        if seeds:
            cells += [interval_value(d.seeds), Value(number(d.p, 3)), Value(number(d.eps_min, 2))]
        rows.append((label(row), *cells))
    head = ("", "score", "over items", *(("over seeds", "p", "eps_min") if seeds else ()))
    return Table(f"{group.name} minus {c.baseline.name}, in points", head, tuple(rows), len(overall))


def _about_seeds(c: Comparison) -> list[str]:
    n = len(c.baseline.evaluations)
    least = "; ".join(f"{smallest_p(a, b):.2g} with {a} seeds against {b}" for a, b in c.false_positives)
    texts = [
        "Over seeds: the difference of scores, a training seed of one paired with that of the other in the order in"
        " which their folders are given; mean with a 95 % interval by Student's t. p: exact permutation test of the"
        f" scores, two-sided; the least there can be is {least}."
    ]
    large = [f"{a} seeds against {b}" for a, b in c.false_positives if comb(a + b, a) > MOST]
    if large:
        texts.append(f"No p of {', '.join(large)}: there are more than {MOST:,} arrangements to list.")
    unequal = [group.name for group in c.others if len(group.evaluations) not in (1, n)]
    if unequal and n > 1:
        texts.append(f"Not as many training seeds as {c.baseline.name}, so not paired: {', '.join(unequal)}.")
    if len(c.holm) > 1:
        listed = ", ".join(f"{name} {p:.3f}" for name, p in c.holm.items())
        texts.append(
            f"On the average, p corrected for {len(c.holm)} comparisons (Holm): {listed}. No other p is corrected."
        )
    rates = "; ".join(
        f"{100 * rate:.1f} % of the time with {a} seeds against {b}" for (a, b), (rate, _) in c.false_positives.items()
    )
    texts.append(
        f"eps_min: Almost Stochastic Order at 95 % confidence, not corrected; below {THRESHOLD} it is often called a"
        f" significant improvement. Between two methods that are the same it is below {THRESHOLD} {rates} (simulated,"
        " normal scores), in each row anew: do not rest a verdict on it."
    )
    return texts
