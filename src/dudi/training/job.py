"""A training: everything one stage trains with, and the Trainer's arguments that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from dudi.methods import Method
from dudi.models.sharding import is_sharded
from dudi.models.swapped import As
from dudi.recipe.schema import Training
from dudi.training.window import Row, WindowBuilder


@dataclass(frozen=True)
class Job:
    """What is trained, on what. teacher and reference are frozen; `method.teacher` self is made from the student. The
    reference may be the adapted student itself, while it is asked within `reference_as`."""

    method: Method
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    reference: PreTrainedModel | None
    builder: WindowBuilder
    eval_builder: WindowBuilder
    rows: Sequence[Row]
    eval_rows: Sequence[Row]
    languages: Sequence[str]
    training: Training
    seed: int
    autocast: bool
    folder: Path
    reference_as: As = nullcontext

    def settings(self) -> dict[str, Any]:
        """What it trains with, as plain values."""
        signals = {s.name: {"weight": s.weight, "loss": s.description} for s in self.method.signals}
        return {
            "method": {"name": self.method.name, "variant": self.method.variant, "signals": signals},
            "seed": self.seed,
            "languages": list(self.languages),
            "rows": len(self.rows),
            "limits": self.builder.limits.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
        }


def steps_an_epoch(training: Training, rows: int) -> int:
    """Optimizer steps of one pass over so many rows; the last may be ragged."""
    return math.ceil(rows / training.batch)


def steps_of(training: Training, rows: int) -> int:
    """Optimizer steps of a whole training."""
    return training.max_steps or math.ceil(training.epochs * steps_an_epoch(training, rows))


def times(every: int, last: int, after: int = 0) -> int:
    """How often it happens after a step what happens every so many steps (0: never) and at the last one."""
    within = last // every - after // every if every else 0
    return within + (not every or last % every != 0)


def arguments(job: Job) -> TrainingArguments:
    """The Trainer's arguments. Its own accumulation stays at 1 (the window is a step), its log and report are off."""
    t = job.training
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(job.folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        num_train_epochs=t.epochs,
        max_steps=t.max_steps or -1,
        learning_rate=t.lr,
        lr_scheduler_type="constant_with_warmup" if t.schedule == "constant" else t.schedule,  # else without it
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optim="adamw_torch",
        bf16=False,  # autocast is ours, around student, teacher and reference alike
        use_cpu=not cuda,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="steps" if t.eval_every and job.eval_rows else "no",
        eval_steps=t.eval_every or None,
        save_strategy="steps",
        save_steps=t.save_every,
        save_total_limit=None,  # rotation is ours, by step
        # the optimizer state of sharded weights is saved by `dudi.training.resumable`
        save_only_model=is_sharded(job.student),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        seed=job.seed,
    )
