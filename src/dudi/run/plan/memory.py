"""Memory of a stage, item by item, and the micro-batch that it allows.

Items of one phase are there together, so the peak is that of the phase with the most. Weights, gradients and moments
are exact; activations are counted on the model's own forward and backward (`dudi.run.plan.traced`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from dudi.loss import chunked
from dudi.models.load import arithmetic
from dudi.recipe.stages import Generate, Stage, Train
from dudi.run.caching import kept
from dudi.run.plan.devices import Device
from dudi.run.plan.reading import Micro, Reading, Step, by_student, read_by, tokens, with_micro_batch
from dudi.run.plan.shapes import Shape, Size, key_of
from dudi.run.prepare import Prepared
from dudi.signals import compared, judged, views

ROLLOUT, TEACHER, REFERENCE, STUDENT, BACKWARD, OPTIMIZER = PHASES = (
    "rollout",
    "teacher",
    "reference",
    "student",
    "backward",
    "optimizer",
)
"""As in a run's `phases.json`; `student` goes on into the backward pass, of which `backward` is the end."""
HOST = "host"
"""Beside the device."""
AFTER_FIRST = PHASES[1:]
"""Phases in which gradients of earlier micro-batches are there."""
LOGITS = 16
"""Bytes of a logit while a token is drawn: the logits, divided by the temperature, their softmax, and a product."""
BLOCK = 8
"""Float32 tensors of a block of logits while its losses and their gradient are computed."""


@dataclass(frozen=True)
class Item:
    """Something that takes memory, in some phases."""

    name: str
    bytes: float
    phases: tuple[str, ...] = PHASES


@dataclass(frozen=True)
class Memory:
    """What one process of a stage needs on its device. unknown: what could not be counted, and why."""

    stage: str
    items: tuple[Item, ...]
    unknown: tuple[str, ...] = ()

    @property
    def phase(self) -> str:
        """The phase of the peak."""
        return max(PHASES, key=self._of)

    @property
    def peak(self) -> float:
        """Bytes."""
        return self._of(self.phase)

    def _of(self, phase: str) -> float:
        return sum(item.bytes for item in self.items if phase in item.phases)


@dataclass(frozen=True)
class Machine:
    """What a run is planned for, and on which models. base: bytes of the process itself, where they count."""

    device: Device
    gpus: int
    shapes: Mapping[str, Shape]
    stages: tuple[Stage, ...]
    base: int = 0

    def shape(self, name: str) -> Shape:
        """The model that a stage calls so."""
        return self.shapes[key_of(name, self.stages, self.shapes)]

    def process(self) -> list[Item]:
        """What is there whatever is run."""
        return [Item("this process: libraries and rows", self.base)] if self.base else []


