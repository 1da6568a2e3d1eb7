"""Train small cases with the student, and the teacher, sharded over two processes (FSDP2), and report what each holds.

`python -m torch.distributed.run --nproc-per-node 2 -m kit.workers.fsdp FOLDER`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback

import kit
from dudi.methods import build_method
from dudi.models.load import load_model
from dudi.models.sharding import bytes_here, load_weights, whole
from dudi.recipe.schema import Models
from dudi.run.launch import Launch
from dudi.run.pipeline import resume_stage
from dudi.training.trainer import DistillationTrainer
from kit.stops import StopAt, Stopped
from kit.workers import ddp

CASES = (
    ddp.CASES
    | ddp.MORE
    | {
        "untied": replace(ddp.CASES["dudi"], tied=False),
        "checkpointing": replace(ddp.CASES["sdft"], training={"gradient_checkpointing": True}),
    }
)


def sharded(folder: Path, made: PreTrainedModel, frozen: bool) -> PreTrainedModel:
    """A model of this process's memory, saved by the first and loaded in shards by all."""
    if ddp.rank() == 0:
        made.save_pretrained(folder)
    dist.barrier()
    models = Models(student="-", precision="float64")
    return load_model(str(folder), "test", models, made.dtype, None, frozen, dist.get_world_size())


def build(folder: Path, case: ddp.Case) -> DistillationTrainer:
    """As `ddp.build`, of the same weights, sharded."""
    base = kit.model(1, rows=kit.VOCAB + 6, tied=case.tied)
    teacher = kit.model(2, hidden=64, rows=kit.VOCAB + 20, tied=case.tied)
    student = sharded(folder / "student", base, frozen=False)
    judged = build_method(case.method).needs_larger_teacher
    made = ddp.build(folder, case, student, sharded(folder / "teacher", teacher, frozen=True) if judged else None)
    ddp.away(base)
    load_weights(student, dict(base.named_parameters()))
    return made


def held(made: DistillationTrainer) -> dict[str, Any]:
    """What this process has of a trainer's student, and of its teacher and reference if there are any."""
    models = {"student": made.student, "teacher": made.job.teacher, "reference": made.job.reference}
    return {name: part(model) for name, model in models.items() if model is not None}


def part(model: PreTrainedModel) -> dict[str, Any]:
    """How much of a model this process has, and how."""
    parameters = list(model.parameters())
    return {
        "class": type(model).__name__,
        "sharded": isinstance(model, FSDPModule) and all(isinstance(p, DTensor) for p in parameters),
        "bytes": bytes_here(model),
        "of": sum(p.numel() * p.element_size() for p in parameters),
    }


def train(folder: Path, case: ddp.Case) -> dict[str, Any]:
    """Train a case to its end; this process's report."""
    made = build(folder, case)
    watch = ddp.Watch(made)
    made.train()
    weights = {n: whole(p).detach().clone() for n, p in made.student.named_parameters()}
    save_file(weights, folder / f"weights-{ddp.rank()}.safetensors")
    assert made.model_wrapped is made.student, "sharded at loading, not wrapped"
    return {
        "world": made.args.world_size,
        "backend": dist.get_backend(),
        "steps": watch.steps,
        "held": held(made),
        "decoder": type(made.decoder.refreshed()).__name__,
    }


def stop_and_resume(folder: Path) -> None:
    """Stopped after step 5, resumed from the checkpoint of step 4: sharded, and in one process of the tests' own."""
    case = replace(ddp.RESUME, training=ddp.RESUME.training | {"keep_checkpoints": 9})
    straight = build(folder / "straight", case)
    resume_stage(straight)
    stopped = build(folder / "stopped", case)
    stopped.add_callback(StopAt(5))
    try:
        resume_stage(stopped)
        raise AssertionError("not stopped")
    except Stopped:
        dist.barrier()
    resumed = build(folder / "stopped", case)
    resume_stage(resumed)
    assert resumed.state.global_step == straight.state.global_step == ddp.STEPS
    both = zip(straight.student.parameters(), resumed.student.parameters(), strict=True)
    assert all(torch.equal(whole(a), whole(b)) for a, b in both)
    assert straight.ema is not None and resumed.ema is not None
    for a, b in zip(straight.ema.model.parameters(), resumed.ema.model.parameters(), strict=True):
        assert torch.equal(a, b)


def pipelines(folder: Path) -> None:
    """Whole runs, which find out by themselves, from the launcher's environment, what is to be sharded."""
    os.environ |= Launch.FSDP2.environment()
    found: dict[str, Any] = {}

    def watch(made: DistillationTrainer, title: str) -> TrainerCallback:
        found[str(made.job.folder.relative_to(folder))] = held(made)
        return TrainerCallback()

    for recipe in ddp.recipes(folder, "two", teacher="shard"):
        kit.watched(recipe, watch)
    (folder / f"pipelines-{ddp.rank()}.json").write_text(json.dumps(found))


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    PartialState(cpu=True)
    for name, case in CASES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        report = train(folder / name, case)
        (folder / f"{name}-{ddp.rank()}.json").write_text(json.dumps(report))
    stop_and_resume(folder / "resume")
    pipelines(folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
