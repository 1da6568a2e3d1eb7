"""What a training shows while it runs: a bar with phase, loss and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import TrainerCallback

from dudi.files import read_lines
from dudi.training.trainer import DistillationTrainer

PHASES = ("rollout", "teacher", "student", "backward")


class _Phase(ProgressColumn):
    """The phase that runs now."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(f"{self.trainer.phases.now:8s}", style="cyan")


class Watcher(TrainerCallback):
    """Shows one training: step, phase, loss, time left; at the end, where the time went."""

    def __init__(self, trainer: DistillationTrainer, title: str, console: Console) -> None:
        self.trainer, self.title, self.console = trainer, title, console
        self.metrics = trainer.job.folder / "metrics.jsonl"
        self.bar: Progress | None = None
        self.started = self.last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if not state.is_world_process_zero:
            return
        self.started = time.monotonic()
        self.first_step = state.global_step
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                _Phase(self.trainer),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, loss="")
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on; say the loss at logging steps."""
        if not state.is_world_process_zero:
            return
        every = self.trainer.job.training.log_every
        logged = state.global_step % every == 0 or state.global_step == state.max_steps
        text = self._losses() if logged else None
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)
            if text is not None:
                self.bar.update(self.task, loss=text)
        elif text is not None:
            done = state.global_step - self.first_step
            left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
            self.console.print(f"  step {state.global_step}/{state.max_steps}  {text}  {left / 60:.1f} min left")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar; say where the time went."""
        if not state.is_world_process_zero:
            return
        if self.bar:
            self.bar.stop()
        total: Counter[str] = Counter()
        for line in read_lines(self.trainer.job.folder / "times.jsonl"):
            total.update({k: v for k, v in line.items() if k in PHASES})
        shares = ", ".join(f"{name} {total[name]:.0f} s" for name in PHASES if total[name])
        self.console.print(f"  {self.title}: {state.global_step} steps ({shares})")

    def _losses(self) -> str:
        lines = [line for line in read_lines(self.metrics) if "signal" in line]
        if not lines:
            return ""
        parts = [f"{name} {entry['loss']:.4f}" for name, entry in lines[-1]["signal"].items()]
        return f"loss {lines[-1]['loss']:.4f}  {'  '.join(parts)}"
