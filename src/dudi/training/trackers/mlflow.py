"""MLflow: the server, database or folder that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dudi.training.monitors import Course
from dudi.training.trackers.tracker import PROJECT, Text, Tracker, as_text, flat

MOST = 1000
"""Metrics that one request may hold; of parameters a tenth."""
LONGEST = 500
"""Characters of a parameter's value that every store takes."""


class MLflow(Tracker):
    """By the library's client, which leaves no run open for other code of the process to fall into."""

    package = "mlflow"

    def open(self, title: str, course: Course, run: str | None) -> str:
        """An experiment, MLFLOW_EXPERIMENT_NAME or `dudi`, and a run in it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent unless asked
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.client, self.metric = MlflowClient(), Metric
        self.known: dict[str, int] = {}
        if run is not None:
            self.run = run
            self.client.update_run(run, status="RUNNING")
            return run
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.run = str(self.client.create_run(experiment, run_name=title).info.run_id)
        params = [Param(key, value[:LONGEST]) for key, value in flat(course.settings).items()]
        for start in range(0, len(params), MOST // 10):
            self.client.log_batch(self.run, params=params[start : start + MOST // 10])
        return self.run

    def write(self, step: int, values: Mapping[str, float], texts: Sequence[Text]) -> None:
        """Metrics, where the run has none of this step yet: a resumed training says them again. Rollouts as a text."""
        if step <= self._last(next(iter(values))):
            return
        now = int(time.time() * 1000)
        metrics: list[Any] = [self.metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), MOST):
            self.client.log_batch(self.run, metrics=metrics[start : start + MOST])
        if texts:
            parts = [f"## step {line['step']}, {line['view']}, {line['language']}\n\n{as_text(line)}" for line in texts]
            self.client.log_text(self.run, "\n".join(parts), f"rollouts/{step:08}.md")

    def _last(self, name: str) -> int:
        """The last step that the run had of a metric when this training was begun or resumed."""
        if name not in self.known:
            history = self.client.get_metric_history(self.run, name)
            self.known[name] = max((one.step for one in history), default=0)
        return self.known[name]

    def shut(self, finished: bool) -> None:
        """Finished, or stopped."""
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")
