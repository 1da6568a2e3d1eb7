"""Which rows an optimizer step reads: a function of the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dudi.draws import draw
from dudi.recipe.schema import Training
from dudi.training.job import steps_an_epoch
from dudi.training.shares import Shares
from dudi.training.window import Row


class Order:
    """The rows of every step of a training, over all processes; each epoch in an order of its own."""

    def __init__(self, rows: Sequence[Row], training: Training, languages: Sequence[str], seed: int) -> None:
        self.rows, self.batch, self.seed = rows, training.batch, seed
        self.steps_an_epoch = steps_an_epoch(training, len(rows))
        self.shares = Shares.of(training.equalize, languages)
        self._dealt: tuple[int, list[int]] = (-1, [])  # of the epoch under way

    def __call__(self, step: int) -> tuple[int, list[Row]]:
        """(epoch, rows) of a step, from 0; the last of an epoch may be ragged."""
        epoch, place = divmod(step, self.steps_an_epoch)
        if self._dealt[0] != epoch:
            generator = torch.Generator().manual_seed(draw(self.seed, epoch, "order") >> 1)
            drawn = torch.randperm(len(self.rows), generator=generator).tolist()
            self._dealt = epoch, self.shares.dealt(drawn, self.rows)
        batch = self._dealt[1][place * self.batch : (place + 1) * self.batch]
        return epoch, [self.rows[i] for i in batch]
