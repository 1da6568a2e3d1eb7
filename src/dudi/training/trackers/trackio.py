"""trackio: a database on this machine, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names another place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dudi.training.monitors import Course
from dudi.training.trackers.tracker import COLUMNS, PROJECT, Text, Tracker


class Trackio(Tracker):
    """Runs are known by name and id; a resumed one goes on."""

    package = "trackio"

    def open(self, title: str, course: Course, run: str | None) -> str:
        """The same name again, where this training began a run; a new run of it otherwise."""
        import trackio

        self.trackio: Any = trackio
        self.run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=run or title,
            group=title.partition("/")[0],
            config=dict(course.settings),
            resume="never" if run is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.run.config.pop("_Username", None)  # put there by the library, and sent with the first line
        return str(self.run.name)

    def write(self, step: int, values: Mapping[str, float], texts: Sequence[Text]) -> None:
        """Metrics, and the rollouts as a table."""
        told: dict[str, Any] = dict(values)
        if texts:
            told["rollouts"] = self.trackio.Table(
                columns=[*COLUMNS], data=[[line[c] for c in COLUMNS] for line in texts]
            )
        self.run.log(told, step=step)

    def shut(self, finished: bool) -> None:
        """All that is in the queue is written."""
        self.run.finish()
