"""What one stage of a run hands to the next: weights, the reference R, responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from transformers import AutoModelForCausalLM, TrainerCallback

from dudi.example import Message
from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine
from dudi.run.pipeline import run
from dudi.run.prepare import load_chat
from dudi.training.trainer import DistillationTrainer


class References(TrainerCallback):
    """Weights of student and R before the first step, and whether R still is the same after the last."""

    def __init__(self, trainer: DistillationTrainer, title: str) -> None:
        self.trainer, self.title = trainer, title
        self.student: dict[str, torch.Tensor] = {}
        self.reference: dict[str, torch.Tensor] = {}

    @staticmethod
    def _copy(model: Any) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.student = self._copy(self.trainer.model)
        if self.trainer.job.reference is not None:
            self.reference = self._copy(self.trainer.job.reference)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reference:
            assert runs.identical(self.reference, self._copy(self.trainer.job.reference)), "R has moved"
            assert not runs.identical(self.student, self._copy(self.trainer.model)), "the student has not"


def watched(r: Any) -> tuple[Path, list[References]]:
    found: list[References] = []

    def watch(trainer: DistillationTrainer, title: str) -> References:
        found.append(References(trainer, title))
        return found[-1]

    return kit.watched(r, watch), found


LOG_2 = 0.6931471805599453


@pytest.mark.parametrize("method", [{"name": "dudi"}, {"name": "spin", "variant": "online"}], ids=["dudi", "spin"])
def test_reference_is_the_cold_start(method: dict[str, Any], tmp_path: Path) -> None:
    """So at stage 2's first step S = R, and the sequence signal is log 2, whatever was sampled; it is so no longer."""
    r = runs.recipe(tmp_path, method, training={"epochs": 1.0}, cold_start={"training": {"epochs": 1.0}})
    out, (cold, main) = watched(r)
    end = runs.weights(runs.stages(out)[0])
    assert runs.identical(main.reference, end) and runs.identical(main.student, end)
    assert not cold.reference and not runs.identical(cold.student, end)
    first, *_, last = (line["signal"]["sequence"] for line in runs.metrics(runs.stages(out)[1]))
    assert first["loss"] == pytest.approx(LOG_2, abs=1e-5) and first["margin"] == pytest.approx(0, abs=1e-4)
    assert abs(last["margin"]) > 1e-3


@pytest.mark.slow
def test_spin_moves_its_reference_with_each_iteration(tmp_path: Path) -> None:
    r = runs.recipe(
        tmp_path,
        {"name": "spin", "iterations": 2},
        training={"epochs": 1.0},
        cold_start={"training": {"epochs": 1.0}},
    )
    out, (_, first, second) = watched(r)
    cold, written_1, one, written_2, two = runs.stages(out)
    assert [s.name for s in (cold, one, two)] == ["1-cold-start", "3-spin-1", "5-spin-2"]
    assert runs.identical(first.reference, runs.weights(cold))
    assert runs.identical(second.reference, runs.weights(one))
    assert runs.identical(second.student, runs.weights(one))
    assert not runs.identical(first.reference, second.reference)
    for stage in (one, two):
        line = runs.metrics(stage)[0]["signal"]["sequence"]
        assert line["loss"] == pytest.approx(LOG_2, abs=1e-5)
    texts = [(s / "train" / "batch-000000.jsonl").read_text() for s in (written_1, written_2)]
    assert texts[0] != texts[1], "the second iteration answers anew"


def test_seqkd_responses_are_the_teachers_on_x(tmp_path: Path) -> None:
    """Each stored response is what the teacher samples on the plain prompt x with the row's own random numbers."""
    r = runs.recipe(
        tmp_path,
        {"name": "seqkd"},
        training={"epochs": 1.0},
        models={"precision": "float64"},
        cold_start={"method": {"name": "none"}},
    )
    out = run(r, say=lambda *_: None)
    written = runs.stages(out)[0]
    assert written.name == "1-seqkd-responses"
    lines = [json.loads(t) for f in sorted((written / "train").iterdir()) for t in f.read_text().splitlines()]
    chat, _ = load_chat(r)
    rows = [json.loads(t) for t in (out / "data" / "train.jsonl").read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(len(rows)))
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64) for name in ("teacher", "student")
    )
    sampler = LocalEngine(Sampling(chat.stop_ids, chat.pad, chat.vocab, 0.9))
    same = {"teacher": 0, "student": 0}
    for line in lines:
        x = tuple(Message(m["role"], m["content"]) for m in rows[line["index"]]["messages"][:-1])
        request = Request(tuple(chat.prompt(x)), ("teacher", "train", 0, 0, line["index"]), 8)
        for name, model in (("teacher", teacher), ("student", student)):
            [rollout] = sampler(model, [request])
            same[name] += list(rollout.ids) == line["ids"] and rollout.finished == line["finished"]
    assert same["teacher"] == len(rows) > same["student"]
    trained = sum(line["signal"]["off_policy"]["count"] for line in runs.metrics(runs.stages(out)[1]))
    assert trained == sum(len(line["ids"]) for line in lines), "and they are what is trained on"
