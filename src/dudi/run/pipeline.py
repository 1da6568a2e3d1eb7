"""A recipe, run: recipe -> rows -> stages -> one folder that holds everything needed to repeat it.

RUN/recipe.toml, environment.json     what was run, with what
RUN/data/                             the very rows, their report and manifest; their token ids, for the next start
RUN/lengths.json                      per language: rows left out, answers cut, tokens per character
RUN/<n>-<stage>/                      metrics.jsonl, times.jsonl, rollouts.jsonl, phases.json, checkpoint-*/, model/
RUN/<n>-<stage>/adapter/              where [adapter] is used: what was trained, in peft's format; model/ has it merged
RUN/<n>-<stage>/trackers.json         which runs of trackers it is, where it reports to any
RUN/<n>-<stage>/cache/                while it trains: what is read once of frozen models (training.cache = "disk")
RUN/<n>-<stage>-responses/            batches of answers, cut.json (how many ran into the limit), phases.json
RUN/plan.json                         what `dudi plan` said of it, where that was written there
RUN/summary.json, summary.md          written last
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback

from dudi import processes
from dudi.data.load import Rows, read_rows
from dudi.errors import DudiError
from dudi.files import cut_back, read_lines, write_text
from dudi.lock import check_free, locked
from dudi.models.adapter import is_adapted, save_adapter
from dudi.models.load import arithmetic, load_model, write_generation_config
from dudi.models.quantised import quantization
from dudi.models.reader import check_head
from dudi.models.result import complete
from dudi.recipe.fields import Quantization
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import STUDENT, TEACHER, Generate, Stage, Train, folder_name, plan
from dudi.report.card import CARD
from dudi.rollouts import Engine, Rollout, Sampling, engine
from dudi.run.caching import caches
from dudi.run.cards import card_of
from dudi.run.folder import begin, check_folder, check_models, whole_or_absent
from dudi.run.identity import identities
from dudi.run.launch import check_launch, launched
from dudi.run.machine import advice, check_devices, deterministic, quiet_library
from dudi.run.notes import notes
from dudi.run.prepare import Prepared, prepare
from dudi.run.rehearsal import rehearse_first
from dudi.run.resume import changed_on_resume
from dudi.run.served import answer, check_server, is_served, ready
from dudi.run.settings import check_evaluation, check_names
from dudi.run.start import start, trained_of
from dudi.run.summary import write_summary
from dudi.training import cache, checkpoints, faults
from dudi.training.job import Job, steps_of
from dudi.training.monitors import LINES, METRICS, Monitor
from dudi.training.phases import LONG, Phases
from dudi.training.stored import CUT, generate, read_responses, write_cut
from dudi.training.trainer import DistillationTrainer
from dudi.training.window import Row, WindowBuilder

Write = Callable[[Sequence[Row], tuple[int | str, ...], Path], None]
"""What answers some rows, in batches, in a folder. key: of their random numbers, before the row's own."""


def run(
    recipe: Recipe,
    resume: bool = False,
    monitors: Sequence[Monitor] = (),
    callbacks: Sequence[TrainerCallback] = (),
    say: Callable[[str], None] = print,
    data: Rows | None = None,
    rehearsal: bool = False,
) -> Path:
    """Run all stages of a recipe; returns the run's folder. `resume` continues one that was stopped.

    monitors, callbacks: listen to each training (see `dudi.training.monitors`, and transformers' own callbacks).
    data: rows in place of those that `recipe.data` names. rehearsal: every stage on a few rows first.
    """
    check_devices()
    launched()  # before accelerate looks at the environment
    quiet_library()
    state = PartialState(cpu=not torch.cuda.is_available())
    check_launch(recipe, state.num_processes, launched())
    check_names(recipe)
    say = say if state.is_main_process else _silent
    phases, folder, changed = Phases(say), Path(recipe.output.format(name=recipe.name)), []
    with processes.together():  # no process looks at the folder after the first one has begun to write
        if state.is_main_process:
            check_free(folder)
        if resume:
            changed = changed_on_resume(folder, recipe)
            if state.is_main_process:
                check_models(folder, identities(recipe))  # before anything else can come of it
        else:
            check_folder(folder)
        with phases.outside("reading", "reading the rows"):
            kept = read_rows(folder / "data") if (folder / "data").is_dir() else None
        prepared = prepare(recipe, kept or data, None if kept is None else folder / "data", phases)
        check_evaluation(recipe, bool(prepared.eval.rows))
        found = [*caches(prepared, folder, state.num_processes), *check_server(prepared, plan(recipe), folder)]
    stages, stop = plan(recipe), faults.Stop()
    with ExitStack() as held, deterministic([stage.training for stage in stages if isinstance(stage, Train)]):
        with processes.together():
            if state.is_main_process:
                held.enter_context(locked(folder))
        held.enter_context(stop.listening())
        held.enter_context(whole_or_absent(folder, new=state.is_main_process and not resume))
        with processes.together():
            if state.is_main_process:
                begin(folder, prepared, state, resume)
        for line in [*changed, *advice(recipe), *notes(recipe), *prepared.said, *found, *_ended(folder, stages)]:
            say(line)
        pipeline = Pipeline(prepared, stages, folder, state, tuple(monitors), tuple(callbacks), say, stop, phases)
        if rehearsal:
            rehearse_first(prepared, state, folder, phases)
        for stage in pipeline.stages:
            if stop.due():
                raise stop.preempted(f"before stage {stage.name}")
            pipeline.run(stage)
            state.wait_for_everyone()
            gc.collect()  # the stage's models, before the next one's
        if state.is_main_process:
            write_summary(folder)
    return folder