@dataclass(frozen=True)
class Training:
    """The memory of a training."""

    prepared: Prepared
    stage: Train
    machine: Machine

    def memory(self) -> Memory:
        """Of the heaviest step."""
        reading = Reading(self.prepared, self.stage, self.machine.gpus)
        found = [
            self._of(step)
            for _, signals in reading.sides()
            for step in reading.heaviest(signals, self.stage.training.micro_batch)
        ]
        return max(found, key=lambda one: one.peak)

    def largest_micro_batch(self, checkpointing: bool) -> int:
        """The largest number of rows that fits, of those that a process has; 0 where one does not."""
        most = Reading(self.prepared, self.stage, self.machine.gpus).rows

        def fits(rows: int) -> bool:
            changed = Training(self.prepared, with_micro_batch(self.stage, rows, checkpointing), self.machine)
            return changed.memory().peak <= self.machine.device.usable

        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def _of(self, step: Step) -> Memory:
        student = self.machine.shape(self.stage.start)
        weights, _, autocast = arithmetic(self.prepared.recipe.models.precision)
        items = [*self.machine.process(), *self._student(student), *self._frozen(student)]
        unknown: list[str] = []
        decoding = torch.bfloat16 if autocast else weights
        if step.prompts[0]:
            items += decoding_items(student, decoding, step.prompts, step.longest, self.prepared.chat.vocab, unknown)
        for micro in (
            max(step.micro, key=lambda one: tokens(by_student(student, one))),
            max(step.micro, key=_teacher_tokens),
        ):
            items += self._micro(student, micro, unknown)
        return Memory(self.stage.name, tuple(_largest(items)), tuple(dict.fromkeys(unknown)))

    def _student(self, student: Shape) -> Iterator[Item]:
        """What is there of the student at any step."""
        weights, _, autocast = arithmetic(self.prepared.recipe.models.precision)
        size, name, adapted = student.trained * weights.itemsize, _name(weights), student.adapter is not None
        if adapted:  # R is the same weights
            yield Item("student's own weights, frozen", student.reference_bytes(weights, autocast))
            yield from _multiplied(student, (REFERENCE, STUDENT, BACKWARD))
            before = any(self.stage.start == stage.name for stage in self.machine.stages)
            if student.adapter and student.adapter.quantization and self.stage.reference and before:
                yield Item(f"R's adapter, {name}", size)
        yield Item(f"{'adapter' if adapted else 'student'}, {name}", size)
        yield Item(f"gradients, {name}", size, AFTER_FIRST)
        yield Item(f"AdamW's moments, {name}", 2 * size)
        if (autocast or adapted) and any(view.response.sampled for view in views(self.stage.method.signals)):
            decoding = torch.bfloat16 if autocast else weights
            yield Item(f"copy that decodes, {_name(decoding)}", student.bytes(decoding))
        if self.machine.gpus > 1:
            yield Item("gradients in DDP's buckets", size, AFTER_FIRST)
        largest = min(max(p.numel() for p in student.model.parameters()) * weights.itemsize, size)
        yield Item("the optimizer's own tensors", 2 * largest if self.machine.device.is_cpu else size, (OPTIMIZER,))

    def _frozen(self, student: Shape) -> Iterator[Item]:
        """Models that do not learn, and what is kept of them."""
        method, training = self.stage.method, self.stage.training
        weights, frozen, autocast = arithmetic(self.prepared.recipe.models.precision)
        if method.judged_by_larger:
            teacher = self.machine.shape("teacher")
            size, name = teacher.bytes(frozen), teacher.bits or _name(frozen)
            yield from _multiplied(teacher, (TEACHER,))
            if self.prepared.recipe.models.teacher_sharding == "shard" and self.machine.gpus > 1:
                yield Item(f"teacher, {name}, its share", size / self.machine.gpus)
                yield Item("teacher's head, whole", teacher.head * frozen.itemsize)
            else:
                yield Item(f"teacher, {name}", size)
        if method.ema_rate:
            yield Item("moving average of the student", student.trained * weights.itemsize)
        if self.stage.reference is not None and student.adapter is None:
            yield Item("reference R", self.machine.shape(self.stage.reference).reference_bytes(weights, autocast))
        if training.cache == "memory" and (size := kept(self.stage, self.prepared).bytes):
            on_cpu = self.machine.device.is_cpu
            yield Item("cache" if on_cpu else "cache, in the machine's memory", size, PHASES if on_cpu else (HOST,))

    def _micro(self, student: Shape, micro: Micro, unknown: list[str]) -> Iterator[Item]:
        """What a micro-batch takes."""
        training, signals = self.stage.training, self.stage.method.signals
        weights, frozen, autocast = arithmetic(self.prepared.recipe.models.precision)
        sizes = by_student(student, micro)
        longest = max((length for _, length in sizes), default=1)
        trace = student.trace(longest, weights, autocast, True, training.gradient_checkpointing)
        _note(trace.fault, student, "activations", unknown)
        checkpointed = ", checkpointed" if training.gradient_checkpointing else ""
        yield Item(f"activations{checkpointed}", trace.bytes(tokens(sizes)), (STUDENT,))
        positions, entry = sum(read.positions for read in micro), 2 if autocast else weights.itemsize
        vocab, chunk = self.prepared.chat.vocab, min(training.head_chunk, max(positions, 1))
        products = chunk * vocab * entry * (2 if judged(signals) else 1)
        most = chunked._CPU_BLOCK if self.machine.device.is_cpu else chunked._GPU_BLOCK
        block = min(chunk * vocab, most) * BLOCK * weights.itemsize
        states = 2 * positions * student.hidden * weights.itemsize
        yield Item("head: a chunk of logits", products + block + states, (STUDENT,))
        cast = student.head * 2 if autocast else 0
        if student.adapter is None:
            yield Item("head: its gradient", student.head * weights.itemsize + cast, (STUDENT, BACKWARD))
            embedded = student.embedding * weights.itemsize
            yield Item("embedding: its gradient, by view", min(len(micro), 2) * embedded, (BACKWARD,))
        elif cast:
            yield Item("head, bfloat16", cast, (STUDENT, BACKWARD))
        against = [read.student for read in micro if read.view in compared(signals)]
        if against and self.stage.reference is not None:
            reference = self.machine.shape(self.stage.reference)
            trace = reference.trace(longest, weights, autocast, False)
            yield Item("R reads", trace.bytes(max(map(_product, read_by(reference, against)))), (REFERENCE,))
        given = [read.teacher for read in micro if read.teacher is not None]
        if given:
            own = bool(self.stage.method.ema_rate)
            teacher, dtype = (student, weights) if own else (self.machine.shape("teacher"), frozen)
            judged_by = read_by(teacher, given)
            trace = teacher.trace(max(length for _, length in judged_by), dtype, autocast, False)
            _note(trace.fault, teacher, "what it reads", unknown)
            yield Item("the teacher reads", trace.bytes(max(map(_product, judged_by))), (TEACHER,))


