"""Train small cases, in one process or as one of several ranks, and report what this rank did.

`python -m torch.distributed.run --nproc-per-node 2 -m kit.workers.ddp FOLDER [more]`, or `train(...)` in a test.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import kit
from dudi.recipe.schema import Limits, Recipe
from dudi.run import pipeline as train_module
from dudi.run.pipeline import resume_stage, run
from dudi.training.trainer import DistillationTrainer
from dudi.training.window import Window
from kit import runs
from kit.stops import StopAt, Stopped


@dataclass(frozen=True)
class Case:
    """Nine rows in batches of four, two epochs: the third step of each has one row, so that the second rank has none.

    no_z: languages whose teacher prompts are all too long, so that their rows have no on-policy term. Without `forced`,
    responses are sampled, at most RAGGED long.
    """

    method: dict[str, Any]
    no_z: tuple[str, ...] = ()
    evals: int = 0
    forced: bool = True
    tied: bool = True
    training: dict[str, Any] = field(default_factory=dict)


RAGGED = {"default": 8, "id": 2, "ms": 5, "ta": 3, "th": 4, "tl": 4}
"""Longest response by language: of two processes one goes on decoding when the other is done."""
CASES = {
    "sft": Case({"name": "sft"}, evals=3, training={"eval_every": 3}),
    "gkd": Case({"name": "gkd"}),
    "dudi": Case({"name": "dudi"}, no_z=("id", "ms", "ta", "tl"), evals=3, training={"eval_every": 3}),
    "sdft": Case({"name": "sdft", "ema_rate": 0.3}, no_z=("id", "ms", "ta", "tl")),
    "cached": Case({"name": "dudi"}, evals=3, training={"eval_every": 3, "cache": "memory"}),
}
MORE = {
    "dft": Case({"name": "dft"}),
    "spin": Case({"name": "spin", "variant": "online"}),
    "seqkd": Case({"name": "seqkd", "variant": "jsd"}),
    "spin-stored": Case({"name": "spin"}),
    "seqkd-nll": Case({"name": "seqkd"}),
    "cached-on-disk": Case(
        {"name": "gkd", "variant": "sum"}, evals=3, training={"eval_every": 3, "cache": "disk", "micro_batch": 2}
    ),
    "tokens": Case({"name": "dudi"}, training={"micro_batch": 2, "micro_batch_tokens": 725}),
    "shares": Case({"name": "dudi"}, no_z=("id", "ms"), evals=3, training={"eval_every": 3, "equalize": "tokens"}),
    "sampled-dudi": Case({"name": "dudi"}, forced=False),
    "sampled-gkd": Case({"name": "gkd"}, forced=False),
    "sampled-sdft": Case({"name": "sdft", "ema_rate": 0.3}, forced=False),
    "sampled-spin": Case({"name": "spin", "variant": "online"}, forced=False),
}
"""For the slow tests: the other methods, micro-batches by tokens, of which ranks have unlike numbers, and sampling."""
RESUME = Case({"name": "sdft", "ema_rate": 0.3}, training={"save_every": 2, "log_every": 3}, forced=False)
STEPS = 6
RECIPE = {"models": {"precision": "float64"}, "cold_start": {"method": {"name": "none"}}}


def away(model: PreTrainedModel) -> None:
    """Move a student away from what it was, and so from the moving average."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype))


def build(
    folder: Path, case: Case, student: PreTrainedModel | None = None, teacher: PreTrainedModel | None = None
) -> DistillationTrainer:
    """The trainer of a case, float64, its student away from the moving average; not so a student that is given."""
    rows = kit.short_rows(9 + case.evals)
    longest = {"default": 8} if case.forced else RAGGED
    teacher_prompt = {"default": 2000} | dict.fromkeys(case.no_z, 10)
    if teacher is None and not case.tied:
        teacher = kit.model(2, hidden=64, rows=kit.VOCAB + 20, tied=False).requires_grad_(False).eval()
    made = kit.trainer(
        folder,
        case.method,
        examples=rows[:9],
        evals=rows[9:],
        forced=case.forced,
        student=student if student is not None else kit.model(1, rows=kit.VOCAB + 6, tied=case.tied),
        teacher=teacher,
        limits=Limits(prompt=400, verbalizer=300, total=600, rollout=longest, teacher_prompt=teacher_prompt),
        **{"batch": 4, "micro_batch": 1, "epochs": 2.0, "overlap_every": 2, "save_every": 100} | case.training,
    )
    if student is None:
        away(made.student)
    return made


