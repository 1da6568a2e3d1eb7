"""One optimizer step, on `transformers.Trainer`. No mathematics here: that is in `dudi.loss.objective`.

A step reads its window (the rows of this process), builds the views (all rollouts in one call), counts, and walks over
micro-batches. For each, teacher and reference score first; then the student is called once, through its wrapper's
forward, so that DDP and FSDP see every gradient. Clipping, optimizer, schedule and devices are the Trainer's.

Data order, l_z and random numbers are functions of (seed, epoch, row, view), coins of (seed, step): a step depends on
its number and the weights alone, not on the number of processes, and a resumed run repeats the straight one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from dudi import processes
from dudi.loss.head import Head
from dudi.loss.objective import Objective, objective
from dudi.loss.scores import Block, Scores, response_log_probs
from dudi.loss.signals import Count
from dudi.models.adapter import is_adapted
from dudi.models.dropout import dropout_off
from dudi.models.reader import DecodingCopy, Reader
from dudi.models.sharding import whole
from dudi.signals import Signal, View, views
from dudi.training import faults
from dudi.training.between import BetweenSteps
from dudi.training.cache import Cache, Frozen
from dudi.training.job import Job, times
from dudi.training.metrics import Meter, record
from dudi.training.monitors import Course, Lines, Monitor
from dudi.training.order import Order
from dudi.training.phases import LARGE, Phases, trim
from dudi.training.resumable import SavingTrainer
from dudi.training.samples import Samples, text_of
from dudi.training.shares import Counts, Shares
from dudi.training.trackers import trackers
from dudi.training.watch import Watch
from dudi.training.window import Row, Window, collate


class DistillationTrainer(SavingTrainer):
    """The one loop, for every method."""

    def __init__(
        self,
        job: Job,
        callbacks: Sequence[TrainerCallback] = (),
        monitors: Sequence[Monitor] = (),
        title: str = "",
        stop: faults.Stop | None = None,
        say: Callable[[str], None] = print,
        phases: Phases | None = None,
    ) -> None:
        super().__init__(job, stop or faults.Stop(), [BetweenSteps(self), *callbacks])
        self.remove_callback(PrinterCallback)
        self.title = title
        self.monitors = (Lines(job.folder), *trackers(job.training.report_to, say), *monitors)
        self.say = say
        self.phases = phases or Phases(say)
        self.watch = Watch(job.method, job.training, job.seed)
        self.samples = Samples(job, self.batch_rows)
        self.shares = Shares.of(job.training.equalize, job.languages)
        samples = any(view.response.sampled for view in views(job.method.signals))
        self.decoder = DecodingCopy(job.student, samples, bf16=job.autocast)
        self.last_lr = 0.0
        vocab, teacher = job.builder.chat.vocab, self.ema.model if self.ema else job.teacher
        within = self.ema.within if self.ema else contextlib.nullcontext
        with self._autocast() if is_adapted(job.student) else contextlib.nullcontext():  # its base is stored for it
            self.reader = Reader(job.student, vocab, "student")
            self.teacher = None if teacher is None else Reader(teacher, vocab, "teacher", within)
            if not job.training.dropout:
                dropout_off(job.student, "student")
        with self._autocast():  # R is stored for it
            reference = job.reference
            self.reference = None if reference is None else Reader(reference, vocab, "reference", job.reference_as)
        self.cache = Cache(job, self._frozen, self._identity, self.say)
        self.reference_head = None if self.reference is None else self.reference.head()
        self.teacher_head = None if self.teacher is None else self.teacher.head()  # gathered once where it is sharded
        self.lockstep = self.reader.lockstep or (self.teacher is not None and self.teacher.lockstep)
        if job.training.gradient_checkpointing:
            new = getattr(job.student, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
            (new or job.student.gradient_checkpointing_enable)({"use_reentrant": False})

    # ── the window ───────────────────────────────────────────────────────────────────────────────────────────────────
    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item a step. It says nothing: the rows of a step follow from its number (see `window_rows`)."""
        return DataLoader(cast(Any, self.train_dataset), batch_size=1)

    @cached_property
    def order(self) -> Order:
        """Which rows each step reads."""
        return Order(self.job.rows, self.job.training, self.job.languages, self.job.seed)

    def batch_rows(self, step: int) -> tuple[int, list[Row]]:
        """(epoch, rows) of an optimizer step, over all processes."""
        return self.order(step)

    def signals(self, step: int) -> tuple[Signal, ...]:
        """What an optimizer step reads."""
        return self.job.method.active(self.job.seed, step)

    def window_rows(self, step: int) -> tuple[int, list[Row], list[float]]:
        """(epoch, rows, weights) of this process at an optimizer step; a ragged end is filled with rows of weight 0."""
        epoch, rows = self.batch_rows(step)
        return (epoch, *self._share(rows))

    def _share(self, rows: list[Row]) -> tuple[list[Row], list[float]]:
        """This process's rows of a global batch, all processes the same number."""
        mine = rows[self.args.process_index :: self.args.world_size]
        filler = math.ceil(len(rows) / self.args.world_size) - len(mine)
        return mine + rows[:1] * filler, [1.0] * len(mine) + [0.0] * filler

    # ── the step ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one whole optimizer step; returns this process's share of the loss."""
        self._fill_cache()
        step, job = self.state.global_step, self.job
        model.train()
        self.last_lr = self._get_learning_rate()
        signals = self.signals(step)
        epoch, rows, weight = self.window_rows(step)
        rollouts = faults.finite_rollouts(step + 1, job.folder)
        with self._phase("rollout"), processes.together(), rollouts:
            window = job.builder.build(self.decoder.refreshed(), signals, rows, weight, epoch)
        self._meter_rollouts(window)
        for line in self.samples.of(step, window):
            self.tell(lambda monitor, line=line: monitor.rollout(line))  # type: ignore[misc]
        counts = self._over_ranks(self.shares.counts(window, signals))
        every = job.training.overlap_every
        measure = bool(every) and (step + 1) % every == 0
        micro = self._micro_batches(window)
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        fault: faults.Fault | None = None
        for k, places in enumerate(micro):
            last = k == len(micro) - 1
            with self._reduced(model, last):
                divisors = self.shares.divisors(counts, [window.rows[place] for place in places])
                result = self._micro_batch(model, window, places, signals, divisors, measure)
                with self._phase("backward"):
                    # gradients are averaged over ranks, but each rank's loss is its share of the sum
                    self.accelerator.backward(result.loss * self.args.world_size)
            total += result.loss.detach()
            fault = fault or faults.fault_of(result, window, places)
            self.meter.add_objective(result, [window.rows[p].example.l for p in places])
        self._average_adapter()
        faults.stop_at_fault(fault, step + 1, job.folder)  # only now: a process that left its loop would be waited for
        self.meter.add("loss", float(total))
        self.meter.add("steps", 1 / self.args.world_size)
        return total

    def _reduced(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are added up over micro-batches, and over processes at the last. A sharded student's are spread
        at each: whole ones are what does not fit."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(model)

    def _micro_batches(self, window: Window) -> list[list[int]]:
        """Row numbers of each micro-batch; where a model is sharded, all processes have the same number of them."""
        micro = list(window.micro_batches(self.job.training.micro_batch, self.job.training.micro_batch_tokens))
        if self.lockstep:
            micro += [[] for _ in range(processes.most(len(micro)) - len(micro))]
        return micro

    def _micro_batch(
        self,
        model: nn.Module,
        window: Window,
        places: list[int],
        signals: Sequence[Signal],
        counts: Mapping[str, Count],
        measure: bool,
    ) -> Objective:
        """Teacher and reference score their views; then one student forward scores its own and gives the loss."""
        chunk = self.job.training.head_chunk
        blocks = collate(window, places, self.job.builder.chat.pad, self.args.device)
        with self._phase("teacher"):
            frozen = self.cache.of(window, places, blocks, signals)

        def then(hidden: dict[View, Tensor], head: Head, zero: Tensor) -> Objective:
            if not blocks:  # no row has a term (all z too long)
                return Objective(zero, {}, {})
            scores = Scores(blocks, hidden, head, frozen.teacher, self.teacher_head, frozen.reference)
            found = objective(signals, scores, counts, chunk, measure)
            return replace(found, loss=found.loss + zero)

        with self._phase("student"), self._autocast():
            readings = {view: block.student for view, block in blocks.items()}
            return self.reader.reading(model, readings, len(views(signals)), then)

    def _frozen(self, blocks: Mapping[View, Block], judged: Sequence[View], compared: Sequence[View]) -> Frozen:
        """What the teacher says of some views, and the reference of others."""
        with self._phase("teacher"), torch.no_grad(), self._autocast():
            teacher = self._judge(blocks, judged)
        with self._phase("reference"), torch.no_grad(), self._autocast():
            return Frozen(teacher, self._compare(blocks, compared))

    def _judge(self, blocks: Mapping[View, Block], judged: Sequence[View]) -> dict[View, Tensor]:
        """The teacher's hidden states of the views that it scores."""
        if self.teacher is None or not judged:
            return {}
        readings = {view: block.teacher for view in judged if (block := blocks.get(view)) and block.teacher}
        return self.teacher.hidden(readings, len(judged))

    def _compare(self, blocks: Mapping[View, Block], compared: Sequence[View]) -> dict[View, Tensor]:
        """The reference's log R(.|x) of the views that it scores, by row."""
        if self.reference is None or self.reference_head is None or not compared:
            return {}
        hidden = self.reference.hidden({v: blocks[v].student for v in compared if v in blocks}, len(compared))
        return response_log_probs(hidden, self.reference_head, blocks, self.job.training.head_chunk)

    def _fill_cache(self) -> None:
        """Before the first step or evaluation, on all processes together."""
        if self.cache.empty:
            rows = len(self.job.rows) + len(self.job.eval_rows)
            with self._outside("caching", f"cache: teacher and reference read {rows} rows"), faults.memory("caching"):
                self.cache.fill(self.stop, self.args.device)

    def _identity(self) -> str:
        """Who teacher and reference are, and how they compute."""
        readers = (self.teacher if self.cache.judged else None, self.reference if self.cache.compared else None)
        return " ".join([str(self.job.autocast), *("-" if one is None else one.fingerprint() for one in readers)])

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A phase of the step: its time is taken, and it is named where memory ends and in traces."""
        with faults.memory(name), self.phases(name), record_function(name):
            yield

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.job.autocast)

    def _over_ranks(self, counts: Counts) -> Counts:
        """Counts of the whole step, reduced in one call."""
        return dict(zip(counts, processes.summed(list(counts.values())), strict=True))

    def _meter_rollouts(self, window: Window) -> None:
        chat = self.job.builder.chat
        for view, items in window.items.items():
            if view.response.sampled:
                for row, item, weight in zip(window.rows, items, window.weight, strict=True):
                    length, finished = (None, False) if item is None else (len(item.response), item.finished)
                    self.meter.add_rollout(view, row.example.l, weight, length, finished)
                    if item is not None and weight:
                        text = text_of(chat, item.response) if self.collapse.reads_text else ""
                        asked = item.l_z or row.example.l
                        self.collapse.add(view, row.example, asked, item.response, finished, text)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        with self._phase("optimizer"):
            if self.phases.peaks.get("backward", 0) > LARGE:
                trim()
            norm = whole(super()._clip_grad_norm(model))
        ids = [row.example.id for row in self.window_rows(self.state.global_step)[1]]
        faults.stop_at_gradient(float(norm), ids, self.state.global_step + 1, self.job.folder)
        self.meter.add("grad_norm", float(norm) / self.args.world_size)
        return norm

    def tell(self, event: Callable[[Monitor], None]) -> None:
        """Every monitor, on the first process."""
        if self.is_world_process_zero():
            for monitor in self.monitors:
                event(monitor)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer's estimate knows nothing of rollouts and teachers."""
        return 0

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────
    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss on the rows set aside, by signal and language, with random numbers that are the same every time.

        A coin's signals are each weighted by their probability: the expected loss.
        """
        self._fill_cache()
        with self._outside("evaluation", f"evaluation at step {self.state.global_step}"):
            meter = self._evaluated()
        signals = self.job.method.expected()
        entry = record(meter.sums, signals)
        loss = self.shares.loss(entry.get("signal", {}))
        metrics = {f"{metric_key_prefix}_loss": loss}
        line = {"step": self.state.global_step, "eval": {"loss": loss, "signal": entry.get("signal", {})}}
        self.tell(lambda monitor: monitor.log(line))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluated(self) -> Meter:
        """The sums over all rows set aside; complete on the first process."""
        job, meter = self.job, Meter(self.job.method, self.job.languages)
        signals = job.method.expected()
        self.student.eval()
        for start in range(0, len(job.eval_rows), job.training.batch):
            if self.stop.due():
                self.evaluation_due = True
                raise self.stop.preempted(f"in the evaluation of step {self.state.global_step}")
            rows, weight = self._share(list(job.eval_rows[start : start + job.training.batch]))
            with faults.memory("evaluation"):
                window = job.eval_builder.build(self.decoder.refreshed(), signals, rows, weight, 0)
            for places in self._micro_batches(window):
                ones = {s.name: 1.0 for s in signals}
                with faults.memory("evaluation"):
                    result = self._micro_batch(self.student, window, places, signals, ones, False)
                meter.add_objective(result, [window.rows[p].example.l for p in places])
        self.evaluation_due = False
        meter.total()
        self.student.train()
        return meter

    # ── outside of steps ─────────────────────────────────────────────────────────────────────────────────────────────
    @contextlib.contextmanager
    def _outside(self, name: str, what: str) -> Iterator[None]:
        """A phase between steps."""
        began = time.monotonic()
        with self.phases.outside(name, what):
            yield
        self.tell(lambda monitor: monitor.outside(name, time.monotonic() - began))

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        with self._outside("saving", f"saving the checkpoint of step {self.state.global_step}"):
            super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            self.phases.settle(self.job.folder)

    def course(self) -> Course:
        """Where this training stands, for the monitors."""
        state = self.state
        now, settings = (lambda: self.phases.now), self.job.settings()
        return Course(self.title, self.job.folder, state.global_step, state.max_steps, now, self.to_come, settings)

    def to_come(self, step: int) -> dict[str, int]:
        """How often a phase outside of steps still runs, from the end of `step` on; each runs at the last step too."""
        last, training = self.state.max_steps, self.job.training
        evaluations = times(training.eval_every, last, step - 1) if self.job.eval_rows else 0
        return {"evaluation": evaluations, "saving": times(training.save_every, last, step - 1) + 1}  # and the result
