"""What happens between the steps of a training: the moving average, the intervals, what is said and who hears of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from dudi import processes
from dudi.training.metrics import record

if TYPE_CHECKING:
    from dudi.training.trainer import DistillationTrainer


class BetweenSteps(TrainerCallback):
    """What happens between steps: the moving average, and what the monitors hear."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The monitors hear what begins."""
        course = self.trainer.course()
        with processes.together():  # a tracker that cannot begin stops them all
            self.trainer.tell(lambda monitor: monitor.begin(course))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """And that it is done."""
        self.trainer.tell(lambda monitor: monitor.end(state.global_step))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A phase of the step begins."""
        self.trainer.phases.begin("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It ends; SDFT's teacher follows."""
        self.trainer.phases.end()
        if self.trainer.ema:
            self.trainer.ema.update(self.trainer.student)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Times, what is to be said, and the end of an interval or of the training."""
        trainer, step = self.trainer, state.global_step
        seconds = {name: round(value, 4) for name, value in trainer.phases.take().items()}
        trainer.tell(lambda monitor: monitor.step(step, seconds))
        self._say(trainer.watch.step(step, trainer.meter.sums))
        if step % trainer.job.training.log_every == 0 or step == state.max_steps:
            self._log(step)
        if step == state.max_steps and trainer.job.eval_rows:
            control.should_evaluate = True

    def _say(self, lines: Sequence[str]) -> None:
        if self.trainer.is_world_process_zero():
            for line in lines:
                self.trainer.say(line)

    def _log(self, step: int) -> None:
        """The interval's means, from all processes; a new interval begins."""
        trainer, every = self.trainer, self.trainer.job.training.log_every
        trainer.meter.total()
        self._say(trainer.watch.interval((step - 1) // every * every + 1, step, trainer.meter.sums))
        trainer.collapse.gather()
        self._say(trainer.collapse.judge(step))
        line = {
            "step": step,
            "epoch": step / trainer.steps_per_epoch,
            "lr": trainer.last_lr,
            **record(trainer.meter.sums, trainer.job.method.signals),
            **trainer.collapse.line(),
        }
        trainer.tell(lambda monitor: monitor.log(line))
        trainer.meter.clear()
