"""TensorBoard: event files in the stage's folder, `tensorboard/`. Nothing is sent anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dudi.training.monitors import Course
from dudi.training.trackers.tracker import Text, Tracker, as_text

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """A resumed training writes another file, which says that the steps after its checkpoint are void."""

    package = "tensorboard"

    def open(self, title: str, course: Course, run: str | None) -> str:
        """The folder stands for the run."""
        from torch.utils.tensorboard import SummaryWriter

        again = None if run is None else course.step + 1
        self.writer: Any = SummaryWriter(str(course.folder / FOLDER), purge_step=again)
        if run is None:
            settings = json.dumps(course.settings, indent=1, ensure_ascii=False)
            self.writer.add_text("settings", "    " + settings.replace("\n", "\n    "), 0)
        self.writer.flush()
        return FOLDER

    def write(self, step: int, values: Mapping[str, float], texts: Sequence[Text]) -> None:
        """Scalars; a text for each view and language."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for line in texts:
            self.writer.add_text(f"rollouts/{line['view']}/{line['language']}", as_text(line), line["step"])
        self.writer.flush()

    def shut(self, finished: bool) -> None:
        """The file is closed."""
        self.writer.close()