def _ended(folder: Path, stages: tuple[Stage, ...]) -> list[str]:
    """That there is nothing to go on with, if the last stage has its result."""
    result = folder / folder_name(stages, stages[-1].name) / "model"
    return [f"the run has its result: {result}"] if result.is_dir() else []


def _silent(text: str) -> None:
    """Only the first process of a distributed run talks."""


@dataclass(frozen=True)
class Pipeline:
    """The stages of a run, each in a folder of its own; what is finished is not done again."""

    prepared: Prepared
    stages: tuple[Stage, ...]
    folder: Path
    state: PartialState
    monitors: tuple[Monitor, ...]
    callbacks: tuple[TrainerCallback, ...]
    say: Callable[[str], None]
    stop: faults.Stop
    phases: Phases
    trial: bool = False
    """A rehearsal: its rollouts are so short that a signal may rightly have no token."""

    def run(self, stage: Stage) -> None:
        """One stage, or what is left of it. What came before it is done, and keeps its results only."""
        number = self.stages.index(stage)
        if self.state.is_main_process:
            for before in self.stages[:number]:
                checkpoints.remove_all(self._of(before.name))
        title = f"stage {number + 1} of {len(self.stages)}: {stage.name}"
        if isinstance(stage, Generate):
            self._generate(stage, title)
        elif not processes.from_first(partial(self._trained, stage)):
            self.say(title)
            self._train(stage, title)
        if self.state.is_main_process:
            cache.remove(self._of(stage.name))

    def _trained(self, stage: Train) -> bool:
        """Whether a stage has its result. A damaged one is written again, from the last checkpoint, which must be."""
        here = self._of(stage.name)
        if not (here / "model").is_dir():
            return False
        fault = checkpoints.damage(here / "model")
        if fault is None:
            saved = checkpoints.complete(here)
            done = checkpoints.step_of(saved[-1]) if saved else 0
            steps = steps_of(stage.training, len(self.prepared.train.rows))
            if saved and done < steps:
                self.say(f"{stage.name}: goes on from step {done} to {steps}")
            return not saved or done >= steps
        if checkpoints.newest(here, self.say) is None:
            raise DudiError(
                f"{here / 'model'}: {fault}, and there is no checkpoint to write it from: restore it from a copy, or"
                " remove that folder to train the stage again"
            )
        self.say(f"{here / 'model'}: {fault}: it is recreated from the last checkpoint")
        return False

    def _of(self, name: str) -> Path:
        """A stage's folder."""
        return self.folder / folder_name(self.stages, name)

    def _train(self, stage: Train, title: str) -> None:
        """A training, from its newest complete checkpoint if there is one; `model/` appears when it is done."""
        p, here = self.prepared, self._of(stage.name)
        _, frozen, autocast = arithmetic(p.recipe.models.precision)
        started = start(stage, p.recipe, self.stages, self._load, self._of, self.state.num_processes)
        student = started.student
        if is_adapted(student):
            self.say(trained_of(student))
        over = self.state.num_processes if p.recipe.models.teacher_sharding == "shard" else 1
        teacher = self._load(TEACHER, frozen, over=over) if stage.method.judged_by_larger else None
        for what, model in (("student", student), ("teacher", teacher)):
            rows = 0 if model is None else model.get_output_embeddings().weight.shape[0]
            if rows > p.chat.vocab:
                self.say(f"  {what}: {rows - p.chat.vocab} padded vocabulary rows of {rows} are sliced off")
        write_generation_config(student, p.recipe.generation, p.chat.stop_ids, p.chat.pad)
        build = partial(WindowBuilder, p.chat, p.verbalizer, p.recipe.limits, self._engine(), p.recipe.seed)
        job = Job(
            method=stage.method,
            student=student,
            teacher=teacher,
            reference=started.reference,
            reference_as=started.reference_as,
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
        trainer = self._trainer(stage, job, title)
        try:
            resume_stage(trainer)
        except KeyboardInterrupt:
            self.say(kept_of(trainer))
            raise
        finally:
            trainer.tell(lambda monitor: monitor.close())
        with processes.together():
            if self.state.is_main_process and not self.trial:
                trainer.watch.check_end(stage.name, read_lines(here / METRICS))
        with self.phases.outside("saving", f"saving {here / 'model'}"):
            self._publish(trainer, here, last=stage is self.stages[-1])
        if self.state.is_main_process:
            self.phases.settle(here)

    def _trainer(self, stage: Train, job: Job, title: str) -> DistillationTrainer:
        return DistillationTrainer(job, self.callbacks, self.monitors, title, self.stop, self.say, self.phases)

    def _publish(self, trainer: DistillationTrainer, here: Path, last: bool) -> None:
        """The stage's result, whole or absent: `model/`, and before it the adapter that is merged in it, if any."""
        staged = here / checkpoints.STAGING
        with processes.together(), checkpoints.writing(here / "model"):
            if self.state.is_main_process:
                shutil.rmtree(staged, ignore_errors=True)
                if is_adapted(trainer.student):
                    save_adapter(trainer.student, staged)
                    checkpoints.publish(staged, here / "adapter")
        with processes.together(), checkpoints.writing(here / "model"):
            trainer.save_result(staged)
        with processes.together(), checkpoints.writing(here / "model"):
            if self.state.is_main_process:
                complete(staged, self.prepared.recipe.models, last)
                if not self.trial:
                    write_text(staged / CARD, card_of(self.folder, here / "model"))
                checkpoints.publish(staged, here / "model", unlisted=(CARD,))

    def _generate(self, stage: Generate, title: str) -> None:
        """Write the answers that a later stage trains on; batches that are there already are kept."""
        p, here = self.prepared, self._of(stage.name)
        splits = (("train", p.train.rows), ("eval", p.eval.rows))
        batch = p.recipe.training.batch
        written = all(read_responses(here / split, rows, batch) is not None for split, rows in splits)
        if written and (here / CUT).is_file():
            return
        self.say(title)
        write = self._by_server(stage) if is_served(p.recipe, self.stages, stage, self.trial) else self._by_model(stage)
        try:
            with self.phases.outside("generation", f"{stage.name}: {stage.writer} writes"):
                for split, rows in splits:
                    write(rows, (stage.response.value, split, p.recipe.seed, stage.number), here / split)
        finally:
            if self.state.is_main_process:
                self.phases.settle(here)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            for line in write_cut(here, dict(splits), batch):
                self.say(line)

    def _by_model(self, stage: Generate) -> Write:
        """Answers of this process."""
        p, rank, world = self.prepared, self.state.process_index, self.state.num_processes
        model = self._load(stage.writer, arithmetic(p.recipe.models.precision)[1])
        check_head(model, p.chat.vocab, stage.writer)

        def write(rows: Sequence[Row], key: tuple[int | str, ...], here: Path) -> None:
            told, batch = self._progress(stage, here), p.recipe.training.batch
            with faults.memory("generation"):
                generate(model, self._engine(), rows, key, p.recipe.limits, batch, here, rank, world, told)

        return write

    def _by_server(self, stage: Generate) -> Write:
        """Answers of a server."""
        load = partial(self._load, stage.writer, arithmetic(self.prepared.recipe.models.precision)[1])
        server = ready(self.prepared, self.stages, stage, self.folder, load, self.say)

        def write(rows: Sequence[Row], key: tuple[int | str, ...], here: Path) -> None:
            told = self._progress(stage, here)
            answer(self.prepared, server, rows, key, here, told, self.stop.noted, self.trial)

        return write

    def _progress(self, stage: Generate, here: Path) -> Callable[[int, int], None]:
        """What says how far a generation is, and stops it where the run is to stop."""
        world, said = self.state.num_processes, time.monotonic()

        def progress(done: int, batches: int) -> None:
            nonlocal said
            if done % max(batches // 10, 1) == 0 or time.monotonic() - said > LONG:
                said = time.monotonic()
                self.say(f"  {here.name}: {done}/{batches} batches")
            if (done % world == 0 or done == batches) and self.stop.due():  # each process has written a batch
                raise self.stop.preempted(f"in stage {stage.name}: the finished batches are saved")

        return progress

    def _responses(self, stage: Train, split: str) -> dict[int, Rollout]:
        """What the generation stage before this one wrote, by row; nothing where the method reads none."""
        if stage.responses is None:
            return {}
        rows = (self.prepared.train if split == "train" else self.prepared.eval).rows
        found = read_responses(self._of(stage.responses) / split, rows, self.prepared.recipe.training.batch)
        assert found is not None, "the generation stage before this one is complete"
        return found

    def _engine(self) -> Engine:
        chat, rollouts = self.prepared.chat, self.prepared.recipe.rollouts
        sampling = Sampling(chat.stop_ids, chat.pad, chat.vocab, rollouts.temperature, rollouts.cuda_graph)
        return engine(rollouts.engine, sampling)

    def _load(
        self, name: str, dtype: torch.dtype, frozen: bool = True, over: int = 1, bits: Quantization | None = None
    ) -> PreTrainedModel:
        """The recipe's own student or teacher, the result of an earlier stage, or a checkpoint folder; sharded `over`
        so many processes, or kept in so many bits (the teacher, in those that the recipe says)."""
        models = self.prepared.recipe.models
        path, what, revision = name, "cold_start.checkpoint", None
        if name == STUDENT:
            path, what, revision = models.student, "models.student", models.student_revision
        elif name == TEACHER:
            assert models.teacher is not None
            path, what, revision = models.teacher, "models.teacher", models.teacher_revision
            bits = models.teacher_quantization
        elif name in [stage.name for stage in self.stages]:
            path, what = str(self._of(name) / "model"), name
        quantized = None if bits is None else quantization(bits, arithmetic(models.precision)[2])
        with faults.memory("loading"), self.phases.outside("loading", f"loading {name}"):
            return load_model(path, what, models, dtype, revision, frozen, over, quantized)


def kept_of(trainer: DistillationTrainer) -> str:
    """Where a training was stopped at once, and from where it will go on."""
    step, saved = trainer.state.global_step, checkpoints.complete(trainer.job.folder)
    from_ = f"step {checkpoints.step_of(saved[-1])}, its last checkpoint" if saved else "its start: no checkpoint yet"
    every = trainer.job.training.save_every
    return f"  stopped after step {step}; it will go on from {from_} (training.save_every = {every})"


def resume_stage(trainer: DistillationTrainer) -> None:
    """Train to the end, from the newest whole checkpoint; metrics are cut back to its step."""
    here, first = trainer.job.folder, trainer.is_world_process_zero()
    found = processes.from_first(partial(checkpoints.newest, here, trainer.say))
    step = checkpoints.step_of(found) if found else 0
    if first:
        for name in LINES:
            cut_back(here / name, step)
    with faults.memory("optimizer"):  # what is in no phase of its own
        if found is None:
            trainer.train()
            return
        trainer.say(f"  goes on from step {step}, the last checkpoint")
        trainer.restore(found)
        if not trainer.is_last(found):
            trainer.train(resume_from_checkpoint=str(found))
            return
        trainer._load_from_checkpoint(str(found))  # the Trainer would do one more step before it looks
        if first:
            checkpoints.rotate(here, trainer.job.training.keep_checkpoints, found)  # a kill may have come before
        if trainer.args.eval_on_start:
            trainer.tell(lambda monitor: monitor.begin(trainer.course()))
            trainer.evaluate()
            trainer.tell(lambda monitor: monitor.end(trainer.state.global_step))
