"""What a user adds in one file of their own, and one line: it trains, and does what it says."""

from __future__ import annotations

from pathlib import Path

import kit
import pytest
import torch
from kit import reports
from kit.additions.brier import brier
from kit.additions.echo import Echo
from kit.additions.ipo import ipo
from kit.additions.tracker import Tracker
from kit.additions.unlikely import unlikely
from kit.command import Dudi
from torch import Tensor
from transformers import PreTrainedModel

import dudi as package
from dudi.files import read_lines
from dudi.methods import METHODS
from dudi.recipe.read import load_recipe
from dudi.rollouts import ENGINES
from dudi.training.trainer import DistillationTrainer


def log_p(model: PreTrainedModel, x: tuple[int, ...], y: tuple[int, ...], vocab: int) -> Tensor:
    """[len(y), V] by the model's own full logits."""
    logits = model(input_ids=torch.tensor([x + y])).logits[0, len(x) - 1 : -1, :vocab]
    return torch.log_softmax(logits.double(), -1)


def of_y(model: PreTrainedModel, x: tuple[int, ...], y: tuple[int, ...], vocab: int) -> Tensor:
    """log p(y | x)."""
    return log_p(model, x, y, vocab).gather(-1, torch.tensor(y)[:, None]).sum()


def assert_step(made: DistillationTrainer, wanted: Tensor, atol: float = 1e-10) -> None:
    """The trainer's step has this loss and its gradient."""
    loss, grads = kit.step(made)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-9)
    wanted.backward()
    for name, p in made.student.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-7, atol=atol)


def test_a_loss_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "brier", brier)
    made = kit.trainer(tmp_path, {"name": "brier"})
    values = []
    for row in made.job.rows:
        p = log_p(made.student, row.x, row.y, kit.VOCAB).exp()
        onehot = torch.nn.functional.one_hot(torch.tensor(row.y), kit.VOCAB)
        values.append(((p - onehot) ** 2).sum(-1))
    assert_step(made, torch.cat(values).mean())


def test_a_loss_of_the_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "ipo", ipo)
    made = kit.trainer(tmp_path, {"name": "ipo", "beta": 0.3})
    assert made.job.reference is not None and made.teacher is None
    values = []
    for row in made.job.rows:
        y_prime = kit.Forced(made.job.builder.chat).response(row.index, "y_prime").ids
        s = [of_y(made.student, row.x, y, kit.VOCAB) for y in (row.y, y_prime)]
        r = [of_y(made.job.reference, row.x, y, kit.VOCAB).detach() for y in (row.y, y_prime)]
        values.append((0.3 * ((s[0] - s[1]) - (r[0] - r[1])) - 0.5) ** 2)
    assert_step(made, torch.stack(values).mean(), atol=1e-6)  # y and y' are read as one, and norms are in float32


def test_a_kind_of_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "unlikely", unlikely)
    made = kit.trainer(tmp_path, {"name": "unlikely"}, micro_batch=3)
    forced = kit.Forced(made.job.builder.chat)
    values = [of_y(made.student, row.x, forced.response(row.index, "y_prime").ids, kit.VOCAB) for row in made.job.rows]
    assert_step(made, torch.stack(values).mean())


def test_an_engine(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Used by generation stages and by training alike."""
    monkeypatch.setitem(ENGINES, "echo", Echo)
    values = ['method={name = "seqkd"}', 'cold_start.method={name = "none"}', "rollouts.engine=echo"]
    assert dudi("run", str(dudi.file), *(part for value in values for part in ("--set", value))) == 0, dudi.err
    lines = read_lines(dudi.out / "1-seqkd-responses/train/batch-000000.jsonl")
    assert lines and all(line["finished"] and len(line["ids"]) == 8 for line in lines)
    assert dudi("run", str(dudi.file), "--set", "rollouts.engine=echo", "--output", f"{dudi.out}-dudi") == 0, dudi.err
    (line,) = [line for line in read_lines(Path(f"{dudi.out}-dudi/2-dudi/metrics.jsonl")) if line["step"] == 1]
    assert {v["length"] for v in line["rollout"].values()} == {8.0}


def test_an_engine_that_evaluates(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ENGINES, "echo", Echo)
    bench, model, out = reports.benchmark(tmp_path / "bench", ("id",)), dudi.models / "student", tmp_path / "out"

    def evaluated(*more: str) -> int:
        return dudi("eval", str(model), "--benchmark", str(bench), "--output", str(out), *more)

    assert evaluated("--engine", "echo") == 0, dudi.err
    answers = read_lines(out / "responses-0.jsonl")
    assert answers and all(a["finished"] and a["response"].endswith("sistant\n") for a in answers)
    assert evaluated() == 2 and "decoding.engine is 'echo' there, and 'local' here" in dudi.err
    assert evaluated("--engine", "eco") == 2 and "engine: unknown engine: 'eco'; did you mean 'echo'?" in dudi.err


def test_an_engine_that_nobody_made(dudi: Dudi) -> None:
    assert "rollouts.engine: unknown engine: 'lokal'; did you mean 'local'?" in dudi.run_refused(
        "rollouts.engine=lokal"
    )


def test_a_monitor_of_two_stages(dudi: Dudi) -> None:
    tracker = Tracker()
    folder = package.train(load_recipe(dudi.file), monitors=[tracker], rehearsal=False)
    assert tracker.titles == ["stage 1 of 2: cold-start", "stage 2 of 2: dudi"]
    assert tracker.steps == [1, 2, 1, 2]
    stages = ("1-cold-start", "2-dudi")
    written = [line for stage in stages for line in read_lines(folder / stage / "metrics.jsonl")]
    assert tracker.lines == written
