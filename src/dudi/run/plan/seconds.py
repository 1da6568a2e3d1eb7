"""Seconds of a run by phase: a model of what it costs, never calibrated on a GPU.

Operations are counted on the shapes that the steps read and divided by the arithmetic that a device is assumed to
reach. Decoding takes, step by step, the longest of three: reading weights, keys and values; multiplying; and waiting
for the many small operations of each layer. Left out: loading, saving, rehearsing, what processes send each other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from dudi.models.load import arithmetic
from dudi.recipe.stages import Generate, Train
from dudi.run.plan.memory import Machine
from dudi.run.plan.reading import Reading, Step, by_student, read_by
from dudi.run.plan.shapes import Shape, Size
from dudi.run.prepare import Prepared
from dudi.signals import View, compared, judged
from dudi.training.job import steps_of

LATENCY = {"own": 0.8e-3, "fused": 0.2e-3, "graph": 0.03e-3}
"""Seconds that a GPU waits for a layer of a decoding step: in a model's own forward (20 ms for 24 layers, as Qwen
publishes for Qwen2.5-0.5B with transformers), in a quarter of the operations, and as a CUDA graph. The last two are
assumptions."""
OPTIMIZER = 36
"""Bytes that AdamW and clipping read and write for each float32 weight."""


@dataclass(frozen=True)
class Time:
    """What a stage takes. steps: of the optimizer, or batches of answers; seconds: by phase, of the whole stage."""

    stage: str
    steps: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Clock:
    """The seconds of one stage of training."""

    prepared: Prepared
    stage: Train
    machine: Machine

    def time(self) -> Time:
        """Of the whole stage: the usual step, so often as there are steps; evaluations, and the filling of a cache."""
        reading = Reading(self.prepared, self.stage, self.machine.gpus)
        training, evals = self.stage.training, len(self.prepared.eval.rows)
        steps = steps_of(training, len(self.prepared.train.rows))
        step: dict[str, float] = defaultdict(float)
        filling = 0.0
        for share, signals in reading.sides():
            usual = reading.usual(signals)
            for one in usual:
                for name, s in self._step(one).items():
                    step[name] += share * s / len(usual)
                filling += share * self._frozen(one, fixed=True) / len(usual)
        seconds = {name: steps * s for name, s in step.items()}
        seconds["optimizer"] = steps * self._optimizer()
        rows = reading.rows * self.machine.gpus
        if training.cache != "off" and filling:
            seconds["caching"] = filling * (len(self.prepared.train.rows) + evals) / rows
        if evals:
            forward = sum(s for name, s in step.items() if name != "backward")
            times = 1 + (steps // training.eval_every if training.eval_every else 0)
            seconds["evaluation"] = times * forward * evals / rows
        return Time(self.stage.name, steps, {name: s for name, s in seconds.items() if s})

    def _step(self, step: Step) -> dict[str, float]:
        """Of one step, by phase."""
        student = self.machine.shape(self.stage.start)
        weights, _, autocast = arithmetic(self.prepared.recipe.models.precision)
        forward = sum(student.flops(size) for micro in step.micro for size in by_student(student, micro))
        again = forward if self.stage.training.gradient_checkpointing else 0.0
        rate = self.machine.device.rate(autocast)
        decoding = torch.bfloat16 if autocast else weights
        found = {
            "teacher": self._frozen(step, fixed=False, who="teacher"),
            "reference": self._frozen(step, fixed=False, who="reference"),
            "student": (forward + self._heads(step)) / rate,
            "backward": ((2 if student.adapter is None else 1) * forward + again)
            / rate,  # frozen: no weight's gradient
        }
        if step.prompts[0]:
            found["rollout"] = decoding_seconds(
                self.machine, student, decoding, step.prompts, step.longest, self._graph
            )
        return found

    @property
    def _graph(self) -> bool:
        return self.prepared.recipe.rollouts.cuda_graph

    def _heads(self, step: Step) -> float:
        """Operations of the heads: logits of student and teacher, and the student's gradients: of hidden states,
        and of the head where it learns. (A chunk's logits are made once, whatever reads them.)"""
        scored, student = judged(step.signals), self.machine.shape(self.stage.start)
        own, theirs = (6 if student.adapter is None else 4) * student.head, 0
        if self.stage.method.judged_by_larger:
            theirs = 2 * self.machine.shape("teacher").head
        elif scored:
            theirs = 2 * student.head
        reads = [read for micro in step.micro for read in micro]
        return sum(read.positions * (own + (theirs if read.view in scored else 0)) for read in reads)

    def _frozen(self, step: Step, fixed: bool, who: str = "") -> float:
        """Seconds of teacher and reference (or one of them); fixed: for what a cache keeps, else for what is left."""
        larger, total = self.stage.method.judged_by_larger, 0.0
        teacher = self.machine.shape("teacher" if larger else self.stage.start)
        for micro in step.micro:
            if who != "reference":
                asked = [read for read in micro if self._kept(read.view, not larger) is fixed]
                readings = [read.teacher for read in asked if read.teacher is not None]
                total += sum(map(teacher.flops, read_by(teacher, readings)))
            if who != "teacher" and self.stage.reference is not None:
                reference, views = self.machine.shape(self.stage.reference), compared(step.signals)
                against = [read for read in micro if read.view in views and self._kept(read.view, False) is fixed]
                total += sum(map(reference.flops, read_by(reference, [read.student for read in against])))
                total += sum(2 * reference.head * read.positions for read in against)
        return total / self.machine.device.rate(arithmetic(self.prepared.recipe.models.precision)[2])

    def _kept(self, view: View, moving: bool) -> bool:
        """Whether the cache answers for a view. moving: it is asked of a teacher that moves with the student."""
        return self.stage.training.cache != "off" and view.fixed and not moving

    def _optimizer(self) -> float:
        """Seconds of a step, for weights that lie in memory."""
        student = self.machine.shape(self.stage.start)
        return OPTIMIZER * student.trained / self.machine.device.reach


def generation_time(prepared: Prepared, stage: Generate, machine: Machine) -> Time:
    """Every row is answered once, in batches that the processes share; each batch to the longest answer's end."""
    recipe = prepared.recipe
    _, frozen, _ = arithmetic(recipe.models.precision)
    batch, rows = recipe.training.batch, [*prepared.train.rows, *prepared.eval.rows]
    seconds, batches = 0.0, range(0, len(rows), batch)
    for start in batches:
        these = rows[start : start + batch]
        longest = max(min(recipe.limits.of("rollout", row.example.l), len(row.y)) for row in these)
        prompts = (len(these), max(len(row.x) for row in these))
        graph = recipe.rollouts.cuda_graph
        seconds += decoding_seconds(machine, machine.shape(stage.writer), frozen, prompts, longest, graph)
    return Time(stage.name, len(batches), {"generation": seconds / machine.gpus})


def decoding_seconds(
    machine: Machine, model: Shape, dtype: torch.dtype, prompts: Size, steps: int, graph: bool
) -> float:
    """Seconds to read the prompts and to continue them by so many tokens."""
    rows, width = prompts
    device, rate = machine.device, machine.device.rate(dtype is torch.bfloat16)
    reading = (model.flops(prompts) + 2 * rows * model.head) / rate
    kept = rows * (width + steps / 2) * model.cache_bytes(dtype)
    moved = (model.bytes(dtype) + kept) / device.reach
    multiplied = rows * 2 * (model.body + model.head) / rate
    waiting = 0.0 if device.is_cpu else LATENCY["graph" if graph else "fused" if model.fused else "own"] * model.layers
    return reading + steps * max(moved, multiplied, waiting)
