"""What stops a run: in one process, and in two together."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.command import Dudi, write_recipe
from kit.processes import start_two

from dudi.errors import DudiError
from dudi.files import read_lines
from dudi.models import load as dudi_models
from dudi.recipe.schema import Recipe
from dudi.run import pipeline as train
from dudi.run.pipeline import resume_stage
from dudi.training import checkpoints
from dudi.training import faults as guards
from dudi.training.faults import LOWER, Diverged, OutOfMemory, Stop, memory


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("number", guards.SIGNALS)
def test_a_signal_is_noted_while_it_listens_and_not_after(number: signal.Signals) -> None:
    before, stop = signal.getsignal(number), Stop()
    with stop.listening():
        assert not stop.due()
        os.kill(os.getpid(), number)
        assert stop.due() and stop.name == number.name
        os.kill(os.getpid(), signal.SIGTERM)  # an echo of it, or the first one after SIGUSR1: still here
    assert signal.getsignal(number) is before
    error = stop.preempted("here")
    assert error.status == 143 and str(error) == f"stopped by {number.name} here; continue with --resume"


def test_a_second_sigterm_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the echo's time it gets its own meaning back, and is sent again."""
    sent: list[tuple[int, Any]] = []
    now = [100.0]
    monkeypatch.setattr("dudi.training.faults.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "dudi.training.faults.os.kill", lambda pid, number: sent.append((number, signal.getsignal(number)))
    )
    stop = Stop()
    with stop.listening():
        stop._note(signal.SIGTERM, None)
        now[0] += guards.ECHO
        stop._note(signal.SIGTERM, None)
        stop._note(signal.SIGUSR1, None)
        assert not sent
        now[0] += 1.0
        stop._note(signal.SIGTERM, None)
    assert sent == [(signal.SIGTERM, signal.SIG_DFL)]


def test_in_another_thread_nothing_changes() -> None:
    found = []

    def work() -> None:
        with Stop().listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


# ── two processes ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    runs.recipe(folder, {"name": "sft"})  # models and rows are made once
    return start_two("faults", folder)


def ends(two: Path, case: str) -> tuple[str, int, str]:
    """The error that ended both processes."""
    one, other = (json.loads((two / f"{case}-{rank}.json").read_text()) for rank in range(2))
    assert one["class"] == other["class"] and one["status"] == other["status"]
    assert one["text"].replace("a signal to another process", "SIG") == re.sub("SIG(TERM|USR1)", "SIG", other["text"])
    return one["class"], one["status"], other["text"]


@pytest.mark.slow
def test_nan_on_one_process_stops_both(two: Path) -> None:
    kind, status, text = ends(two, "nan")
    assert (kind, status) == ("Diverged", 3)
    assert (
        text.startswith("the loss is not finite at step 5 (signal on_policy; rows ") and "checkpoint-4 is kept" in text
    )
    assert [c.name for c in checkpoints.complete(two / "nan")] == ["checkpoint-4"]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "step", "name"), [("step", 5, "SIGTERM"), ("evaluation", 3, "SIGUSR1")])
def test_a_signal_to_one_process_stops_both_and_changes_no_number(case: str, step: int, name: str, two: Path) -> None:
    """Within an interval of the metrics, so that its sums on each process are kept apart; weights: by the worker."""
    assert ends(two, case) == (
        "Preempted",
        143,
        f"stopped by {name} after step {step}: checkpoint-{step} is saved; continue with --resume",
    )
    here, there = ((two / f / "metrics.jsonl").read_bytes() for f in (case, f"{case}-straight"))
    assert here == there and len(here.splitlines()) == (4 if case == "evaluation" else 2)


@pytest.mark.slow
def test_a_full_disk_of_one_process_stops_both(two: Path) -> None:
    kind, status, text = ends(two, "full")
    assert (kind, status) == ("DudiError", 2)
    assert "checkpoint-4: cannot be written (" in text and "No space left on device" in text
    assert checkpoints.complete(two / "full") == []


@pytest.mark.slow
def test_a_signal_in_a_generation_stops_both_after_their_batch(two: Path) -> None:
    kind, status, text = ends(two, "generating")
    assert (kind, status) == ("Preempted", 143) and "in stage seqkd-responses: the finished batches are saved" in text
    assert json.loads((two / "left.json").read_text()) == ["batch-000000.jsonl", "batch-000001.jsonl"]
    assert (two / "generating" / "summary.json").is_file()


# ── a loss or a gradient that is not finite ──────────────────────────────────────────────────────────────────────────
def test_only_the_rows_at_fault_are_named(tmp_path: Path) -> None:
    made = kit.trainer(tmp_path, {"name": "sft"})
    bad = made.window_rows(0)[1][3]
    inner = made._micro_batch

    def micro_batch(model: Any, window: Any, places: Any, *rest: Any) -> Any:
        found = inner(model, window, places, *rest)
        outcome = found.outcomes["off_policy"]
        at = places.index(window.rows.index(bad))
        outcome.value[(outcome.row == at) & (outcome.mask > 0)] = float("inf")
        return replace(found, loss=found.loss + float("inf"))

    made._micro_batch = micro_batch  # type: ignore[method-assign]
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    with pytest.raises(Diverged, match=rf"step 1 \(signal off_policy; rows {re.escape(bad.example.id)}\): there is no"):
        resume_stage(made)
    assert runs.identical(before, {n: p.detach() for n, p in made.model.named_parameters()})


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """The loss is: so no signal is to blame, all rows of the step are."""
    made = kit.trainer(tmp_path, {"name": "sft"})
    weight = made.model.get_output_embeddings().weight
    weight.register_hook(lambda grad: grad * float("nan"))
    before = weight.detach().clone()
    with pytest.raises(Diverged, match="the gradient is not finite at step 1, though the loss is"):
        resume_stage(made)
    assert torch.equal(weight, before)


