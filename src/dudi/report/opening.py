"""What a page opens with: one sentence that says how a model stands, and one picture of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.report.blocks import Block, Figure, Figures, Section, Text, number
from dudi.report.compare import AVERAGE, gains
from dudi.report.dots import Dots, draw_dots
from dudi.report.evals import Evaluation
from dudi.report.results import language_name


def opening_section(evaluations: Sequence[Evaluation], subject: Evaluation) -> Section:
    """The answer: where the subject stands, with the averages of all models and their scores by language."""
    blocks: list[Block] = [Text(standing(evaluations, subject), "lead")]
    names = [e.name for e in evaluations]
    averages = tuple(e.table.overall for e in evaluations)
    figures = [_figure("averages", "Average score", Dots("Average", tuple(names), (("", averages),)))]
    languages = subject.table.averaged
    if len(languages) > 1:
        rows = tuple(language_name(l).split(" (")[0] for l in languages)
        series = tuple((e.name, tuple(e.table.by_language[l] for l in languages)) for e in evaluations)
        figures.append(_figure("languages", "Score by language", Dots("By language", rows, series)))
    blocks.append(Figures(tuple(figures)))
    scale = "Scores are normalised: 0 is chance, 100 the best there is."
    if averages[0].low is not None:
        scale += " Lines are 95 % intervals over items: how far other items might have moved a score."
    blocks.append(Text(f"{scale} Another training of the same recipe scores a little differently as well.", "note"))
    return Section("answer", "In short", tuple(blocks))


def _figure(name: str, what: str, chart: Dots) -> Figure:
    series = "; ".join(f"{row}: {average}" for row, average in zip(chart.rows, chart.series[0][1], strict=True))
    caption = f"{what}: {series}" if len(chart.series) == 1 else f"{what}, of {', '.join(n for n, _ in chart.series)}"
    return Figure(name, caption, draw_dots(chart))


def standing(evaluations: Sequence[Evaluation], subject: Evaluation) -> str:
    """`DuDi scores 48.9 on the average of 7 languages: above SFT (48.3), not apart from GKD (48.4), below teacher.`

    Above and below are said where the interval of the paired difference over items leaves out 0, on the side of the
    scores' own difference (the items' values are not normalised).
    """
    mean, n = subject.table.overall.mean, len(subject.table.averaged)
    over = f"the average of {n} languages" if n > 1 else language_name(subject.table.averaged[0])
    if mean is None:
        return f"{subject.name} has no average: a score is missing (below)."
    groups: dict[str, list[str]] = {"above": [], "not apart from": [], "below": []}
    for other in evaluations:
        if other is subject:
            continue
        gain, theirs = gains(other, subject).get(AVERAGE), other.table.overall.mean
        if gain is None or theirs is None:
            continue
        side = "above" if gain.low > 0 and mean > theirs else "below" if gain.high < 0 and mean < theirs else None
        groups[side or "not apart from"].append(f"{other.name} ({number(theirs)})")
    told = [f"{word} {_listed(names)}" for word, names in groups.items() if names]
    sentence = f"{subject.name} scores {number(mean)} on {over}"
    return f"{sentence}: {', '.join(told)}." if told else f"{sentence}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
