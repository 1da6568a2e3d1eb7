"""A whole run with an adapter, as one of several ranks: `-m kit.workers.adapters FOLDER` under torch's launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from dudi.recipe.schema import Recipe
from dudi.run.pipeline import run
from kit import runs


def recipe(folder: Path, output: str) -> Recipe:
    """Cold start and DuDi in float64, sampled; eleven rows in batches of four, of which the last has three."""
    short = {"epochs": 1.0, "save_every": 2}
    models = {"precision": "float64"}
    return runs.recipe(
        folder, {"name": "dudi"}, output=output, adapter={"r": 4, "use_dora": True}, models=models, training=short
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(recipe(Path(sys.argv[1]), "two"), say=lambda *_: None)
    dist.barrier()
    dist.destroy_process_group()