class Watch:
    """What one rank saw of its steps: what its loss was really computed of."""

    def __init__(self, made: DistillationTrainer) -> None:
        self.steps: list[dict[str, Any]] = []
        inner, micro = made.training_step, made._micro_batch
        training = False

        def training_step(model: torch.nn.Module, inputs: Any, items: Any = None) -> torch.Tensor:
            nonlocal training
            step = {"model": type(model).__name__, "world": made.args.world_size, "terms": [], "places": []}
            self.steps.append(step | {"epoch": made.window_rows(made.state.global_step)[0]})
            training = True
            loss = inner(model, inputs, items)
            training = False
            return loss

        def micro_batch(model: Any, window: Window, places: list[int], signals: Any, *rest: Any) -> Any:
            found = micro(model, window, places, signals, *rest)
            if training:
                step = self.steps[-1]
                step |= {"rows": [row.index for row in window.rows], "weight": window.weight}
                step |= {"signals": [s.name for s in signals], "tokens": tokens(window)}
                step["terms"].append(sorted(found.outcomes))
                step["places"].append(places)
            return found

        made.training_step = training_step  # type: ignore[method-assign]
        made._micro_batch = micro_batch  # type: ignore[method-assign]


def tokens(window: Window) -> dict[str, list[int]]:
    """What the rows that count have sampled, by row and view."""
    sampled = {view: items for view, items in window.items.items() if view.response.sampled}
    return {
        f"{row.index} {view.name}": list(item.response)
        for view, items in sampled.items()
        for row, item, weight in zip(window.rows, items, window.weight, strict=True)
        if item is not None and weight
    }


def train(folder: Path, case: Case) -> list[dict[str, Any]]:
    """Train a case to its end; metrics and this rank's weights go into `folder`."""
    made = build(folder, case)
    watch = Watch(made)
    made.train()
    save_file(
        {n: p.detach().clone() for n, p in made.model.named_parameters()}, folder / f"weights-{rank()}.safetensors"
    )
    if dist.is_initialized():
        assert isinstance(made.model_wrapped, DistributedDataParallel) and made.model_wrapped.module is made.model
        flat = torch.cat([p.detach().flatten() for p in made.model.parameters()])
        everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, flat)
        assert len(everyone) == 2 and torch.equal(everyone[0], everyone[1]), "ranks have different weights"
    return watch.steps


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def stop_and_resume(folder: Path) -> None:
    """Stopped after step 5, resumed from the checkpoint of step 4, within an interval of the metrics, on all ranks."""
    straight = build(folder / "straight", RESUME)
    resume_stage(straight)
    stopped = build(folder / "stopped", RESUME)
    stopped.add_callback(StopAt(5))
    try:
        resume_stage(stopped)
        raise AssertionError("not stopped")
    except Stopped:
        dist.barrier()
    resumed = build(folder / "stopped", RESUME)
    resume_stage(resumed)
    assert resumed.state.global_step == straight.state.global_step == STEPS
    assert runs.identical(dict(straight.model.named_parameters()), dict(resumed.model.named_parameters()))
    assert straight.ema is not None and resumed.ema is not None
    assert runs.identical(straight.ema.state(), resumed.ema.state())


def recipes(folder: Path, output: str, teacher: str = "replicate") -> list[Recipe]:
    """Whole pipelines with sampled responses, in float64: SeqKD's and SPIN's generations, DuDi with a cold start.

    teacher: how DuDi's is spread (SeqKD's writes, which a sharded one cannot).
    """
    methods: list[dict[str, Any]] = [{"name": "seqkd"}, {"name": "spin", "iterations": 2}]
    short = {"epochs": 1.0, "save_every": 2}
    found = [runs.recipe(folder, m, output=f"{output}-{m['name']}", training=short, **RECIPE) for m in methods]
    cold = {"cold_start": {"training": {"epochs": 1.0}}, "models": RECIPE["models"] | {"teacher_sharding": teacher}}
    return [*found, runs.recipe(folder, {"name": "dudi"}, output=f"{output}-dudi", training=short, **cold)]


def pipelines(folder: Path) -> None:
    """The second rank comes late: it must not find the folder occupied by the first, nor half of the data."""
    before = train_module.check_folder

    def late(*args: Any) -> None:
        time.sleep(2.0 * rank())
        before(*args)

    train_module.check_folder = late
    for recipe in recipes(folder, "two"):
        run(recipe, say=lambda *_: None)
        train_module.check_folder = before


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    more = "more" in arguments[1:]
    for name, case in (MORE if more else CASES).items():
        steps = train(folder / name, case)
        report = folder / f"{name}-{rank()}.json"
        report.write_text(json.dumps({"world": dist.get_world_size(), "backend": dist.get_backend(), "steps": steps}))
    if not more:
        stop_and_resume(folder / "resume")
        pipelines(folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
