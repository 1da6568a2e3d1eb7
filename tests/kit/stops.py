"""A training that is stopped between two steps."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class Stopped(BaseException):
    """What a test stops a training with."""


class StopAt(TrainerCallback):
    """Stop when `steps` steps are done, before the next."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise Stopped
