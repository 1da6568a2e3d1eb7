"""A recipe, run: recipe -> rows -> stages -> one folder that holds everything needed to repeat it.

RUN/recipe.toml, environment.json     what was run, with what
RUN/data/                             the very rows, their report and manifest
RUN/lengths.json                      per language: rows left out, answers cut, tokens per character
RUN/<n>-<stage>/                      metrics.jsonl, times.jsonl, checkpoint-*/, model/ (or batches of responses)
RUN/summary.json, summary.md          written last
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import logging as transformers_logging

from dudi import checkpoints
from dudi.batch import WindowBuilder, needs_teacher
from dudi.config import Recipe, dump_recipe
from dudi.data.load import read_rows, write_rows
from dudi.folder import check_devices, check_folder, environment, whole_or_absent
from dudi.generate import generate, read_responses
from dudi.methods import Teacher
from dudi.metrics import cut_back
from dudi.models import arithmetic, check_head, load_model, write_generation_config
from dudi.prepare import Prepared, prepare
from dudi.rollouts import Rollout
from dudi.rollouts.local import LocalSampler
from dudi.stages import STUDENT, TEACHER, Generate, Stage, Train, folder_name, plan
from dudi.summary import write_summary
from dudi.trainer import DistillationTrainer, Job

Watch = Callable[[DistillationTrainer, str], TrainerCallback]
"""Makes the callback that shows a training's progress, from its trainer and its title."""


def run(recipe: Recipe, resume: bool = False, watch: Watch | None = None, say: Callable[[str], None] = print) -> Path:
    """Run all stages of a recipe; returns the run's folder. `resume` goes on with one that was stopped."""
    check_devices()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(recipe.output.format(name=recipe.name))
    check_folder(folder, recipe, resume)
    state.wait_for_everyone()  # no process looks at the folder after the first one has begun to write
    data = read_rows(folder / "data") if (folder / "data").is_dir() else None
    prepared = prepare(recipe, data)
    with whole_or_absent(folder, new=state.is_main_process and not resume):
        if state.is_main_process:
            if data is None:
                checkpoints.write_text(folder / "recipe.toml", dump_recipe(recipe))
                checkpoints.write_text(folder / "lengths.json", json.dumps(prepared.lengths(), indent=1))
                write_rows(prepared.data, folder / "data")
            checkpoints.write_text(folder / "environment.json", json.dumps(environment(state), indent=1))
        state.wait_for_everyone()
        pipeline = Pipeline(prepared, plan(recipe), folder, state, watch, say if state.is_main_process else _silent)
        for stage in pipeline.stages:
            pipeline.run(stage)
            state.wait_for_everyone()
            gc.collect()  # the stage's models, before the next one's
        if state.is_main_process:
            write_summary(folder)
    return folder


def _silent(text: str) -> None:
    """Only the first process of a distributed run talks."""


