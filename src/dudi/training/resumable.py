"""What a training saves and resumes from: all that the next step depends on, and nothing twice.

The Trainer's own files (weights, optimizer, schedule, random state), SDFT's moving average, and the interval of the
metrics under way. A signal makes a training stop here, with a checkpoint of the step that was finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from dudi import processes
from dudi.files import flush
from dudi.models.adapter import is_adapted, load_adapter, merged, merged_tensors, save_adapter
from dudi.models.reader import EmaTeacher
from dudi.models.sharding import (
    is_sharded,
    load_optimizer_state,
    load_weights,
    plain_type,
    save_whole,
    whole_optimizer_state,
    whole_tensors,
)
from dudi.signals import views
from dudi.training import checkpoints, faults
from dudi.training.collapse import Collapse
from dudi.training.job import Job, arguments, steps_an_epoch, steps_of
from dudi.training.metrics import Meter
from dudi.training.monitors import LINES

EMA_FILE, STATE_FILE = "ema.safetensors", "dudi.json"


@contextmanager
def _reading(checkpoint: str | Path, files: str) -> Iterator[None]:
    """Files of a checkpoint are read: what cannot be used is one line, on all processes together."""
    with processes.together(), checkpoints.reading(Path(checkpoint), files), faults.memory("optimizer"):
        yield


def _check_like(found: Any, wanted: Any) -> None:
    """Raises `ValueError` where a checkpoint holds other types or lengths than a fresh state; new keys pass."""
    if isinstance(wanted, dict):
        same = isinstance(found, dict) and all(key in found for key in wanted)
        pairs = [(found[key], wanted[key]) for key in wanted] if same else []
    elif isinstance(wanted, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(wanted)
        pairs = list(zip(found, wanted, strict=True)) if same else []
    else:
        number, pairs = (int, float), []
        both = isinstance(found, number) and isinstance(wanted, number)
        same = both or isinstance(found, type(wanted)) or (wanted is None and isinstance(found, bool))
    if not same:
        raise ValueError("of another shape than it was saved in")
    for one, other in pairs:
        _check_like(one, other)


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    """An optimizer's groups without their weights."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _check_state_of(optimizer: Any, schedule: Any, steered: Any) -> None:
    """Raises (`ValueError`, or what the wrong type makes of it) where AdamW's state is not that of its weights, or the
    schedule, which takes any names from its file, has lost a method or the optimizer that it steers."""
    if vars(schedule).get("optimizer") is not steered or any(
        callable(getattr(type(schedule), name, None)) for name in vars(schedule)
    ):
        raise ValueError("names that are the schedule's own")
    for p, kept in optimizer.state.items():
        if not kept["exp_avg"].shape == kept["exp_avg_sq"].shape == p.shape or float(kept["step"]) < 1:
            raise ValueError("of other sizes than the weights")