def test_many_rows_are_counted() -> None:
    assert guards._some([str(k) for k in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"


@pytest.mark.parametrize(
    "method, signals",
    [pytest.param('name = "sft"', "off_policy", marks=pytest.mark.slow), ('name = "dudi"', "")],
)
def test_nan_weights_stop_the_run_and_keep_the_last_checkpoint(
    dudi: Dudi, monkeypatch: pytest.MonkeyPatch, method: str, signals: str
) -> None:
    file = write_recipe(dudi.folder, dudi.models, method=method)
    whole, seen = train.DistillationTrainer.training_step, []

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            seen.extend(row.example.id for row in self.window_rows(1)[1])
            with torch.no_grad():
                self.student.base_model.embed_tokens.weight.fill_(float("nan"))
        return whole(self, *args, **kwargs)

    argv = ("run", str(file), "--set", "cold_start.method.name=none")
    with monkeypatch.context() as patch:
        patch.setattr(train.DistillationTrainer, "training_step", broken)
        line = dudi.refused(*argv, status=3)
    if signals:
        where = f"the loss is not finite at step 2 (signal {signals}; rows {', '.join(seen)})"
    else:  # nothing can be sampled, before there is a loss
        where = "at step 2: rollouts: the model's logits are not finite at new token 1 of prompt 1"
    assert line.startswith(where) and ": checkpoint-1 is kept" in line
    (stage,) = (f for f in dudi.out.iterdir() if f.name.startswith("1-"))
    (kept,) = checkpoints.complete(stage)
    assert kept.name == "checkpoint-1"
    model = dudi_models.AutoModelForCausalLM.from_pretrained(kept)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not (stage / "model").exists()
    assert [line["step"] for line in read_lines(stage / "metrics.jsonl")] == [1]
    assert dudi(*argv, "--resume") == 0


def test_a_learning_rate_far_too_large_stops_too(dudi: Dudi) -> None:
    line = dudi.refused("run", str(dudi.file), "--set", "training.lr=1e30", status=3)
    assert "the loss is not finite at step 2 (signal off_policy; rows " in line


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────
CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
    " Including non-PyTorch memory, this process has 77.90 GiB memory in use."
)
ERRORS: list[tuple[BaseException, str]] = [
    (
        torch.OutOfMemoryError(CUDA),
        " (2.50 GiB more were asked for; GPU 0 has 79.11 GiB, 1.20 GiB of it free)",
    ),
    (
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."
        ),
        " (4.00 GiB more were asked for)",
    ),
    (MemoryError(), ""),
]


@pytest.mark.parametrize(("error", "amount"), ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("phase", LOWER)
def test_out_of_memory_says_phase_amount_and_setting(phase: str, error: BaseException, amount: str) -> None:
    with pytest.raises(OutOfMemory) as found, memory("optimizer"), memory(phase):
        raise error
    assert str(found.value) == f"out of memory in phase {phase}{amount}: {LOWER[phase]}"
    assert found.value.status == 4


def test_real_memory_that_is_not_there() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"in phase backward \(\d+\.\d\d GiB more were asked for\)"),
        memory("backward"),
    ):
        torch.empty(2**50)


def test_another_error_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), memory("student"):
        raise RuntimeError("shapes")


def test_the_settings_to_lower_exist() -> None:
    tables = {name: field.annotation for name, field in Recipe.model_fields.items()}
    named = re.findall(r"([a-z_]+)\.([a-z_]+)", " ".join(LOWER.values()))
    assert len(named) > 10
    for table, key in named:
        assert key in tables[table].model_fields, f"{table}.{key}"  # type: ignore[union-attr]


@pytest.mark.parametrize("phase", ["rollout", "teacher", "student", "backward"])
def test_a_step_names_its_phase(phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = kit.trainer(tmp_path, {"name": "dudi"})

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError(CUDA)

    if phase == "rollout":
        monkeypatch.setattr("dudi.training.window.WindowBuilder.build", fail)
    elif phase == "teacher":
        monkeypatch.setattr("dudi.training.trainer.DistillationTrainer._judge", fail)
    elif phase == "student":
        monkeypatch.setattr("dudi.training.trainer.objective", fail)
    else:
        monkeypatch.setattr(made.accelerator, "backward", fail)
    with pytest.raises(OutOfMemory, match=f"in phase {phase} "):
        resume_stage(made)


def test_every_status_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "crash-safety.md").read_text(encoding="utf-8")
    for kind in (DudiError, Diverged, OutOfMemory, guards.Preempted):
        assert f"| {kind.status} |" in text
