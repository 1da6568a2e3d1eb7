"""Whole runs with an adapter, as one of several ranks that torch's launcher starts: `-m kit.workers.adapters FOLDER
[fsdp2]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import kit
from dudi.models.sharding import bytes_here
from dudi.recipe.schema import Recipe
from dudi.run.launch import Launch
from dudi.run.pipeline import run
from dudi.training.trainer import DistillationTrainer
from kit import runs
from kit.stops import StopAt, Stopped
from kit.workers.ddp import rank

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dudi": ({"name": "dudi"}, {"r": 4, "use_dora": True}),
    "sdft": ({"name": "sdft", "ema_rate": 0.3}, {"r": 4}),
    "spin": ({"name": "spin", "variant": "online"}, {"r": 4, "use_rslora": True}),
}


def recipe(folder: Path, output: str, case: str = "dudi") -> Recipe:
    """Cold start and method in float64, sampled; eleven rows in batches of four, of which the last has three."""
    method, adapter = CASES[case]
    short = {"epochs": 1.0, "save_every": 2}
    models = {"precision": "float64"}
    return runs.recipe(folder, method, output=output, adapter=adapter, models=models, training=short)


def held(made: DistillationTrainer) -> dict[str, Any]:
    """What this process has of an adapted student."""
    named = dict(made.student.named_parameters())
    own = {name: p for name, p in named.items() if ".lora_" not in name}
    return {
        "world": made.args.world_size,
        "class": type(made.student).__name__,
        "sharded": all(isinstance(p, DTensor) for p in own.values()),
        "adapter": all(not isinstance(p, DTensor) and p.requires_grad for p in (named[n] for n in named.keys() - own)),
        "bytes": bytes_here(made.student) - sum(named[n].numel() * 8 for n in named.keys() - own),
        "of": sum(p.numel() * 8 for p in own.values()),
        "reference": made.reference is not None and made.reference.model is made.student,
        "average": made.ema is not None and made.teacher is not None and made.teacher.model is made.student,
    }


def shards(folder: Path) -> None:
    """Every case under FSDP2, and one that is stopped in its second stage and resumed."""
    os.environ |= Launch.FSDP2.environment()
    found: dict[str, Any] = {}

    def watch(made: DistillationTrainer, title: str) -> TrainerCallback:
        found[str(made.job.folder.relative_to(folder))] = held(made)
        return TrainerCallback()

    for case in CASES:
        kit.watched(recipe(folder, f"two-{case}", case), watch)
    (folder / f"held-{rank()}.json").write_text(json.dumps(found))
    cut = recipe(folder, "stopped", "dudi")
    try:
        kit.watched(cut, lambda made, title: StopAt(2) if title.endswith("dudi") else TrainerCallback())
        raise AssertionError("not stopped")
    except Stopped:
        dist.barrier()
    run(cut, resume=True, say=lambda *_: None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == ["fsdp2"]:
        shards(Path(sys.argv[1]))
    else:
        run(recipe(Path(sys.argv[1]), "two"), say=lambda *_: None)
    dist.barrier()
    dist.destroy_process_group()