class SavingTrainer(Trainer):
    """The Trainer with checkpoints that are whole or absent, and that resume bit for bit.

    What is ours in them: meter, collapse, ema, and whether an evaluation is due, which a signal cut short.
    """

    def __init__(self, job: Job, stop: faults.Stop, callbacks: Sequence[TrainerCallback]) -> None:
        self.job, self.stop = job, stop
        self.meter = Meter(job.method, job.languages)
        self.collapse = Collapse(views(job.method.signals), job.languages)
        self.ema = EmaTeacher(job.student, job.method.ema_rate) if job.method.ema_rate else None
        self.evaluation_due = False
        self._staging: Path | None = None
        self._saved = -1  # the step of the last checkpoint
        said = vars(job.student.config)
        own = {name: said[name] for name in ("use_cache",) if name in said}
        super().__init__(
            model=job.student,
            args=arguments(job),
            train_dataset=cast(Any, [{"place": place} for place in range(self.steps_per_epoch)]),
            eval_dataset=cast(Any, [{"place": 0}]) if job.eval_rows else None,
            callbacks=[*callbacks],
            processing_class=job.builder.chat.tokenizer,
        )
        said.pop("use_cache", None)  # the Trainer's own, false: the result would decode without its cache
        said.update(own)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows."""
        return steps_an_epoch(self.job.training, len(self.job.rows))

    @property
    def student(self) -> PreTrainedModel:
        """The bare student, without its wrapper."""
        return cast(PreTrainedModel, self.model)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: an adapter beside sharded weights is the same on all processes, and so are its gradients
        (`_average_adapter`). The Trainer's own way asks for a mean, which gloo has not."""

    def _average_adapter(self) -> None:
        """The gradient of an adapter beside sharded weights, as DDP would make it: nothing else reduces it."""
        if is_adapted(self.student) and is_sharded(self.student):
            processes.average([p.grad for p in self.student.parameters() if p.grad is not None])

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._staging or self.job.folder)

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: nn.Module, *rest: Any, **named: Any
    ) -> None:
        """What the Trainer does after a step. A signal stops here, on all processes, with a checkpoint of this step."""
        stopped: faults.Preempted | None = None
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *rest, **named)
        except faults.Preempted as error:
            stopped = error
        if stopped is None and not self.stop.due():
            return
        step = self.state.global_step
        if self._saved != step:
            self._save_checkpoint(model)
        raise self.stop.preempted(f"after step {step}: {checkpoints.PREFIX}{step} is saved") from stopped

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """The Trainer's own files, and ours, written aside and then renamed into place."""
        folder, step, first = self.job.folder, self.state.global_step, self.is_world_process_zero()
        final, aside = folder / f"{checkpoints.PREFIX}{step}", folder / checkpoints.STAGING
        staged = aside / final.name
        with processes.together(), checkpoints.writing(final):
            if first:
                shutil.rmtree(aside, ignore_errors=True)
                staged.mkdir(parents=True)
        self._staging = aside
        try:
            with processes.together(), checkpoints.writing(final):
                super()._save_checkpoint(model, trial)
                if is_sharded(self.student):  # see `save_only_model` in `dudi.training.job`
                    self._save_optimizer_and_scheduler(str(staged))
                    self._save_rng_state(str(staged))
        finally:
            self._staging = None
        self.collapse.gather()
        average = self.ema.state() if self.ema else None
        state = {
            "meter": self.meter.state(),
            "collapse": self.collapse.state(),
            "evaluation_due": self.evaluation_due,
        }
        with processes.together(), checkpoints.writing(final):
            if first:
                if average is not None:
                    save_file(average, staged / EMA_FILE)
                (staged / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
                for name in LINES:
                    if (folder / name).exists():
                        flush(folder / name)
                checkpoints.publish(staged, final)
                checkpoints.rotate(folder, self.job.training.keep_checkpoints, final)
                shutil.rmtree(aside)
        self._saved = step

    def restore(self, checkpoint: Path) -> None:
        """What the Trainer does not know of: the moving average, the interval under way, an evaluation cut short.

        Raises `DudiError` where the files hold something else.
        """
        with _reading(checkpoint, f"{STATE_FILE} or {EMA_FILE}"):
            if self.ema:
                self.ema.load(load_file(checkpoint / EMA_FILE))
            state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            self.meter.load(state["meter"], self.args.process_index, self.args.world_size)
            self.collapse.load(state["collapse"])
            self.args.eval_on_start = self.evaluation_due = bool(state["evaluation_due"])
        self._saved = checkpoints.step_of(checkpoint)

    def is_last(self, checkpoint: Path) -> bool:
        """Whether a checkpoint was saved after the last step of this training; then it becomes this trainer's state.

        Raises `DudiError` where the Trainer's own state is something else.
        """
        with _reading(checkpoint, TRAINER_STATE_NAME):
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            self._check_state(state, checkpoints.step_of(checkpoint))
        if state.global_step < steps_of(self.job.training, len(self.job.rows)):
            return False
        self.state = state
        return True

    def _check_state(self, state: TrainerState, step: int) -> None:
        """Raises `ValueError` where the Trainer could not count on from its own state."""
        kept = [c for c in (*self.callback_handler.callbacks, self.control) if isinstance(c, ExportableState)]
        numbers = {key: value for key, value in vars(TrainerState()).items() if isinstance(value, int | float)}
        _check_like(vars(state), {**numbers, "stateful_callbacks": {type(c).__name__: {} for c in kept}})
        histories = isinstance(state.log_history, list) and isinstance(state.best_model_checkpoint, str | None)
        if not histories or state.global_step != step or min(state.save_steps, state.eval_steps, state.max_steps) < 1:
            raise ValueError("of another training")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights (safetensors; of an adapted model those of the adapter), config, generation config and tokenizer; no
        training_args.bin, which would hold the hub token in clear."""
        assert output_dir is not None
        if is_adapted(self.student):
            if self.args.should_save:
                save_adapter(self.student, Path(output_dir))
        elif is_sharded(self.student):
            save_whole(self.student, whole_tensors(self.student), output_dir, self.args.should_save)
        elif self.args.should_save:
            self.student.save_pretrained(output_dir, state_dict=state_dict)
        if self.args.should_save:
            self.job.builder.chat.save(output_dir)

    def save_result(self, folder: Path) -> None:
        """What comes of the training, as anybody loads it: an adapter is merged. On all processes: a sharded student is
        gathered."""
        if not is_adapted(self.student):
            self.save_model(str(folder), _internal_call=True)
            return
        if is_sharded(self.student):
            save_whole(self.student, merged_tensors(self.student), str(folder), self.args.should_save)
        elif self.args.should_save:
            merged(self.student, self.student.dtype, "cpu").save_pretrained(folder)
        if self.args.should_save:
            self.job.builder.chat.save(str(folder))

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
        if checkpoint is None:
            return
        optimizer, schedule = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
        fresh = (_settings(optimizer), schedule.state_dict())
        steered = vars(schedule).get("optimizer")
        with _reading(checkpoint, f"{OPTIMIZER_NAME} or {SCHEDULER_NAME}"):
            if is_sharded(self.student):
                state, steps = (
                    torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
                    for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
                )
                load_optimizer_state(optimizer, state)
                schedule.load_state_dict(steps)
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
            _check_like((_settings(optimizer), schedule.state_dict()), fresh)
            _check_state_of(optimizer, schedule, steered)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with _reading(checkpoint, "rng_state*.pth"):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As transformers reads a model: some are saved under other names than their own (a text model within one that
        sees images, experts that are fused), which the Trainer would pass over, and go on from other weights."""
        with _reading(resume_from_checkpoint, "the weights"):
            if is_adapted(self.student):
                load_adapter(self.student, Path(resume_from_checkpoint))
                return
            kind, dtype = cast(Any, plain_type(self.student)), self.student.dtype
            found, how = kind.from_pretrained(resume_from_checkpoint, dtype=dtype, output_loading_info=True)
            if how["missing_keys"] or how["mismatched_keys"]:
                raise ValueError("tensors are missing")
            if is_sharded(self.student):
                load_weights(self.student, found.state_dict())
            else:
                self.student.load_state_dict(found.state_dict())
