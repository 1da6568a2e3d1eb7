"""Generation stages: a teacher (SeqKD) or an opponent (SPIN) answers every row once, before training.

Rows are sampled in fixed batches, each written as one whole file, so that a stage that was stopped continues with the
batches that are missing, and several processes share them without talking.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from dudi.files import write_text
from dudi.recipe.schema import Limits
from dudi.rollouts import Engine, Request, Rollout
from dudi.training.collapse import THRESHOLDS
from dudi.training.window import Row

CUT = "cut.json"


def generate(
    model: PreTrainedModel,
    engine: Engine,
    rows: Sequence[Row],
    key: tuple[int | str, ...],
    limits: Limits,
    batch: int,
    folder: Path,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Answer x of every row; this process does every `world`-th batch. key: (seed, number of the stage, ...)."""
    starts = range(0, len(rows), batch)
    for number, start in enumerate(starts):
        file = batch_file(folder, number)
        if number % world == rank and not file.exists():
            chosen = rows[start : start + batch]
            written = zip(chosen, engine(model, [request_of(row, key, limits) for row in chosen]), strict=True)
            write_text(file, "".join(line_of(row, rollout) for row, rollout in written))
        if progress:
            progress(number + 1, len(starts))


def request_of(row: Row, key: tuple[int | str, ...], limits: Limits) -> Request:
    """What is asked for a row, wherever: x, the key of its random numbers, its language's limit."""
    return Request(row.x, (*key, row.index), limits.of("rollout", row.example.l))


def line_of(row: Row, rollout: Rollout) -> str:
    """An answer as a line of a batch."""
    return json.dumps({"index": row.index, "ids": rollout.ids, "finished": rollout.finished}) + "\n"


def batch_file(folder: Path, number: int) -> Path:
    """The file of a batch."""
    return folder / f"batch-{number:06d}.jsonl"


def read_responses(folder: Path, rows: Sequence[Row], batch: int) -> dict[int, Rollout] | None:
    """Row index -> response; None while a batch is missing."""
    files = [batch_file(folder, number) for number in range(len(range(0, len(rows), batch)))]
    if not all(file.exists() for file in files):
        return None
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["index"]: Rollout(tuple(line["ids"]), line["finished"]) for line in lines}


def write_cut(folder: Path, splits: Mapping[str, Sequence[Row]], batch: int) -> list[str]:
    """How many answers of a finished stage ran into limits.rollout: {split: {language: {"rows", "cut"}}} in its
    `cut.json`, and as lines to say. A stage that trains on answers without an end learns not to stop."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for split, rows in splits.items():
        answers = read_responses(folder / split, rows, batch)
        assert answers is not None, "the stage is finished"
        for row in rows:
            entry = found.setdefault(split, {}).setdefault(row.example.l, {"rows": 0, "cut": 0})
            entry["rows"] += 1
            entry["cut"] += not answers[row.index].finished
    write_text(folder / CUT, json.dumps(found, indent=1))
    return [f"  {split}: {said_of_cut(languages)}" for split, languages in found.items()]


def said_of_cut(languages: Mapping[str, Mapping[str, int]]) -> str:
    """Counts and shares by language, and a warning where nearly all are cut."""
    parts = [f"{l} {e['cut']} of {e['rows']} ({e['cut'] / e['rows']:.0%})" for l, e in sorted(languages.items())]
    bad = any(e["cut"] >= THRESHOLDS["cut"] * e["rows"] for e in languages.values())
    return ("warning: " if bad else "") + f"answers that run into limits.rollout: {', '.join(parts)}"
