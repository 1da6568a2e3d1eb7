"""A rehearsal: every stage of a run on a few rows, before the first one is paid for.

It is the run itself in miniature: the same code loads each stage's models as that stage will, probes them (cached
greedy decoding equals uncached, hidden states and head give the model's logits), writes answers, takes a step of each
signal, saves the result and hands it to the next stage. What fails here would have failed after hours.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from dudi import processes
from dudi.errors import DudiError
from dudi.methods import Method
from dudi.recipe.schema import Recipe, Training
from dudi.recipe.stages import Stage, Train, plan
from dudi.run.caching import caches
from dudi.run.machine import quiet_library
from dudi.run.prepare import Prepared, prepare
from dudi.run.served import check_server
from dudi.training import faults
from dudi.training.phases import Phases

ROWS = 2
TOKENS = 8
"""Of each sampled response."""
MOST_STEPS = 20
"""Of a method whose coin has to fall both ways."""
FOLDER = ".rehearsal-"


def steps_for(method: Method, seed: int) -> int:
    """The steps after which each signal was read; 1 where the coin never falls one way."""
    read: set[str] = set()
    for step in range(MOST_STEPS):
        read |= {signal.name for signal in method.active(seed, step)}
        if read == {signal.name for signal in method.signals}:
            return step + 1
    return 1


def miniature(prepared: Prepared, processes_: int = 1) -> Prepared:
    """The same recipe on its shortest rows, with short rollouts and as few steps as read every signal."""
    recipe = prepared.recipe
    rows = sorted(prepared.train.rows, key=lambda row: len(row.x) + len(row.y))[: max(ROWS, processes_)]
    small: dict[str, Any] = {
        "batch": len(rows),
        "epochs": 1.0,
        "save_every": 10**9,
        "eval_every": 0,
        "log_every": 1,
        "overlap_every": 1,
        "warmup_steps": 0,
        "report_to": (),
    }

    def short(training: Training, method: Method | None) -> Training:
        steps = 1 if method is None else steps_for(method, recipe.seed)
        return training.model_copy(update={**small, "max_steps": steps})

    cold = recipe.cold_start
    changes: dict[str, Any] = {
        "limits": recipe.limits.model_copy(update={"rollout": TOKENS}),
        "training": short(recipe.training, recipe.to_method()),
        "cold_start": cold.model_copy(update={"training": short(cold.training, recipe.cold_start_method())}),
        "method": {**recipe.method, **({"iterations": 1} if recipe.to_method().iterations > 1 else {})},
    }
    return replace(
        prepared,
        recipe=recipe.model_copy(update=changes),
        train=replace(prepared.train, rows=tuple(rows)),
        eval=replace(prepared.eval, rows=()),
    )


def rehearse(prepared: Prepared, state: PartialState, beside: Path) -> None:
    """Every stage in miniature, in a folder of its own within `beside`, on the disk that the run will use.

    Raises `DudiError` with the stage and its models for whatever goes wrong, and where the disk has too little room.
    """
    from dudi.run.pipeline import Pipeline  # which rehearses: a circle, were it above

    small = miniature(prepared, state.num_processes)
    stages = plan(small.recipe)
    with folder_beside(beside, FOLDER) as folder:
        pipeline = Pipeline(small, stages, folder, state, (), (), silent, faults.Stop(), Phases(silent), trial=True)
        for stage in stages:
            with processes.together(), naming("rehearsal", stage, small.recipe):
                pipeline.run(stage)
            state.wait_for_everyone()
            gc.collect()
        if state.is_main_process and (sizes := [_size(model) for model in folder.glob("*/model")]):
            adapters = [_size(adapter) for adapter in folder.glob("*/adapter")]
            check_room(prepared.recipe, plan(prepared.recipe), max(sizes), beside, max(adapters, default=None))


def rehearse_first(prepared: Prepared, state: PartialState, folder: Path, phases: Phases) -> None:
    """The rehearsal of a run that has not begun; one that is resumed in its stages has had it."""
    if not any(folder.glob("[0-9]*-*")):
        with phases.outside("rehearsal", "rehearsing every stage on a few rows (--no-rehearsal leaves it out)"):
            rehearse(prepared, state, folder)


def rehearse_recipe(recipe: Recipe) -> list[str]:
    """The rehearsal alone: what the run would train on is read and tokenized, and nothing is kept. Lines to say."""
    quiet_library()
    state = PartialState(cpu=not torch.cuda.is_available())
    output = Path(recipe.output.format(name=recipe.name)).absolute()
    beside = next(folder for folder in output.parents if folder.is_dir())
    prepared = prepare(recipe)
    caches(prepared, output)
    said = check_server(prepared, plan(recipe), output)
    rehearse(prepared, state, beside)
    return said


def check_room(recipe: Recipe, stages: Sequence[Stage], weights: int, folder: Path, adapter: int | None = None) -> None:
    """Raises `DudiError` where the results, and the checkpoints kept of one training, would not fit on the disk.

    weights: bytes of a result; adapter: of the adapter, where one is trained. A checkpoint holds the weights that are
    trained and AdamW's two moments; one more is being written.
    """
    trainings = [stage for stage in stages if isinstance(stage, Train)]
    checkpoints = max(stage.training.keep_checkpoints for stage in trainings) + 1
    trained = weights if adapter is None else adapter
    needed, free = len(trainings) * weights + 3 * checkpoints * trained, shutil.disk_usage(folder).free
    if free < needed:
        raise DudiError(
            f"{folder}: {free / 2**30:.1f} GiB are free, and the run needs about {needed / 2**30:.1f}"
            f" ({len(trainings)} results, {checkpoints} checkpoints): free disk space, choose another folder with"
            " --output, or lower training.keep_checkpoints"
        )


@contextmanager
def folder_beside(beside: Path, prefix: str) -> Iterator[Path]:
    """A folder that all processes share and that is gone afterwards."""

    def make() -> str:
        try:
            beside.mkdir(parents=True, exist_ok=True)
            return tempfile.mkdtemp(prefix=prefix, dir=beside)
        except OSError as error:
            raise DudiError(
                f"{beside}: no folder can be made there ({error.strerror}); choose another `output`"
            ) from None

    made = processes.from_first(make)
    try:
        yield Path(made)
    finally:
        if processes.is_first():
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def naming(what: str, stage: Stage, recipe: Recipe) -> Iterator[None]:
    """What goes wrong in a stage of a rehearsal (or `what` it is), as one line with the stage and its models."""
    try:
        yield
    except DudiError as error:
        named = DudiError(f"{what} of stage {stage.name!r}: {error}")
        named.status = error.status
        raise named from error
    except Exception as error:  # a model's own code may fail in any way; a run would end in it, hours later
        models = ", ".join(name for name in (recipe.models.student, recipe.models.teacher) if name)
        line = " ".join(str(error).split())[:300]
        raise DudiError(f"{what} of stage {stage.name!r} (models {models}): {type(error).__name__}: {line}") from error


def _size(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def silent(text: str) -> None:
    """Nobody needs to hear what a rehearsal says."""
