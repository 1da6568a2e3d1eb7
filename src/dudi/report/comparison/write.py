"""Evaluations -> the page of their comparison, and files of it, whose format their ending says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.files import write_text
from dudi.report.blocks import Page
from dudi.report.comparison.numbers import Comparison, Difference, Row, Scores, compare
from dudi.report.comparison.page import page
from dudi.report.comparison.paper import paper_section
from dudi.report.comparison.read import PROMPTING, Group, choose, read_groups, remarks
from dudi.report.html import html
from dudi.report.latex import latex
from dudi.report.markdown import markdown
from dudi.report.stats.aso import CONFIDENCE, THRESHOLD

FORMATS: dict[str, Callable[[Comparison, Page], str]] = {
    ".md": lambda _, shown: markdown(shown),
    ".json": lambda c, _: json.dumps(numbers(c), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    ".tex": lambda _, shown: latex(shown),
    ".html": lambda _, shown: html(shown),
}


def write_comparison(
    given: Sequence[str], baseline: str | None = None, outputs: Sequence[Path] = (), paper: str | None = None
) -> str:
    """Write the files; returns what the screen shows: Markdown without the tables of every language.

    given: FOLDER or NAME=FOLDER, a name once for each training seed. paper: a table of the paper to show beside.
    Raises `DudiError` before anything is written.
    """
    for output in outputs:
        if output.suffix not in FORMATS:
            raise DudiError(f"--output {str(output)!r}: expected a file ending in {', '.join(FORMATS)}")
        if output.is_dir():
            raise DudiError(f"--output {str(output)!r} is a folder; expected a file")
    groups = read_groups(given)
    comparison = compare(groups, choose(groups, baseline))
    folders = {one.folder.resolve() for group in groups for one in group.evaluations}
    for output in outputs:
        if output.resolve().parent in folders:
            raise DudiError(f"--output {str(output)!r} lies among the files of an evaluation; choose another folder")
    shown = page(comparison)
    if paper is not None:
        *first, cells = shown.sections
        quoted = paper_section(paper, comparison.baseline.evaluations[0].about.benchmark.name)
        shown = replace(shown, sections=(*first, quoted, cells))
    texts = {output: FORMATS[output.suffix](comparison, shown) for output in outputs}
    for output, text in texts.items():
        try:
            write_text(output, text)
        except OSError as error:
            raise DudiError(f"--output: {error.filename or output}: {error.strerror or error}") from None
    return markdown(replace(shown, sections=shown.sections[:-1]))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def numbers(c: Comparison) -> dict[str, Any]:
    """All numbers, unrounded; null where one is missing."""
    about = c.baseline.evaluations[0].about
    rows = (*c.by_language, *c.by_competency, *c.cells)
    rates = [
        {"seeds": n, "seeds_of_baseline": m, "rate": rate, "error": error}
        for (n, m), (rate, error) in c.false_positives.items()
    ]
    return {
        "baseline": c.baseline.name,
        "benchmark": {key: value for key, value in asdict(about.benchmark).items() if key != "path"},
        "decoding": {key: value for key, value in asdict(about.decoding).items() if key not in PROMPTING},
        "methods": [_method(group) for group in c.groups],
        "rows": [_row(c, row) for row in rows],
        "holm": c.holm,
        "eps_min": {"confidence": CONFIDENCE, "threshold": THRESHOLD, "false_positives": rates},
        "missing": [f"{one.name}: {line}" for g in c.groups for one in g.evaluations for line in one.table.refused],
        "remarks": remarks(c.groups),
    }


def _method(group: Group) -> dict[str, Any]:
    prompting = {key: value for key, value in asdict(group.evaluations[0].about.decoding).items() if key in PROMPTING}
    seeds = [{"folder": str(one.folder), "weights_sha256": one.about.model.weights_sha256} for one in group.evaluations]
    return {"name": group.name, **prompting, "seeds": seeds}


def _row(c: Comparison, row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {key: value for key, value in asdict(row).items() if value is not None}
    if row != Row(translation=False):
        del found["translation"]
    found["scores"] = {group.name: _of_scores(c.scores[group.name][row]) for group in c.groups}
    if row not in c.cells:
        found["differences"] = {name: _of_difference(rows[row]) for name, rows in c.differences.items()}
    return found


def _of_scores(scores: Scores) -> dict[str, Any]:
    return {"mean": scores.mean, "deviation": scores.deviation, "values": list(scores.values)}


def _of_difference(d: Difference) -> dict[str, Any]:
    intervals = {
        key: None if one is None else {**asdict(one), "side": one.side}
        for key, one in (("items", d.items), ("seeds", d.seeds))
    }
    return {"score": d.score, **intervals, "p": d.p, "eps_min": d.eps_min}
