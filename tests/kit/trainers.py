"""Ready trainers of any method on tiny models, with given responses or sampled ones, and one step of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from dudi.example import Example
from dudi.methods import build_method
from dudi.models.swapped import As
from dudi.recipe.schema import Limits, Recipe, Training
from dudi.rollouts import Request, Rollout, Sampling
from dudi.rollouts.local import LocalEngine
from dudi.run import pipeline
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer
from dudi.training.trainer import DistillationTrainer, Job
from dudi.training.window import WindowBuilder, encode_rows
from kit.models import VOCAB, model, tokenizer
from kit.rows import LANGUAGES, builtin


class Forced:
    """A sampler that returns given responses: by (row index, view name), else drawn once from the key, never a model.

    Lengths are ragged; about half of the responses end with the stop token.
    """

    def __init__(self, chat: Chat, given: Mapping[tuple[int, str], Rollout] | None = None, longest: int = 9) -> None:
        self.chat, self.given, self.longest = chat, dict(given or {}), longest

    def response(self, row: int, view: str) -> Rollout:
        """The response of a row for a view."""
        if (row, view) in self.given:
            return self.given[row, view]
        g = torch.Generator().manual_seed(1000 * row + sum(view.encode()))
        length = int(torch.randint(1, self.longest, (1,), generator=g))
        ids = torch.randint(3, self.chat.vocab, (length,), generator=g).tolist()
        done = bool(torch.rand(1, generator=g) < 0.5)
        return Rollout((*ids, self.chat.turn_end) if done else tuple(ids), done)

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        """Keys are (salt, seed, epoch, row, view)."""
        return [self.response(int(r.key[3]), str(r.key[4])) for r in requests]


USUAL: dict[str, Any] = {
    "batch": 8,
    "micro_batch": 8,
    "lr": 1e-3,
    "epochs": 1.0,
    "log_every": 1,
    "overlap_every": 1,
}
"""Settings of a training, where a test names no others."""


def trainer(
    folder: Path,
    method: Mapping[str, Any],
    *,
    student: PreTrainedModel | None = None,
    teacher: PreTrainedModel | None = None,
    reference: PreTrainedModel | None = None,
    examples: Sequence[Example] | None = None,
    evals: Sequence[Example] = (),
    forced: bool = True,
    limits: Limits | None = None,
    tok: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
    autocast: bool = False,
    reference_as: As = nullcontext,
    **training: Any,
) -> DistillationTrainer:
    """A trainer of any method on tiny models, float64 by default; `forced` responses or sampled ones.

    Defaults: 8 built-in rows, one in each language and one more, batch 8, micro_batch 8, lr 1e-3, one epoch. The
    teacher is twice as wide and has padded embeddings; R is another model than the student.
    """
    built = build_method(method)
    chat = Chat(tok or tokenizer(), None, {})
    rows_in = list(examples) if examples is not None else builtin()[::13][:8]
    limits = limits or Limits(prompt=400, verbalizer=300, total=600, rollout=8, teacher_prompt=2000)
    verbalizer = Verbalizer(LANGUAGES, seed)
    rows, eval_rows = encode_rows(rows_in, chat, limits), encode_rows(list(evals), chat, limits)
    sampler = Forced(chat) if forced else LocalEngine(Sampling(chat.stop_ids, chat.pad, chat.vocab, 0.9))
    stored = {r.index: Forced(chat).response(r.index, "stored") for r in rows.rows} if built.stored else {}
    builder = WindowBuilder(chat, verbalizer, limits, sampler, seed, stored)
    student = student if student is not None else model(1, rows=VOCAB + 6)
    if teacher is None and built.needs_larger_teacher:
        teacher = model(2, hidden=64, rows=VOCAB + 20, dtype=student.dtype).requires_grad_(False).eval()
    if reference is None and built.needs_reference:
        reference = model(3, rows=VOCAB + 6, dtype=student.dtype).requires_grad_(False).eval()
    job = Job(
        method=built,
        student=student,
        teacher=teacher,
        reference=reference,
        builder=builder,
        eval_builder=replace(builder, salt="eval"),
        rows=rows.rows,
        eval_rows=eval_rows.rows,
        languages=LANGUAGES,
        training=Training(**{**USUAL, **training}),
        seed=seed,
        autocast=autocast,
        folder=folder,
        reference_as=reference_as,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return DistillationTrainer(job)


def step(made: DistillationTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients (by parameter name) of the trainer's present optimizer step, without updating anything."""
    if made.optimizer is None:
        made.create_optimizer_and_scheduler(num_training_steps=10)
    made.model.zero_grad()
    loss = made.training_step(made.model, {})
    grads = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    made.model.zero_grad()
    return float(loss), grads


def watched(recipe: Recipe, watch: Callable[[DistillationTrainer, str], TrainerCallback]) -> Path:
    """Run a recipe with a callback of the test's own in each training, made from its trainer and its title."""

    class Watched(DistillationTrainer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.add_callback(watch(self, self.title))

    with mock.patch.object(pipeline, "DistillationTrainer", Watched):
        return pipeline.run(recipe, say=lambda *_: None)
