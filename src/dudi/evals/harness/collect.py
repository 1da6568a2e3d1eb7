"""What lm-eval found, as our records: an answer for each sample, a score for each cell. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dudi.errors import DudiError
from dudi.evals.bench import Benchmark
from dudi.evals.harness.tasks import METRIC, Cell
from dudi.records import Description, GradedAnswer, Item, TaskScore, Turn


@dataclass(frozen=True)
class Sample:
    """A document that lm-eval scored. text: what the model read; log_p: of each choice, in nats; digest: of the
    document; id: ours, if it has one."""

    task: str
    number: int
    digest: str
    id: str | None
    text: str
    choices: tuple[str, ...]
    log_p: tuple[float, ...]
    target: str
    value: float

    @property
    def taken(self) -> str:
        """The likeliest choice; of equals the first."""
        return self.choices[max(range(len(self.log_p)), key=self.log_p.__getitem__)]


def samples(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Sample, ...]:
    """`samples` of lm-eval's results: of one task, or of all of a group. Raises `DudiError` for NaN."""
    read = tuple(
        _sample(task, one) for task, rows in found.items() for one in sorted(rows, key=lambda row: int(row["doc_id"]))
    )
    for one in read:
        if not all(map(math.isfinite, one.log_p)):
            raise DudiError(
                f"{one.task}, document {one.number}: the model's log p are {list(one.log_p)}: its weights are broken"
            )
    return read


def _sample(task: str, found: Mapping[str, Any]) -> Sample:
    choices = tuple(str(continuation) for _, continuation in found["arguments"])
    target = found["target"]
    return Sample(
        task=task,
        number=int(found["doc_id"]),
        digest=str(found["doc_hash"]),
        id=found["doc"].get("id") if isinstance(found["doc"].get("id"), str) else None,
        text=str(found["arguments"][0][0]),
        choices=choices,
        log_p=tuple(float(answers[0][0]) for answers in found["resps"]),
        target=choices[target] if isinstance(target, int) and target < len(choices) else str(target),
        value=float(found[METRIC]),
    )


def too_long(found: Sequence[Sample], lengths: Sequence[int], longest: int) -> str | None:
    """Why samples cannot be scored: lm-eval cuts off the beginning of what a model has no positions for."""
    over = [length for length in lengths if length > longest]
    if not over:
        return None
    return f"{len(over)} of {len(found)} items could not be asked: up to {max(over)} tokens are more than {longest}"


def answers(cell: Cell, found: Sequence[Sample], items: Sequence[Item], refused: str | None) -> list[GradedAnswer]:
    """The answers of a cell, in the order of its items. refused: why they have no value."""
    return [
        GradedAnswer(
            id=item.id,
            task=cell.task,
            language=cell.language,
            response="" if refused else one.taken,
            tokens=0,
            finished=not refused,
            value=None if refused else one.value,
            prediction=None if refused else one.taken,
            in_language=None,
            error=refused,
            key=item.key,
            log_p=None if refused else one.log_p,
        )
        for one, item in zip(found, items, strict=True)
    ]


def unasked(cell: Cell, items: Sequence[Item]) -> list[GradedAnswer]:
    """The answers of a cell that could not be asked."""
    return [
        GradedAnswer(item.id, cell.task, cell.language, "", 0, False, None, None, None, cell.refused, item.key)
        for item in items
    ]


def score(found: Sequence[GradedAnswer], competency: str, benchmark: str, model: str) -> TaskScore:
    """The accuracy of a cell, 0..100: as lm-eval reports it, with chance left in. Missing where an answer is."""
    failed = next((one.error for one in found if one.error is not None), None)
    accuracy = None if failed else 100 * sum(one.value or 0.0 for one in found) / len(found)
    return TaskScore(
        model=model,
        benchmark=benchmark,
        task=found[0].task,
        competency=competency,
        language=found[0].language,
        seed=0,
        metric=METRIC,
        raw=accuracy,
        score=accuracy,
        n=len(found),
        error=failed,
    )


def hub_benchmark(description: Description, found: Mapping[Cell, Sequence[Sample]]) -> Benchmark:
    """What lm-eval's own tasks asked, as a benchmark. Its SHA-256 is of their documents: prompts are a model's own."""
    items = [
        Item(
            id=f"{one.task}-{one.number}",
            task=cell.task,
            language=cell.language,
            messages=(Turn(role="user", content=one.text),),
            choices=one.choices,
            targets=(one.target,),
        )
        for cell, rows in found.items()
        for one in rows
    ]
    asked = [[one.task, one.number, one.digest] for rows in found.values() for one in rows]
    return Benchmark(description, tuple(items), {}, hashlib.sha256(json.dumps(asked).encode()).hexdigest())
