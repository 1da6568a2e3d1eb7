"""The averages as Markdown. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.evals.aggregate import Averaged
from dudi.evals.spread import DRAWS
from dudi.records import FEW, Average, Measures, Table


def markdown(table: Table, benchmark: Averaged) -> str:
    """Languages x competencies with averages; then every task, and what the responses were like."""
    d = benchmark.description
    out = [f"# {table.benchmark} (version {d.version}): {table.model}", "", *averages(table, d.translation)]
    if table.overall.low is not None:
        out += [
            "",
            f"In brackets: a 95 % interval over items, those that share a key drawn together ({DRAWS:,} draws).",
        ]
        if table.few:
            out += [f"Of fewer than {FEW} items, and so too narrow to trust: {', '.join(table.few)}."]
    if len(table.seeds) > 1:
        seeds = ", ".join(map(str, table.seeds))
        out += [
            "",
            f"Mean ± standard deviation over {len(table.seeds)} decoding seeds ({seeds}) of one model: how much",
        ]
        out += ["sampling moves the scores, not how much another training would."]
    if table.refused:
        out += ["", "Missing scores. A `-` is an average that would contain one of them:", ""]
        out += [f"- {line}" for line in table.refused]
    out += ["", "## Tasks", "", *_tasks(table)]
    out += ["", "## Responses", ""]
    out += [
        "stopped: ended by themselves, in percent. in language: in the language asked for, in percent of those whose"
    ]
    out += ["language can be told; undetermined: the others, such as a letter or a number.", ""]
    return "\n".join(out + _responses(table)) + "\n"


def summary(table: Table, benchmark: Averaged) -> str:
    """The first table alone, and what is missing: for the screen."""
    return markdown(table, benchmark).split("\n## Tasks")[0] + "\n"


def averages(table: Table, translation: Sequence[str] = ()) -> list[str]:
    """The lines of the first table: languages by competencies, with averages."""
    without = [f"without {', '.join(translation)}"] if translation else []
    rows = [["language", *table.competencies, "average", *without]]

    def row(name: str, cells: dict[str, Average], *averages: Average) -> list[str]:
        shown = [str(cells[c]) if c in cells else "" for c in table.competencies]
        return [name, *shown, *map(str, averages[: 1 + len(without)])]

    for l in table.languages:
        name = l if l in table.averaged else f"{l} (not averaged)"
        rows.append(row(name, table.by_competency[l], table.by_language[l], table.by_language_without_translation[l]))
    rows.append(row("average", table.competency_overall, table.overall, table.overall_without_translation))
    return _lines(rows)


def _tasks(table: Table) -> list[str]:
    names = list(dict.fromkeys(t for row in table.by_task.values() for t in row))
    rows = [["task", *table.languages]]
    rows += [[t, *(str(table.by_task[l][t]) if t in table.by_task[l] else "" for l in table.languages)] for t in names]
    return _lines(rows)


def _responses(table: Table) -> list[str]:
    rows = [["task", "language", "items", "stopped", "mean tokens", "in language", "undetermined"]]
    for l in table.languages:
        rows += [[task, l, *_measures(m)] for task, m in table.measures.get(l, {}).items()]
    return _lines(rows)


def _measures(m: Measures) -> list[str]:
    shares = {"stopped": m.stopped, "in_language": m.in_language}
    percent = {name: "-" if share is None else f"{100 * share:.1f}" for name, share in shares.items()}
    tokens, undetermined = ("-" if q is None else f"{q:g}" for q in (_rounded(m.tokens), _rounded(m.undetermined)))
    return [str(m.n), percent["stopped"], tokens, percent["in_language"], undetermined]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rest)]
