"""What the student wrote in training, as text: the first and the last rollouts that a run kept, by language."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from dudi.languages import LANGUAGES
from dudi.report.blocks import Answered, Block, Folded, Given, Section, Sub, Text
from dudi.report.results import language_name
from dudi.report.runs import Run, Sample
from dudi.report.side_by_side import shown

EDGE = 2
"""Rollouts of each view that are shown from either end of a training."""
PROMPT = 160
"""Characters of a prompt that are shown: its end, where p_z asks for a language."""


def samples_section(runs: Sequence[Run]) -> Section | None:
    """A fold for each language, with the rollouts of all runs in it; None where no run kept any."""
    chosen = [
        (stage.name if len(runs) == 1 else f"{run.label}, {stage.name}", one)
        for run in runs
        for stage in run.stages
        for one in ends(stage.samples)
    ]
    if not chosen:
        return None
    found = {one.language for _, one in chosen}
    blocks: list[Block] = [
        Text(
            f"Of each view and language, the first {EDGE} and the last {EDGE} of the responses that the run kept as"
            " text: one of each interval of the log, drawn beforehand, whatever the student wrote. A prompt is shown"
            " by its end, as the student reads it.",
            "note",
        )
    ]
    for language in [*(l for l in LANGUAGES if l in found), *sorted(found - LANGUAGES.keys())]:
        here = [(place, one) for place, one in chosen if one.language == language]
        inner: list[Block] = []
        for place in dict.fromkeys(place for place, _ in here):
            inner += [Sub(place), *(_answered(one) for where, one in here if where == place)]
        blocks.append(Folded(f"{language_name(language)}: {len(here)} responses", tuple(inner)))
    return Section("samples", "Sampled responses as text", tuple(blocks))


def ends(samples: Sequence[Sample]) -> list[Sample]:
    """The first and the last of each view and language, in the order of steps."""
    kept: list[Sample] = []
    for key in dict.fromkeys((one.language, one.view) for one in samples):
        here = [one for one in samples if (one.language, one.view) == key]
        kept += here if len(here) <= 2 * EDGE else here[:EDGE] + here[-EDGE:]
    return sorted(kept, key=lambda one: one.step)


def _answered(one: Sample) -> Answered:
    asked = one.l_z or one.language
    note = "" if one.l_z is None else f"asked for in {language_name(one.l_z)}"
    mark = "ended by itself" if one.finished else "cut at the limit"
    return Answered(
        id=f"row {one.row}",
        task=f"step {one.step}",
        language=one.language,
        prompt=(("user", shown(end_of(one.prompt), 2 * PROMPT)),),
        accepted=(),
        rule="",
        asked=asked,
        given=(Given((one.view,), shown(one.text), asked, mark, "", note),),
    )


def end_of(text: str) -> str:
    """The last characters of a prompt, from the beginning of a letter with its marks on."""
    start = max(len(text) - PROMPT, 0)
    while start and start < len(text) and unicodedata.category(text[start])[0] == "M":
        start += 1
    return f"… {text[start:]}" if start else text