@dataclass(frozen=True)
class Pipeline:
    """The stages of a run, each in a folder of its own; what is finished is not done again."""

    prepared: Prepared
    stages: tuple[Stage, ...]
    folder: Path
    state: PartialState
    watch: Watch | None
    say: Callable[[str], None]

    def run(self, stage: Stage) -> None:
        """One stage, or what is left of it."""
        title = f"stage {self.stages.index(stage) + 1} of {len(self.stages)}: {stage.name}"
        if isinstance(stage, Generate):
            self._generate(stage, title)
        elif not (self._of(stage.name) / "model").is_dir():
            self.say(title)
            self._train(stage, title)

    def _of(self, name: str) -> Path:
        """A stage's folder."""
        return self.folder / folder_name(self.stages, name)

    def _train(self, stage: Train, title: str) -> None:
        """A training, from its newest complete checkpoint if there is one; `model/` appears when it is done."""
        p, here = self.prepared, self._of(stage.name)
        weights, frozen, autocast = arithmetic(p.recipe.models.precision)
        student = self._load(stage.start, weights, frozen=False)
        # SeqKD's `nll` needs what the teacher wrote, not the teacher
        scores = stage.method.teacher is Teacher.LARGER and needs_teacher(stage.method.signals)
        teacher = self._load(TEACHER, frozen) if scores else None
        reference = None if stage.reference is None else self._load(stage.reference, frozen)
        for what, model in (("student", student), ("teacher", teacher)):
            rows = 0 if model is None else model.get_output_embeddings().weight.shape[0]
            if rows > p.chat.vocab:
                self.say(f"  {what}: {rows - p.chat.vocab} padded vocabulary rows of {rows} are sliced off")
        write_generation_config(student, p.recipe.generation, p.chat.stop_ids, p.chat.pad)
        build = partial(WindowBuilder, p.chat, p.verbalizer, p.recipe.limits, self._sampler(), p.recipe.seed)
        job = Job(
            method=stage.method,
            student=student,
            teacher=teacher,
            reference=reference,
            builder=build(stored=self._responses(stage, "train"), salt=stage.name),
            eval_builder=build(stored=self._responses(stage, "eval"), salt=f"{stage.name} eval"),
            rows=p.train.rows,
            eval_rows=p.eval.rows,
            languages=p.languages,
            training=stage.training,
            seed=p.recipe.seed,
            autocast=autocast,
            folder=here,
        )
        here.mkdir(parents=True, exist_ok=True)
        trainer = DistillationTrainer(job)
        if self.watch:
            trainer.add_callback(self.watch(trainer, title))
        resume_stage(trainer)
        if trainer.is_world_process_zero():
            staged = here / checkpoints.STAGING
            shutil.rmtree(staged, ignore_errors=True)
            with checkpoints.writing(here / "model"):
                trainer.save_model(str(staged), _internal_call=True)
                checkpoints.publish(staged, here / "model")

    def _generate(self, stage: Generate, title: str) -> None:
        """Write the answers that a later stage trains on; batches that are there already are kept."""
        p, here = self.prepared, self._of(stage.name)
        batch = p.recipe.training.batch
        splits = (("train", p.train.rows), ("eval", p.eval.rows))
        if all(read_responses(here / split, rows, batch) is not None for split, rows in splits):
            return
        self.say(title)
        model = self._load(stage.writer, arithmetic(p.recipe.models.precision)[1])
        check_head(model, p.chat.vocab, stage.writer)
        for split, rows in splits:
            key = (stage.response.value, split, p.recipe.seed, stage.number)
            rank, world = self.state.process_index, self.state.num_processes

            def progress(done: int, batches: int, split: str = split) -> None:
                if done % max(batches // 10, 1) == 0:
                    self.say(f"  {split}: {done}/{batches} batches")

            generate(model, self._sampler(), rows, key, p.recipe.limits, batch, here / split, rank, world, progress)

    def _responses(self, stage: Train, split: str) -> dict[int, Rollout]:
        """What the generation stage before this one wrote, by row; nothing where the method reads none."""
        if stage.responses is None:
            return {}
        rows = (self.prepared.train if split == "train" else self.prepared.eval).rows
        found = read_responses(self._of(stage.responses) / split, rows, self.prepared.recipe.training.batch)
        assert found is not None, "the generation stage before this one is complete"
        return found

    def _sampler(self) -> LocalSampler:
        chat = self.prepared.chat
        return LocalSampler(chat.stop_ids, chat.pad, chat.vocab, self.prepared.recipe.rollouts.temperature)

    def _load(self, name: str, dtype: torch.dtype, frozen: bool = True) -> PreTrainedModel:
        """The recipe's own student or teacher, the result of an earlier stage, or a checkpoint folder."""
        models = self.prepared.recipe.models
        if name == STUDENT:
            return load_model(models.student, "models.student", models, dtype, models.student_revision, frozen)
        if name == TEACHER:
            assert models.teacher is not None
            return load_model(models.teacher, "models.teacher", models, dtype, models.teacher_revision, frozen)
        if name in [stage.name for stage in self.stages]:
            return load_model(str(self._of(name) / "model"), name, models, dtype, None, frozen)
        return load_model(name, "cold_start.checkpoint", models, dtype, None, frozen)


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
