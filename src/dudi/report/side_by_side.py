"""Responses side by side: a few items for each language, with prompt and accepted answers from the benchmark folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.records import GradedAnswer, Item, benchmark_files
from dudi.report.blocks import Answered, Block, Folded, Given, Section, Text
from dudi.report.evals import Evaluation
from dudi.report.results import language_name, other_marks
from dudi.strict import read_each

PER_LANGUAGE = 6
LONGEST = 700
"""Characters of a text that are shown."""


def find_items(evaluations: Sequence[Evaluation], benchmark: Path | None) -> tuple[dict[str, Item], str]:
    """Items by id and, where there are none, why. benchmark: the folder; else where the evaluations say that it is.

    A folder that is given has to be the benchmark of the evaluations; one that is only named may be gone or changed.
    """
    wanted = evaluations[0].about.benchmark
    if benchmark is not None:
        if not (benchmark / "benchmark.json").is_file():
            raise DudiError(f"--benchmark: no benchmark.json in {str(benchmark)!r}")
        if benchmark_files(benchmark).sha256 != wanted.sha256:
            raise DudiError(
                f"--benchmark: {str(benchmark)!r} is not what the evaluations asked ({wanted.name} version"
                f" {wanted.version}), or was changed since"
            )
        return _items(benchmark), ""
    named = [Path(e.about.benchmark.path) for e in evaluations if e.about.benchmark.path]
    for folder in named:
        if _is(folder, wanted.sha256):
            return _items(folder), ""
    why = (
        "the benchmark folder is gone or was changed" if named else "the evaluations do not say where the benchmark is"
    )
    return {}, f"Prompts and accepted answers are not shown: {why}. Name the folder with --benchmark."


def _is(folder: Path, sha256: str) -> bool:
    """Whether a folder is still the benchmark of that hash: one that evaluation would refuse is not."""
    try:
        return benchmark_files(folder).sha256 == sha256
    except DudiError:
        return False


def _items(folder: Path) -> dict[str, Item]:
    return {item.id: item for file in benchmark_files(folder).items for item in read_each(Item, file)}


def choose(evaluations: Sequence[Evaluation], language: str, most: int = PER_LANGUAGE) -> list[int]:
    """Positions of the items to show in a language: tasks take turns, each with the item on which models differ most.

    Which task begins differs by language; among equals, the item is drawn from its id. No state: the same every time.
    """
    by_task: dict[str, list[tuple[float, int, int]]] = {task: [] for task in evaluations[0].tasks}
    for at, response in enumerate(evaluations[0].items):
        if response.language == language:
            values = [v for e in evaluations if (v := e.items[at].value) is not None]
            spread = max(values) - min(values) if values else 0.0
            by_task[response.task].append((-spread, draw("report", response.id), at))
    queues = [sorted(queue) for queue in by_task.values() if queue]
    languages = evaluations[0].table.languages
    shift = languages.index(language) * most % len(queues) if queues else 0
    queues = queues[shift:] + queues[:shift]
    chosen: list[int] = []
    while len(chosen) < most and any(queues):
        for queue in queues:
            if queue and len(chosen) < most:
                chosen.append(queue.pop(0)[2])
    order = {task: n for n, task in enumerate(by_task)}
    return sorted(chosen, key=lambda at: (order[evaluations[0].items[at].task], at))


def answers_section(evaluations: Sequence[Evaluation], items: Mapping[str, Item], why_not: str) -> Section:
    """A fold for each language."""
    table = evaluations[0].table
    intro = (
        "A few items for each language, chosen where the models differ most, and so no sample to judge them by."
        f" ✓ right, ✗ wrong{other_marks(evaluations, 100)}."
    )
    if any(len(e.table.seeds) > 1 for e in evaluations):
        intro += " Of several decoding seeds, the first is shown."
    blocks: list[Block] = [Text(intro)]
    if why_not:
        blocks.append(Text(why_not, "warning"))
    for language in (*table.averaged, *(l for l in table.languages if l not in table.averaged)):
        chosen = tuple(_answered(evaluations, at, items) for at in choose(evaluations, language))
        if chosen:
            blocks.append(Folded(f"{language_name(language)}: {len(chosen)} items", chosen))
    return Section("answers", "Answers side by side", tuple(blocks))


def _answered(evaluations: Sequence[Evaluation], at: int, items: Mapping[str, Item]) -> Answered:
    first = evaluations[0].items[at]
    item = items.get(first.id)
    asked = (item.response_language if item else None) or first.language
    return Answered(
        id=first.id,
        task=first.task,
        language=first.language,
        prompt=tuple((turn.role, shown(turn.content, LONGEST * 2)) for turn in item.messages) if item else (),
        accepted=tuple(shown(target) for target in item.targets[:4]) if item else (),
        rule=_rule(item) if item else "",
        asked=asked,
        given=_merged([_given(e, e.items[at], item, asked) for e in evaluations]),
    )


def _rule(item: Item) -> str:
    """What is asked of the form, in the words of the benchmark file."""
    parts = [f"choices: {', '.join(item.choices)}"] if item.choices else []
    given = item.constraints.model_dump(exclude_unset=True) if item.constraints else {}
    for key, value in given.items():
        if value is True:
            parts.append(key)
        elif value not in (None, False):
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else _bounds(value)
            parts.append(f"{key}: {shown(text, 200)!r}" if key == "separator" else f"{key}: {shown(text, 200)}")
    if item.response_language:
        parts.append(f"in {language_name(item.response_language)}")
    return "; ".join(parts)


def _bounds(value: Any) -> str:
    """A value of a constraint; a table as `at_least 2, at_most 5`."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key} {_bounds(inner)}" for key, inner in value.items())


def _given(evaluation: Evaluation, response: GradedAnswer, item: Item | None, asked: str) -> Given:
    models = (evaluation.name,)
    if response.error is not None or response.value is None:
        return Given(models, shown(response.error or ""), "en", "not asked", "!")
    name = evaluation.mark(response.task)
    if name is not None:
        mark, sign = f"{name} {100 * response.value:.0f}", ""
    else:
        mark, sign = ("right", "✓") if response.value == 1 else ("wrong", "✗")
    notes = ["cut at the limit"] if response.finished is False else []
    notes += ["other language"] if response.in_language is False else []
    demanded = item is not None and item.response_language is not None
    notes += ["language not recognised"] if response.in_language is None and demanded else []
    return Given(models, shown(response.response), asked, mark, sign, ", ".join(notes))


def _merged(given: Sequence[Given]) -> tuple[Given, ...]:
    """The same response of several models, once."""
    found: dict[Given, tuple[str, ...]] = {}
    for one in given:
        found.setdefault(replace(one, models=()), ())
        found[replace(one, models=())] += one.models
    return tuple(replace(one, models=models) for one, models in found.items())


def shown(text: str, longest: int = LONGEST) -> str:
    """A text fit for a page: control characters, and marks that turn its direction, made visible; long ones cut."""
    text = "".join(c if c == "\n" or not _hidden(c) else _visible(c) for c in text.strip(" \t\r\n"))
    if len(text) <= longest:
        return text
    end = longest
    while unicodedata.category(text[end])[0] == "M":  # not between a letter and its marks
        end -= 1
    return f"{text[:end]} … ({len(text) - end} more characters)"


def _hidden(character: str) -> bool:
    direction = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return direction or unicodedata.category(character) in ("Cc", "Cs")


def _visible(character: str) -> str:
    return " " if character == "\t" else f"⟨{ord(character):02X}⟩"
