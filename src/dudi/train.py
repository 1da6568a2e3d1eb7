"""A recipe, run: recipe -> rows -> stages -> one folder that holds everything needed to repeat it.

RUN/recipe.toml, environment.json     what was run, with what
RUN/data/                             the very rows, their report and manifest
RUN/lengths.json                      per language: rows left out, answers cut, tokens per character
RUN/<n>-<stage>/                      metrics.jsonl, times.jsonl, checkpoint-*/, model/ (or responses/)
RUN/summary.json, summary.md          written last
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import logging as transformers_logging

from dudi import checkpoints
from dudi.batch import Rows, WindowBuilder, encode_rows, needs_teacher
from dudi.chat import Chat, check_same_tokenizer, read_template
from dudi.config import Recipe, dump_recipe, load_recipe
from dudi.data.load import Rows as DataRows
from dudi.data.load import load_rows, read_rows, write_rows
from dudi.errors import DudiError
from dudi.generate import generate, read_responses
from dudi.methods import Teacher, views
from dudi.metrics import cut_back
from dudi.models import arithmetic, check_head, check_model, load_model, load_tokenizer, write_generation_config
from dudi.rollouts import Rollout
from dudi.rollouts.local import LocalSampler
from dudi.stages import STUDENT, TEACHER, Generate, Stage, Train, folder_name, plan
from dudi.summary import write_summary
from dudi.trainer import DistillationTrainer, Job
from dudi.verbalizer import Verbalizer

Watch = Callable[[DistillationTrainer, str], TrainerCallback]
"""Makes the callback that shows a training's progress, from its trainer and its title."""


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything that can be checked without loading a model."""

    recipe: Recipe
    chat: Chat
    data: DataRows
    train: Rows
    eval: Rows
    languages: tuple[str, ...]
    verbalizer: Verbalizer


def prepare(recipe: Recipe, data: DataRows | None = None) -> Prepared:
    """Read rows, tokenizers and templates, and check that they fit together; nothing is written.

    Raises `DudiError` with the first thing that is wrong.
    """
    chat = load_chat(recipe)
    data = data or load_rows(recipe.data, recipe.seed)
    languages = recipe.data.languages or tuple(sorted({e.l for e in data.train}))
    verbalizer = Verbalizer(languages, recipe.seed, recipe.data.template_folder)
    for view in views(recipe.build().signals):
        verbalizer.check(view, languages)
    train, held_out = (encode_rows(examples, chat, recipe.limits) for examples in (data.train, data.eval))
    if not train.rows:
        limit = recipe.limits.prompt
        raise DudiError(f"no row is left: all {len(data.train)} prompts are longer than limits.prompt = {limit} tokens")
    return Prepared(recipe, chat, data, train, held_out, languages, verbalizer)


def load_chat(recipe: Recipe) -> Chat:
    """The student's tokenizer with the template that the recipe names; both models are known to exist and to fit."""
    models = recipe.models
    student = load_tokenizer(models.student, "models.student", models, models.student_revision)
    teacher = None
    if models.teacher is not None:
        teacher = load_tokenizer(models.teacher, "models.teacher", models, models.teacher_revision)
        check_same_tokenizer(student, teacher)
    chat = Chat(student, read_template(recipe.chat.template, student, teacher), recipe.chat.kwargs)
    check_model(models.student, "models.student", models, models.student_revision, chat.vocab)
    if models.teacher is not None:
        check_model(models.teacher, "models.teacher", models, models.teacher_revision, chat.vocab)
    if recipe.cold_start.checkpoint is not None and recipe.build().cold_start:
        check_model(recipe.cold_start.checkpoint, "cold_start.checkpoint", models, None, chat.vocab)
    return chat


def run(recipe: Recipe, resume: bool = False, watch: Watch | None = None, say: Callable[[str], None] = print) -> Path:
    """Run all stages of a recipe; returns the run's folder. `resume` goes on with one that was stopped."""
    check_devices()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(recipe.output.format(name=recipe.name))
    _check_folder(folder, recipe, resume)
    state.wait_for_everyone()  # no process looks at the folder after the first one has begun to write
    stages = plan(recipe)
    data = read_rows(folder / "data") if (folder / "data").is_dir() else None
    prepared = prepare(recipe, data)
    with _whole_or_absent(folder, new=state.is_main_process and not resume):
        if state.is_main_process:
            if data is None:
                checkpoints.write_text(folder / "recipe.toml", dump_recipe(recipe))
                checkpoints.write_text(folder / "lengths.json", json.dumps(lengths(prepared), indent=1))
                write_rows(prepared.data, folder / "data")
            checkpoints.write_text(folder / "environment.json", json.dumps(environment(state), indent=1))
        state.wait_for_everyone()
        say = say if state.is_main_process else _silent
        for number, stage in enumerate(stages, 1):
            here = folder / folder_name(stages, stage.name)
            title = f"stage {number} of {len(stages)}: {stage.name}"
            if isinstance(stage, Generate):
                _generate(prepared, stages, stage, folder, here, state, partial(say, f"{title}"))
            elif not (here / "model").is_dir():
                _train(prepared, stages, stage, folder, here, watch, title, say)
            state.wait_for_everyone()
            gc.collect()  # the stage's models, before the next one's
        if state.is_main_process:
            write_summary(folder)
    return folder


