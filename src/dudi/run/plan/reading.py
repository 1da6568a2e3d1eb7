"""What a stage's steps will read, in the shapes that its models see: the run's own windows and micro-batches, with
responses that nobody had to sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from dudi.loss import scores
from dudi.loss.prefix import groups, width
from dudi.methods import Method
from dudi.models.reader import shares_prompts
from dudi.recipe.stages import Train
from dudi.rollouts import Request, Rollout
from dudi.run.plan.shapes import Shape, Size
from dudi.run.prepare import Prepared
from dudi.signals import Signal, View
from dudi.training.window import Row, Window, WindowBuilder, collate

WINDOWS = 12
"""Optimizer steps that are made up, to know what one reads on average."""


@dataclass(frozen=True)
class Read:
    """One view of a micro-batch. student, teacher: what each reads; positions: response tokens."""

    view: View
    student: scores.Reading
    teacher: scores.Reading | None
    positions: int


Micro = tuple[Read, ...]
"""A micro-batch."""


@dataclass(frozen=True)
class Step:
    """One optimizer step of one process. prompts: of the rollouts, padded; longest: tokens of the longest rollout."""

    signals: tuple[Signal, ...]
    micro: tuple[Micro, ...]
    prompts: Size
    longest: int


@dataclass(frozen=True)
class Assumed:
    """An engine that samples nothing: responses of assumed lengths, by the row that a request's key names."""

    length: Callable[[int, int], int]
    asked: list[tuple[int, int]]
    """(tokens of the prompt, of the response), of what was asked for."""

    def __call__(self, model: object, requests: Sequence[Request]) -> list[Rollout]:
        """A response to each."""
        found = [Rollout((0,) * self.length(int(r.key[3]), r.limit), False) for r in requests]
        self.asked.extend((len(r.prompt), len(one.ids)) for r, one in zip(requests, found, strict=True))
        return found


@dataclass(frozen=True)
class Reading:
    """The steps of a training. processes: those that share a step."""

    prepared: Prepared
    stage: Train
    processes: int = 1

    @property
    def rows(self) -> int:
        """Rows of one process in a step."""
        rows = min(self.stage.training.batch, len(self.prepared.train.rows))
        return -(-rows // self.processes)

    def sides(self) -> list[tuple[float, tuple[Signal, ...]]]:
        """(share of the steps, the signals that they read): two kinds of steps where a method has a coin."""
        return sides(self.stage.method)

    def heaviest(self, signals: tuple[Signal, ...], micro_batch: int) -> list[Step]:
        """Steps of the rows with the longest x, and with the longest x and y, all of whose rollouts run into their
        limits."""
        rows = self.prepared.train.rows
        orders: list[Callable[[Row], int]] = [lambda row: len(row.x), lambda row: len(row.x) + len(row.y)]
        longest = [sorted(rows, key=order)[-self.rows :] for order in orders]
        return [self._step(signals, found, micro_batch, lambda row, limit: limit) for found in longest]

    def usual(self, signals: tuple[Signal, ...]) -> list[Step]:
        """Steps of rows drawn at random, whose rollouts are as long as the rows' own answers, within their limits."""
        rows, drawn = self.prepared.train.rows, random.Random(self.prepared.recipe.seed)
        answers = {row.index: len(row.y) for row in rows}
        return [
            self._step(
                signals,
                drawn.sample(rows, self.rows),
                self.stage.training.micro_batch,
                lambda row, limit: min(answers[row], limit),
            )
            for _ in range(WINDOWS)
        ]

    def _step(
        self, signals: tuple[Signal, ...], rows: Sequence[Row], micro_batch: int, length: Callable[[int, int], int]
    ) -> Step:
        p, training, engine = self.prepared, self.stage.training, Assumed(length, [])
        limit = p.recipe.limits.of
        stored = {row.index: Rollout((0,) * length(row.index, limit("rollout", row.example.l)), False) for row in rows}
        builder = WindowBuilder(p.chat, p.verbalizer, p.recipe.limits, engine, p.recipe.seed, stored)
        window = builder.build(cast(Any, None), signals, [*rows], [1.0] * len(rows), 0)
        micro = [_read(window, m) for m in window.micro_batches(micro_batch, training.micro_batch_tokens)]
        asked = engine.asked
        return Step(
            signals,
            tuple(micro),
            prompts=(len(asked), max((prompt for prompt, _ in asked), default=0)),
            longest=max((response for _, response in asked), default=0),
        )


def sides(method: Method) -> list[tuple[float, tuple[Signal, ...]]]:
    """(share of the steps, the signals that they read)."""
    if method.coin is None:
        return [(1.0, method.signals)]
    shares = {True: method.coin, False: 1 - method.coin}
    found = [(share, tuple(s for s in method.signals if s.coin in (None, side))) for side, share in shares.items()]
    return [(share, signals) for share, signals in found if share and signals]


def _read(window: Window, places: list[int]) -> Micro:
    """A micro-batch as the step pads it."""
    blocks = collate(window, places, 0, torch.device("cpu"))
    return tuple(Read(view, block.student, block.teacher, len(block.labels)) for view, block in blocks.items())


def read_by(model: Shape, readings: Iterable[scores.Reading]) -> list[Size]:
    """What a model reads, padded: responses to the same prompts in one sequence, where it can."""
    given = dict(enumerate(readings))
    chosen = groups(given) if shares_prompts(model.model) else [[key] for key in given]
    return [(len(given[keys[0]].input_ids), width([given[key] for key in keys])) for keys in chosen]


def by_student(student: Shape, micro: Micro) -> list[Size]:
    """What the student reads of a micro-batch."""
    return read_by(student, [read.student for read in micro])


def tokens(sizes: Sequence[Size]) -> int:
    """Padded tokens."""
    return sum(rows * length for rows, length in sizes)


def with_micro_batch(stage: Train, micro_batch: int, checkpointing: bool) -> Train:
    """The same training in other micro-batches."""
    changed = {"micro_batch": micro_batch, "gradient_checkpointing": checkpointing}
    return replace(stage, training=stage.training.model_copy(update=changed))
