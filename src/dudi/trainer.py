"""One optimizer step, on `transformers.Trainer`. No mathematics here: that is in `dudi.objective`.

A step reads its window (the rows of this process), builds the views (all rollouts in one call), counts, and walks over
micro-batches. For each, teacher and reference score first; then the student is called once, through its wrapper's
forward, so that DDP and FSDP see every gradient. Clipping, optimizer, schedule and devices are the Trainer's.

Data order, l_z and random numbers are functions of (seed, epoch, row, view), coins of (seed, step): a step depends on
its number and the weights alone, not on the number of processes, and a resumed run repeats the straight one.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from dudi import checkpoints
from dudi.batch import Row, Window, collate, needs_reference, needs_teacher
from dudi.errors import DudiError
from dudi.job import Job, arguments
from dudi.languages import draw
from dudi.methods import Signal, View, views
from dudi.metrics import Meter, Phases, append_line, record
from dudi.models import DecodingCopy, EmaTeacher, check_head, head_of, whole_head
from dudi.objective import Objective, objective
from dudi.scores import Scores, hidden_states, sequence_log_probs
from dudi.sharding import (
    frozen_states,
    idle,
    is_sharded,
    load_optimizer_state,
    load_weights,
    through,
    whole,
    whole_optimizer_state,
)

EMA_FILE, STATE_FILE = "ema.safetensors", "dudi.json"


class DistillationTrainer(Trainer):
    """The one loop, for every method."""

    def __init__(self, job: Job, callbacks: Sequence[TrainerCallback] = ()) -> None:
        self.job = job
        self.phases = Phases()
        self.meter = Meter(job.method, job.languages)
        self.ema = EmaTeacher(job.student, job.method.ema_rate) if job.method.ema_rate else None
        self.frozen_teacher = self.ema.model if self.ema else job.teacher
        samples = any(view.response.sampled for view in views(job.method.signals))
        self.decoder = DecodingCopy(job.student, samples, bf16=job.autocast)
        self.last_lr = 0.0
        self._staging: Path | None = None
        named = (("student", job.student), ("teacher", job.teacher), ("reference", job.reference))
        for what, model in named:
            if model is not None:
                check_head(model, job.builder.chat.vocab, what)
        frozen = self.frozen_teacher
        self.teacher_head = None if frozen is None else whole_head(frozen, job.builder.chat.vocab)
        self.lockstep = is_sharded(job.student) or (frozen is not None and is_sharded(frozen))
        if job.training.gradient_checkpointing:
            new = getattr(job.student, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
            (new or job.student.gradient_checkpointing_enable)({"use_reentrant": False})
        super().__init__(
            model=job.student,
            args=arguments(job),
            train_dataset=[{"place": place} for place in range(self.steps_per_epoch)],
            eval_dataset=[{"place": 0}] if job.eval_rows else None,
            callbacks=[_Hooks(self), *callbacks],
            processing_class=job.builder.chat.tokenizer,
        )
        self.remove_callback(PrinterCallback)

    @property
    def student(self) -> PreTrainedModel:
        """The bare student, without its wrapper."""
        return cast(PreTrainedModel, self.model)

    # ── the window ───────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows; the last may be ragged."""
        return math.ceil(len(self.job.rows) / self.job.training.batch)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item a step. It says nothing: the rows of a step follow from its number (see `window_rows`)."""
        return DataLoader(cast(Any, self.train_dataset), batch_size=1)

    def window_rows(self, step: int) -> tuple[int, list[Row], list[float]]:
        """(epoch, rows, weights) of this process at an optimizer step; a ragged end is filled with rows of weight 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(draw(self.job.seed, epoch, "order") >> 1)
        order = torch.randperm(len(self.job.rows), generator=generator).tolist()
        batch = order[place * self.job.training.batch : (place + 1) * self.job.training.batch]
        return (epoch, *self._share([self.job.rows[i] for i in batch]))

    def _share(self, rows: list[Row]) -> tuple[list[Row], list[float]]:
        """This process's rows of a global batch, all processes the same number."""
        mine = rows[self.args.process_index :: self.args.world_size]
        filler = math.ceil(len(rows) / self.args.world_size) - len(mine)
        return mine + rows[:1] * filler, [1.0] * len(mine) + [0.0] * filler

    # ── the step ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one whole optimizer step; returns this process's share of the loss."""
        step, job = self.state.global_step, self.job
        model.train()
        self.last_lr = self._get_learning_rate()
        signals = job.method.active(job.seed, step)
        epoch, rows, weight = self.window_rows(step)
        with self.phases("rollout"):
            window = job.builder.build(self.decoder.refreshed(), signals, rows, weight, epoch)
        self._meter_rollouts(window)
        counts = self._over_ranks(window.counts(signals))
        every = job.training.overlap_every
        measure = bool(every) and (step + 1) % every == 0
        micro = self._micro_batches(window)
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        for k, places in enumerate(micro):
            last = k == len(micro) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                result = self._micro_batch(model, window, places, signals, counts, measure)
                with self.phases("backward"):
                    # gradients are averaged over ranks, but each rank's loss is its share of the sum
                    self.accelerator.backward(result.loss * self.args.world_size)
            total += result.loss.detach()
            self._check_finite(result, window, places, step)
            self.meter.add_objective(result, [window.rows[p].example.l for p in places])
        self.meter.add("loss", float(total))
        self.meter.add("steps", 1 / self.args.world_size)
        return total

    def _micro_batches(self, window: Window) -> list[list[int]]:
        """Row numbers of each micro-batch; where a model is sharded, all processes have the same number of them."""
        micro = list(window.micro_batches(self.job.training.micro_batch, self.job.training.micro_batch_tokens))
        if self.lockstep:
            most = torch.tensor(len(micro), device=self.args.device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            micro += [[] for _ in range(int(most) - len(micro))]
        return micro

    def _micro_batch(
        self,
        model: nn.Module,
        window: Window,
        places: list[int],
        signals: Sequence[Signal],
        counts: Mapping[str, float],
        measure: bool,
    ) -> Objective:
        """Teacher and reference score their views; then one student forward scores its own and gives the loss."""
        job, vocab = self.job, self.job.builder.chat.vocab
        blocks = collate(window, places, job.builder.chat.pad, self.args.device)
        with self.phases("teacher"), torch.no_grad(), self._autocast():
            teacher: dict[View, Tensor] = {}
            if self.frozen_teacher is not None:
                judged = needs_teacher(signals)
                readings = {view: reading for view in judged & blocks.keys() if (reading := blocks[view].teacher)}
                teacher = frozen_states(self.frozen_teacher, readings, len(judged))
            reference: dict[View, Tensor] = {}
            if job.reference is not None:
                head = head_of(job.reference, vocab)
                for view in needs_reference(signals) & blocks.keys():
                    hidden = hidden_states(job.reference.base_model, blocks[view].student)
                    reference[view] = sequence_log_probs(hidden, head, blocks[view], job.training.head_chunk)

        def forward() -> Objective:
            with self._autocast():
                student = {view: hidden_states(self.student.base_model, b.student) for view, b in blocks.items()}
                missing = len(views(tuple(signals))) - len(blocks) if self.lockstep else int(not blocks)
                zero = idle(self.student, missing, self.args.device)
                head = head_of(self.student, vocab)  # after the backbone: see there
                if not blocks:  # no row has a term (all z too long): a zero that touches every parameter
                    return Objective(zero + 0.0 * head.weight.sum(), {}, {}, {})
                scores = Scores(blocks, student, head, teacher, self.teacher_head, reference)
                found = objective(signals, scores, counts, job.training.head_chunk, measure)
                return replace(found, loss=found.loss + zero) if missing else found

        with self.phases("student"):
            return through(model, self.student, forward)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.job.autocast)

    def _over_ranks(self, counts: dict[str, float]) -> dict[str, float]:
        """Counts of the whole step, reduced in one call."""
        if self.args.world_size == 1:
            return counts
        total = torch.tensor(list(counts.values()), dtype=torch.float64, device=self.args.device)
        dist.all_reduce(total)
        return dict(zip(counts, total.tolist(), strict=True))

    def _meter_rollouts(self, window: Window) -> None:
        for view, items in window.items.items():
            if view.response.sampled:
                for row, item, weight in zip(window.rows, items, window.weight, strict=True):
                    length, finished = (None, False) if item is None else (len(item.response), item.finished)
                    self.meter.add_rollout(view, row.example.l, weight, length, finished)

    def _check_finite(self, result: Objective, window: Window, places: list[int], step: int) -> None:
        if bool(torch.isfinite(result.loss)):
            return
        bad = [name for name, (value, mask, _) in result.by_token.items() if not torch.isfinite(value[mask > 0]).all()]
        bad += [name for name, (value, _, mask) in result.by_row.items() if not torch.isfinite(value[mask > 0]).all()]
        ids = ", ".join(window.rows[p].example.id for p in places)
        saved = checkpoints.complete(self.job.folder)
        kept = f"{saved[-1].name} is kept" if saved else "there is no checkpoint yet"
        raise DudiError(
            f"the loss is not finite at step {step + 1} (signal {', '.join(bad) or 'total'}; rows {ids}):"
            f" {kept}; lower training.lr or look at these rows"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = whole(super()._clip_grad_norm(model))
        self.meter.add("grad_norm", float(norm) / self.args.world_size)
        return norm

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
        job, meter = self.job, Meter(self.job.method, self.job.languages)
        signals = job.method.expected()
        self.student.eval()
        for start in range(0, len(job.eval_rows), job.training.batch):
            rows, weight = self._share(list(job.eval_rows[start : start + job.training.batch]))
            window = job.eval_builder.build(self.decoder.refreshed(), signals, rows, weight, 0)
            for places in self._micro_batches(window):
                ones = {s.name: 1.0 for s in signals}
                result = self._micro_batch(self.student, window, places, signals, ones, False)
                meter.add_objective(result, [window.rows[p].example.l for p in places])
        meter.collapse()
        self.student.train()
        entry = record(meter.sums, signals)
        loss = sum(e["weight"] * e["loss"] for e in entry.get("signal", {}).values() if "loss" in e)
        metrics = {f"{metric_key_prefix}_loss": loss}
        if self.is_world_process_zero():
            line = {"step": self.state.global_step, "eval": {"loss": loss, "signal": entry.get("signal", {})}}
            append_line(job.folder / "metrics.jsonl", line)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._staging or self.job.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """The Trainer's own files, and ours, written aside and then renamed into place."""
        folder, name = self.job.folder, f"{checkpoints.PREFIX}{self.state.global_step}"
        self._staging = folder / checkpoints.STAGING
        if self.is_world_process_zero():
            shutil.rmtree(self._staging, ignore_errors=True)
            (self._staging / name).mkdir(parents=True)
        self._barrier()
        try:
            with checkpoints.writing(folder / name):
                super()._save_checkpoint(model, trial)
                self.meter.collapse()
                if self.is_world_process_zero():
                    if self.ema:
                        save_file(self.ema.state(), self._staging / name / EMA_FILE)
                    state = json.dumps({"meter": self.meter.sums})
                    (self._staging / name / STATE_FILE).write_text(state, encoding="utf-8")
                self._barrier()
                if self.is_world_process_zero():
                    checkpoints.publish(self._staging / name, folder / name)
                    checkpoints.rotate(folder, self.job.training.keep_checkpoints)
                    shutil.rmtree(self._staging)
                self._barrier()
        finally:
            self._staging = None

    def restore(self, checkpoint: Path) -> None:
        """What the Trainer does not know of: the moving average and the sums of the interval under way."""
        if self.ema:
            self.ema.load(load_file(checkpoint / EMA_FILE))
        sums = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["meter"]
        if self.is_world_process_zero():
            self.meter.sums = {key: float(sums[key]) for key in self.meter.sums}

    def is_last(self, checkpoint: Path) -> bool:
        """Whether a checkpoint was saved after the last step of its training; then it becomes this trainer's state."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        return True

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights (safetensors), config, generation config and tokenizer; no training_args.bin, which would hold the
        hub token in clear."""
        assert output_dir is not None
        if self.args.should_save or is_sharded(self.student):  # a sharded one is gathered by all, written by the first
            self.student.save_pretrained(output_dir, self.args.should_save, state_dict)
        if self.args.should_save:
            self.job.builder.chat.save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As one process would write them, also where they are sharded."""
        if not is_sharded(self.student):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer_state(cast(Any, self.optimizer))
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.student):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        load_optimizer_state(cast(Any, self.optimizer), state)
        cast(Any, self.lr_scheduler).load_state_dict(schedule)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not is_sharded(self.student):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        files = sorted(Path(resume_from_checkpoint).glob("model*.safetensors"))
        load_weights(self.student, {name: t for file in files for name, t in load_file(file).items()})

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()


class _Hooks(TrainerCallback):
    """What happens between steps: the moving average, and the metrics' lines."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ema:
            self.trainer.ema.update(self.trainer.student)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, job = self.trainer, self.trainer.job
        if trainer.is_world_process_zero():
            seconds = {name: round(value, 4) for name, value in trainer.phases.take().items()}
            append_line(job.folder / "times.jsonl", {"step": state.global_step, **seconds})
        if state.global_step % job.training.log_every and state.global_step != state.max_steps:
            return
        trainer.meter.collapse()
        if trainer.is_world_process_zero():
            line = {
                "step": state.global_step,
                "epoch": state.global_step / trainer.steps_per_epoch,
                "lr": trainer.last_lr,
            }
            append_line(job.folder / "metrics.jsonl", line | record(trainer.meter.sums, job.method.signals))
        trainer.meter.clear()
