"""A few rollouts as text: one of each sampled view, language and interval, the same ones in every run.

Which rows are kept is a function of (seed, interval, language) and the order of the data: no step has to know what the
steps before it sampled, and neither has a run that is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dudi import processes
from dudi.draws import draw
from dudi.signals import views
from dudi.text.chat import Chat
from dudi.training.job import Job
from dudi.training.window import Row, Window

TAIL = 300
"""Characters kept of a prompt: its end, where p_z asks for a language."""


class Samples:
    """Chooses rows of each interval of `training.log_every` steps, and tells what was sampled for them.

    batch: the epoch and the rows of an optimizer step, those of all processes.
    """

    def __init__(self, job: Job, batch: Callable[[int], tuple[int, list[Row]]]) -> None:
        self.job, self.batch = job, batch
        self._interval = -1
        self._chosen: dict[int, set[int]] = {}

    def of(self, step: int, window: Window) -> list[dict[str, Any]]:
        """The lines of optimizer step `step` (from 0), in the order of views and languages; all processes call it, and
        the first holds those of all."""
        chosen = self._rows(step)
        if not chosen:
            return []
        lines = [line for found in processes.gathered([*self._lines(step, chosen, window)]) for line in found]
        return sorted(lines, key=lambda line: (line["view"], line["language"]))

    def _rows(self, step: int) -> set[int]:
        """Indices of the rows chosen at a step."""
        interval = step // self.job.training.log_every
        if interval != self._interval:
            self._interval, self._chosen = interval, self._choose(interval)
        return self._chosen.get(step, set())

    def _choose(self, interval: int) -> dict[int, set[int]]:
        """By step, one row for each language among all that the interval samples for."""
        job, every = self.job, self.job.training.log_every
        best: dict[str, tuple[int, int, int]] = {}
        for step in range(interval * every, (interval + 1) * every):
            if not any(view.response.sampled for view in views(job.method.active(job.seed, step))):
                continue
            epoch, rows = self.batch(step)
            for row in rows:
                mark = (draw(job.seed, "sample", epoch, row.index), step, row.index)
                best[row.example.l] = min(best.get(row.example.l, mark), mark)
        chosen: dict[int, set[int]] = {}
        for _, step, index in best.values():
            chosen.setdefault(step, set()).add(index)
        return chosen

    def _lines(self, step: int, chosen: set[int], window: Window) -> Iterator[dict[str, Any]]:
        chat = self.job.builder.chat
        for view, items in window.items.items():
            if not view.response.sampled:
                continue
            for row, weight, item in zip(window.rows, window.weight, items, strict=True):
                if item is not None and weight and row.index in chosen:
                    yield {
                        "step": step + 1,
                        "view": view.name,
                        "language": row.example.l,
                        "l_z": item.l_z,
                        "row": row.index,
                        "prompt": chat.decode(item.student)[-TAIL:],
                        "text": text_of(chat, item.response),
                        "finished": item.finished,
                    }


def text_of(chat: Chat, ids: Sequence[int]) -> str:
    """A response as text, without special tokens."""
    return str(chat.tokenizer.decode([*ids], skip_special_tokens=True))
