"""A step under bfloat16 autocast, as every GPU runs it: student and teacher are read alike, the loss is theirs."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.oracle import Ids, Oracle, lively
from kit.world import World
from torch import Tensor
from transformers import PreTrainedModel

from dudi.models.load import arithmetic
from dudi.models.reader import DecodingCopy
from dudi.rollouts import Request, Rollout, Sampling
from dudi.rollouts.local import LocalEngine
from dudi.training.trainer import DistillationTrainer

SFT = {"name": "sft"}
OFF_POLICY = {"name": "dudi", "without": ("sequence", "on_policy")}


class Rounded(Oracle):
    """The brute force, whose products are rounded as autocast rounds them: from the logits on it is in float64."""

    def log_softmax(self, model: PreTrainedModel, prompt: Ids, response: Ids) -> Tensor:
        with torch.set_grad_enabled(model is self.student), torch.autocast("cpu", torch.bfloat16):
            model.float()
            hidden = model.base_model(input_ids=torch.tensor([[*prompt, *response]])).last_hidden_state[0]
            logits = torch.nn.functional.linear(hidden, model.get_output_embeddings().weight[: self.vocab])
            assert logits.dtype is torch.bfloat16
        return torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : len(prompt) - 1 + len(response)]


def model(seed: int, hidden: int = 32) -> PreTrainedModel:
    return lively(kit.model(seed, hidden, rows=kit.VOCAB + 6, dtype=torch.float32), 3.0)


def make(folder: Path, table: dict[str, Any], **more: Any) -> DistillationTrainer:
    """Eight ragged rows; a student that is far from its teacher, both in float32."""
    teacher = more.pop("teacher", None) or model(2, 64)
    given = {"student": model(1), "teacher": teacher.requires_grad_(False).eval(), "micro_batch": 3}
    return kit.trainer(folder, table, autocast=True, **(given | more))


def wanted(made: DistillationTrainer, table: dict[str, Any], kind: type[Oracle]) -> tuple[float, dict[str, Tensor]]:
    """By brute force."""
    rows = [(row.index, row.example) for row in made.window_rows(0)[1]]
    forced = kit.Forced(made.job.builder.chat)
    brute = kind(
        kit.tokenizer(),
        made.job.student,
        made.job.teacher,
        made.job.reference,
        rows,
        lambda index, view: forced.response(index, view).ids,
    )
    return brute.step(table)


def flat(grads: dict[str, Tensor]) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([grads[name].double().flatten() for name in sorted(grads)])


@pytest.mark.parametrize("table", [SFT, OFF_POLICY], ids=lambda table: table["name"])
def test_a_step_is_rounded_where_autocast_rounds(tmp_path: Path, table: dict[str, Any]) -> None:
    """The loss and gradients are those of models whose products are rounded, and far from those of exact ones."""
    made = make(tmp_path, table, micro_batch=1)  # each row alone, as the brute force reads it: sums in the same order
    found = kit.step(made)
    rounded, exact = wanted(made, table, Rounded), wanted(made, table, Oracle)
    f, r, e = (flat(grads) for _, grads in (found, rounded, exact))
    assert abs(found[0] - rounded[0]) < 0.02 * abs(exact[0] - rounded[0])
    assert (f - r).norm() < 0.2 * (e - r).norm()


def test_a_teacher_that_is_the_student_has_nothing_to_teach(tmp_path: Path) -> None:
    """Read alike, both in float32 under autocast, their divergence is 0 and not a difference of roundings."""
    made = make(tmp_path / "same", OFF_POLICY, teacher=model(1))
    loss, grads = kit.step(made)
    assert loss == 0.0
    assert float(flat(grads).abs().max()) < 1e-6
    teacher: PreTrainedModel = model(1).bfloat16()  # whose norms and residual sums are rounded too: it does show
    assert kit.step(make(tmp_path / "rounded", OFF_POLICY, teacher=teacher))[0] > 1e-6


# ── masters ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_masters_are_float32(tmp_path: Path) -> None:
    """bfloat16 has three decimal digits: an update of 1e-6 of a weight of 1 would be none at all."""
    assert arithmetic("bfloat16") == (torch.float32, torch.bfloat16, True)
    assert arithmetic("float32") == (torch.float32, torch.float32, False)
    world = World(tmp_path)
    job, _, _ = world.start(world.table({"models.precision": "bfloat16", "training.lr": 1e-6}))
    assert job.autocast and job.teacher is not None
    assert {p.dtype for p in job.student.parameters()} == {torch.float32}
    assert {p.dtype for p in job.teacher.parameters()} == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in job.student.named_parameters()}
    job.folder.mkdir(parents=True, exist_ok=True)
    DistillationTrainer(job).train()
    head = next(name for name in before if "embed_tokens" in name)
    moved = (dict(job.student.named_parameters())[head] - before[head]).abs()
    assert float((moved > 0).float().mean()) > 0.9


# ── the copy that decodes ────────────────────────────────────────────────────────────────────────────────────────────
def answers(model: PreTrainedModel) -> list[Rollout]:
    """Greedy answers to a few prompts."""
    asked = [Request(tuple(range(3 + k, 20 + k)), ("train", 0, 0, k, "y_prime"), 8) for k in range(8)]
    return LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.0))(model, asked)


def cast(student: PreTrainedModel) -> PreTrainedModel:
    """A fresh copy of a student, its weights in bfloat16."""
    made = copy.deepcopy(student).requires_grad_(False).eval()
    for p in made.parameters():
        p.data = p.data.bfloat16()
    return made


def test_what_decodes_has_the_weights_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of a run, and in its evaluation, the rollouts are those of a fresh cast of the student."""
    made = make(
        tmp_path,
        {"name": "dudi", "without": ("sequence", "off_policy")},
        forced=False,
        lr=3e-2,
        epochs=2.0,
        schedule="constant",
        evals=kit.builtin()[:2],
    )
    seen: list[list[Rollout]] = []
    called = LocalEngine.__call__

    def compared(self: LocalEngine, model: PreTrainedModel, requests: Any) -> list[Rollout]:
        if self is made.job.builder.engine and not nested:
            nested.append(True)
            fresh = cast(made.student)
            assert model is made.decoder.copy
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True))
            seen.append(answers(model))
            assert seen[-1] == answers(fresh)
            nested.clear()
        return called(self, model, requests)

    nested: list[bool] = []
    monkeypatch.setattr(LocalEngine, "__call__", compared)
    made.train()
    assert len(seen) == 3  # two steps and the evaluation
    assert all(a != b for a, b in pairwise(seen)), "yesterday's weights would answer the same"


def test_without_autocast_the_student_decodes_itself() -> None:
    student = model(1)
    assert DecodingCopy(student, samples=True, bf16=False).refreshed() is student
    assert DecodingCopy(student, samples=False, bf16=True).refreshed() is student
