"""`dudi run --profile FILE`: a trace of five steps, with their phases, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from dudi.errors import DudiError

WARM, STEPS = 2, 5
"""Steps before the first that is traced (allocators and kernels settle), and those that are."""


class Profile(TrainerCallback):
    """Traces some steps of each training on the first process; the file holds those of the last training.

    Raises `DudiError` at once where the file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("a").close()
        except OSError as error:
            raise DudiError(f"--profile {file}: cannot be written ({error.strerror}); name another file") from None
        self.file = file
        self.first = 0
        self.profiler: profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step to begin at; of a short training, an earlier one."""
        self.first = min(state.global_step + WARM, max(state.max_steps - STEPS, state.global_step))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trace begins."""
        if state.global_step == self.first and state.is_world_process_zero:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self.profiler = profile(activities=activities)
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It ends, and is written."""
        if self.profiler is not None and state.global_step in (self.first + STEPS, state.max_steps):
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.file))
            self.profiler = None
