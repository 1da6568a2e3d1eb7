"""Weights & Biases. Sent are settings, metrics and rollouts; no code, console, host name, packages or machine load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dudi.training.monitors import Course
from dudi.training.trackers.tracker import COLUMNS, PROJECT, Text, Tracker

SILENT = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "",
    "program": "",
    "save_code": False,
    "silent": True,
    "username": "",
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""Settings of the library, all of which say: nothing but what is logged here."""


class WandB(Tracker):
    """WANDB_PROJECT, WANDB_MODE and the others of the library hold. Stages of a run are a group."""

    package = "wandb"

    def open(self, title: str, course: Course, run: str | None) -> str:
        """The same id again goes on with the same run; steps that it has are not told twice."""
        import wandb

        self.wandb: Any = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=title,
            group=title.partition("/")[0],
            id=run,
            resume=None if run is None else "allow",
            dir=os.environ.get("WANDB_DIR", str(course.folder)),
            config=dict(course.settings),
            settings=wandb.Settings(**SILENT),
        )
        return str(self.run.id)

    def write(self, step: int, values: Mapping[str, float], texts: Sequence[Text]) -> None:
        """Metrics, and the rollouts as a table."""
        told: dict[str, Any] = dict(values)
        if texts:
            told["rollouts"] = self.wandb.Table(columns=[*COLUMNS], data=[[line[c] for c in COLUMNS] for line in texts])
        self.run.log(told, step=step)

    def shut(self, finished: bool) -> None:
        """Finished, or failed."""
        self.run.finish(exit_code=0 if finished else 1)
