"""What holds of an adapter holds for every method: the gradient, what changes nothing, a padded vocabulary, stops."""

from __future__ import annotations

import copy
from pathlib import Path

import kit
import pytest
import torch
from kit import runs
from kit.adapters import (
    EVERY_METHOD,
    KINDS,
    adapted,
    adapted_trainer,
    by_hand,
    close,
    learned,
    resumable,
    whole,
)
from kit.stops import StopAt, Stopped

from dudi.methods import build_method
from dudi.models.adapter import without_adapter
from dudi.run.pipeline import resume_stage

pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("method", EVERY_METHOD)]


@pytest.mark.parametrize(("kind", "tied"), [("lora", False), ("rslora", True), ("dora", False)])
def test_loss_and_gradient_are_those_written_by_hand(kind: str, tied: bool, method: str, tmp_path: Path) -> None:
    table = EVERY_METHOD[method]
    made = adapted(kit.model(1, rows=kit.VOCAB + 6, tied=tied), **KINDS[kind])
    reference = without_adapter(made) if build_method(table).needs_reference else None
    wanted, full = kit.step(kit.trainer(tmp_path / "w", table, student=whole(made), reference=reference))
    loss, grads = kit.step(adapted_trainer(tmp_path / "a", table, made))
    assert loss == pytest.approx(wanted, rel=1e-9) and wanted > 1e-4
    close(grads, by_hand(made, full, {"rslora": 6 / 2}.get(kind, 6 / 4)))


def test_micro_batches_chunks_and_checkpointing_change_nothing(method: str, tmp_path: Path) -> None:
    table = EVERY_METHOD[method]
    wanted, full = kit.step(adapted_trainer(tmp_path / "8", table))
    for number, other in enumerate(
        (
            {"micro_batch": 2, "gradient_checkpointing": True},
            {"micro_batch": 3, "head_chunk": 5},
            {"micro_batch_tokens": 1100},
        )
    ):
        loss, grads = kit.step(adapted_trainer(tmp_path / str(number), table, **other))
        assert loss == pytest.approx(wanted, rel=1e-9)
        close(grads, full)


@pytest.mark.parametrize("tied", [True, False])
def test_padded_rows_of_the_vocabulary_change_nothing(tied: bool, method: str, tmp_path: Path) -> None:
    found = []
    for rows in (kit.VOCAB + 6, kit.VOCAB):
        base = kit.model(1, rows=kit.VOCAB + 6, tied=tied)
        base.resize_token_embeddings(rows)
        assert base.get_output_embeddings().weight.shape[0] == rows
        found.append(kit.step(adapted_trainer(tmp_path / str(rows), EVERY_METHOD[method], adapted(base), forced=False)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    close(found[0][1], found[1][1])


def test_stopped_and_resumed_is_the_straight_training(method: str, tmp_path: Path) -> None:
    straight = resumable(tmp_path / "straight", method)
    start = copy.deepcopy({name: p.detach() for name, p in learned(straight.student).items()})
    resume_stage(straight)
    stopped = resumable(tmp_path / "stopped", method)
    stopped.add_callback(StopAt(3))
    with pytest.raises(Stopped):
        resume_stage(stopped)
    second = resumable(tmp_path / "stopped", method)
    resume_stage(second)
    assert second.state.global_step == straight.state.global_step == 4
    assert runs.identical(dict(straight.model.named_parameters()), dict(second.model.named_parameters()))
    assert all(not torch.equal(p, start[name]) for name, p in learned(second.student).items())
    read = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("straight", "stopped")]
    assert read[0] == read[1]