def generation(prepared: Prepared, stage: Generate, machine: Machine) -> Memory:
    """The memory of a generation stage: its longest prompts, answered to the limit."""
    recipe, unknown = prepared.recipe, list[str]()
    _, frozen, _ = arithmetic(recipe.models.precision)
    writer = machine.shape(stage.writer)
    lengths = sorted(len(row.x) for row in prepared.train.rows)[-recipe.training.batch :]
    longest = max(recipe.limits.of("rollout", row.example.l) for row in prepared.train.rows)
    items = [*machine.process(), Item(f"{stage.writer}, {writer.bits or _name(frozen)}", writer.bytes(frozen))]
    items += _multiplied(writer, (ROLLOUT,)) if writer.bits else ()
    size = (len(lengths), lengths[-1])
    items += decoding_items(writer, frozen, size, longest, prepared.chat.vocab, unknown)
    return Memory(stage.name, tuple(items), tuple(unknown))


def decoding_items(
    model: Shape, dtype: torch.dtype, prompts: Size, longest: int, vocab: int, unknown: list[str]
) -> Iterator[Item]:
    """What rollouts take, of so many prompts at once."""
    rows, width = prompts
    yield Item("rollouts: weights as products read them", model.transposed_bytes(dtype), (ROLLOUT,))
    yield Item("rollouts: keys and values", rows * (width + longest) * model.cache_bytes(dtype), (ROLLOUT,))
    trace = model.trace(width, dtype, False, False)
    _note(trace.fault, model, "what prompts take", unknown)
    mask = rows * width**2 * (1 + dtype.itemsize)
    reading = trace.bytes(rows * width) + mask
    yield Item("rollouts: prompts, logits", max(reading, rows * vocab * LOGITS), (ROLLOUT,))


def _multiplied(model: Shape, phases: tuple[str, ...]) -> Iterator[Item]:
    """What a layer that is kept in 4 bits takes while it is multiplied with."""
    if model.dequantised:
        yield Item(f"{model.key.removeprefix('models.')}: a layer, out of its 4 bits", model.dequantised, phases)


def _largest(items: list[Item]) -> list[Item]:
    """Each item once, as large as it gets."""
    found: dict[str, Item] = {}
    for item in items:
        if item.name not in found or item.bytes > found[item.name].bytes:
            found[item.name] = item
    return list(found.values())


def _note(fault: str, model: Shape, what: str, unknown: list[str]) -> None:
    if fault:
        unknown.append(f"{model.key}: {what} cannot be counted for a {type(model.model).__name__} ({fault})")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _product(size: Size) -> int:
    return size[0] * size[1]


def _teacher_tokens(micro: Micro) -> int:
    return max((read.teacher.input_ids.numel() for read in micro if read.teacher is not None), default=0)
