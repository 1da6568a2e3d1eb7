"""What a run writes, against the disk that it writes to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from dudi.files import nearest
from dudi.models.load import arithmetic
from dudi.recipe.stages import Train
from dudi.run.caching import kept
from dudi.run.plan.memory import Machine
from dudi.run.prepare import Prepared


@dataclass(frozen=True)
class Disk:
    """Bytes by what is written, at the worst moment of the run; free: of the disk that `folder` is on."""

    items: dict[str, float]
    free: int
    folder: str

    @property
    def total(self) -> float:
        """Bytes at that moment."""
        return sum(self.items.values())


def disk(prepared: Prepared, machine: Machine, folder: Path) -> Disk:
    """The results of all trainings, and what the largest of them keeps while it runs: a checkpoint is the weights that
    are trained, the optimizer's two moments, and a moving average; one more than are kept is being written."""
    weights = arithmetic(prepared.recipe.models.precision)[0]
    trainings = [stage for stage in machine.stages if isinstance(stage, Train)]
    results, most, cached = 0.0, (0.0, ""), 0
    for stage in trainings:
        shape = machine.shape(stage.start)
        size, trained = shape.parameters, shape.trained
        last = stage is trainings[-1] and prepared.recipe.models.save_dtype == "bfloat16"
        results += size * (torch.bfloat16 if last else weights).itemsize
        number, copies = stage.training.keep_checkpoints + 1, 4 if stage.method.ema_rate else 3
        most = max(most, (number * copies * trained * weights.itemsize, f"{number} checkpoints"))
        if stage.training.cache == "disk":
            cached = max(cached, kept(stage, prepared).bytes)
    items = {most[1]: most[0], f"{len(trainings)} results": results}
    if cached:
        items["cache"] = cached
    there = nearest(folder)
    return Disk(items, shutil.disk_usage(there).free, str(there))