@contextmanager
def _whole_or_absent(folder: Path, new: bool) -> Iterator[None]:
    """A new run that fails before a stage has written anything leaves nothing; errors of the disk become one line."""
    there = folder.exists()
    try:
        yield
    except (DudiError, OSError) as error:
        begun = not new or any(file.is_file() for file in folder.glob("[0-9]*-*/**/*"))
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
            if there:
                folder.mkdir(exist_ok=True)
        if isinstance(error, DudiError):
            raise
        then = "what is complete is kept: go on with --resume" if begun else "nothing was left there"
        raise DudiError(f"{error.filename or folder}: {error.strerror or error}; {then}") from error


def _silent(text: str) -> None:
    """Only the first process of a distributed run talks."""


def _train(
    p: Prepared,
    stages: tuple[Stage, ...],
    stage: Train,
    folder: Path,
    here: Path,
    watch: Watch | None,
    title: str,
    say: Callable[[str], None],
) -> None:
    """One training, from its newest complete checkpoint if there is one; `model/` appears when it is done."""
    recipe, method = p.recipe, stage.method
    say(title)
    weights, frozen, autocast = arithmetic(recipe.models.precision)
    student = _load(p, stages, folder, stage.start, weights, frozen=False)
    teacher = _load(p, stages, folder, TEACHER, frozen) if _scores_with_teacher(stage) else None
    reference = None if stage.reference is None else _load(p, stages, folder, stage.reference, frozen)
    for what, model in (("student", student), ("teacher", teacher)):
        rows = 0 if model is None else model.get_output_embeddings().weight.shape[0]
        if rows > p.chat.vocab:
            say(f"  {what}: {rows - p.chat.vocab} of {rows} vocabulary rows are padding (the tokenizer has no token for")
            say("  them): sliced off in every loss, never sampled")
    write_generation_config(student, recipe.generation, p.chat.stop_ids, p.chat.pad)
    sampler = LocalSampler(p.chat.stop_ids, p.chat.pad, p.chat.vocab, recipe.rollouts.temperature)
    stored: list[dict[int, Rollout]] = [{}, {}]
    if stage.responses is not None:
        source = folder / folder_name(stages, stage.responses)
        for k, (split, rows) in enumerate((("train", p.train), ("eval", p.eval))):
            found = read_responses(source / split, rows.rows, recipe.training.batch)
            assert found is not None, "the generation stage before this one is complete"
            stored[k] = found
    build = partial(WindowBuilder, p.chat, p.verbalizer, recipe.limits, sampler, recipe.seed)
    job = Job(
        method=method,
        student=student,
        teacher=teacher,
        reference=reference,
        builder=build(stored=stored[0], salt=stage.name),
        eval_builder=build(stored=stored[1], salt=f"{stage.name} eval"),
        rows=p.train.rows,
        eval_rows=p.eval.rows,
        languages=p.languages,
        training=stage.training,
        seed=recipe.seed,
        autocast=autocast,
        folder=here,
    )
    here.mkdir(parents=True, exist_ok=True)
    trainer = DistillationTrainer(job)
    if watch:
        trainer.add_callback(watch(trainer, title))
    resume_stage(trainer)
    if trainer.is_world_process_zero():
        staged = here / checkpoints.STAGING
        shutil.rmtree(staged, ignore_errors=True)
        with checkpoints.writing(here / "model"):
            trainer.save_model(str(staged), _internal_call=True)
            checkpoints.publish(staged, here / "model")


def resume_stage(trainer: DistillationTrainer) -> None:
    """Train to the end, from the newest complete checkpoint; metrics are cut back to its step."""
    here = trainer.job.folder
    found = checkpoints.complete(here)
    step = checkpoints.step_of(found[-1]) if found else 0
    if trainer.is_world_process_zero():
        for name in ("metrics.jsonl", "times.jsonl"):
            cut_back(here / name, step)
    if not found:
        trainer.train()
        return
    trainer.restore(found[-1])
    if trainer.is_last(found[-1]):
        trainer._load_from_checkpoint(str(found[-1]))  # the Trainer would do one more step before it looks
    else:
        trainer.train(resume_from_checkpoint=str(found[-1]))


def _generate(
    p: Prepared,
    stages: tuple[Stage, ...],
    stage: Generate,
    folder: Path,
    here: Path,
    state: PartialState,
    say: Callable[..., None],
) -> None:
    """Write the answers that a later stage trains on; batches that are there already are kept."""
    recipe, batch = p.recipe, p.recipe.training.batch
    splits = (("train", p.train.rows), ("eval", p.eval.rows))
    if all(read_responses(here / split, rows, batch) is not None for split, rows in splits):
        return
    model = _load(p, stages, folder, stage.writer, arithmetic(recipe.models.precision)[1])
    check_head(model, p.chat.vocab, stage.writer)
    sampler = LocalSampler(p.chat.stop_ids, p.chat.pad, p.chat.vocab, recipe.rollouts.temperature)
    for split, rows in splits:
        key = (stage.response.value, split, recipe.seed, stage.number)
        rank, world = state.process_index, state.num_processes
        if state.is_main_process:
            say()
        generate(model, sampler, rows, key, recipe.limits, batch, here / split, rank, world)


def _load(
    p: Prepared, stages: tuple[Stage, ...], folder: Path, name: str, dtype: torch.dtype, frozen: bool = True
) -> PreTrainedModel:
    """The recipe's own student or teacher, the result of an earlier stage, or a checkpoint folder."""
    models = p.recipe.models
    if name == STUDENT:
        return load_model(models.student, "models.student", models, dtype, models.student_revision, frozen)
    if name == TEACHER:
        assert models.teacher is not None
        return load_model(models.teacher, "models.teacher", models, dtype, models.teacher_revision, frozen)
    if name in [stage.name for stage in stages]:
        return load_model(str(folder / folder_name(stages, name) / "model"), name, models, dtype, None, frozen)
    return load_model(name, "cold_start.checkpoint", models, dtype, None, frozen)


def _scores_with_teacher(stage: Train) -> bool:
    """A larger teacher is loaded only where it scores: SeqKD's `nll` needs what it wrote, not itself."""
    return stage.method.teacher is Teacher.LARGER and bool(needs_teacher(stage.method.signals))


def check_devices() -> None:
    """Several GPUs in one process would become DataParallel: refused, with the command to use."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        raise DudiError(
            f"{gpus} GPUs are visible, but only one process was started: run"
            f" `torchrun --nproc-per-node {gpus} -m dudi run ...`, or choose one GPU with CUDA_VISIBLE_DEVICES=0"
        )


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """A new run needs a folder of its own, that can be written; a resumed one needs the same recipe."""
    if resume:
        _check_same_recipe(folder, recipe)
        return
    try:
        occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise DudiError(f"output folder {str(folder)!r} cannot be used ({error.strerror})") from None
    if occupied:
        raise DudiError(
            f"output folder {str(folder)!r} is occupied: go on with that run with --resume, or choose another"
            " folder with --output"
        )
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fault = "cannot be written to" if there.is_dir() else "is a file"
        raise DudiError(
            f"output folder {str(folder)!r} cannot be made: {str(there)!r} {fault}; choose another with --output"
        )


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    old = folder / "recipe.toml"
    if not old.is_file():
        raise DudiError(f"nothing to resume in {str(folder)!r}: it holds no recipe.toml; start without --resume")
    ours, theirs = (r.model_dump(mode="json", exclude={"output"}) for r in (recipe, load_recipe(old)))
    ours["cold_start"] = ours.pop("cold_start")  # last: what it inherits is named where it stands
    difference = _difference(ours, theirs)
    if difference:
        key, mine, other = difference
        raise DudiError(
            f"resume with another recipe: {key} is {mine!r:.60}, but the run in {str(folder)!r} was started with"
            f" {other!r:.60}; give the same recipe, or start in another folder"
        )


def _difference(ours: Any, theirs: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key in which two recipes differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = {**ours, **theirs}
        found = (_difference(ours.get(name), theirs.get(name), f"{key}.{name}".lstrip(".")) for name in names)
        return next((one for one in found if one), None)
    return None if ours == theirs else (key, ours, theirs)


def lengths(p: Prepared) -> dict[str, dict[str, float]]:
    """Per language: rows that train, rows left out (x too long), answers cut, characters per token."""
    rows = [row.example.l for row in p.train.rows]
    return {
        l: {
            "rows": rows.count(l),
            "left_out": p.train.left_out[l],
            "cut": p.train.cut[l],
            "characters_per_token": round(p.train.characters[l] / max(p.train.tokens[l], 1), 3),
        }
        for l in p.languages
    }


def environment(state: PartialState) -> dict[str, Any]:
    """Versions and devices: what else could change a number."""
    packages = ("dudi", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "device": gpu or "cpu",
        "processes": state.num_processes,
        "threads": torch.get_num_threads(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
