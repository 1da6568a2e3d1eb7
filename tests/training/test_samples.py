"""rollouts.jsonl: a few responses as text, the same in every run; and phases.json: seconds and memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import kit
import psutil
import pytest
import torch

from dudi.files import read_lines
from dudi.rollouts import Rollout
from dudi.run.pipeline import resume_stage
from dudi.training import phases
from dudi.training.phases import Phases, announced
from dudi.training.samples import TAIL
from dudi.training.trainer import DistillationTrainer


def made(folder: Path, **training: Any) -> DistillationTrainer:
    """Eleven rows, three steps an epoch, two epochs; intervals of two steps."""
    defaults: dict[str, Any] = {"batch": 4, "micro_batch": 2, "epochs": 2.0, "log_every": 2}
    return kit.trainer(folder, {"name": "dudi"}, examples=kit.short_rows(11), forced=False, **{**defaults, **training})


def test_one_of_each_view_language_and_interval(tmp_path: Path) -> None:
    """What is kept is what was sampled, of rows that the interval read; languages that it read are all there."""
    t = made(tmp_path)
    sampled: dict[tuple[int, int, str], tuple[Rollout, tuple[int, ...]]] = {}
    engine = t.job.builder.engine

    def spying(model: Any, requests: Any) -> list[Rollout]:
        found = engine(model, requests)
        for request, rollout in zip(requests, found, strict=True):
            sampled[t.state.global_step + 1, int(request.key[3]), str(request.key[4])] = (rollout, request.prompt)
        return found

    object.__setattr__(t.job.builder, "engine", spying)
    resume_stage(t)
    lines = read_lines(tmp_path / "rollouts.jsonl")
    places = Counter(((line["step"] - 1) // 2, line["view"], line["language"]) for line in lines)
    assert set(places.values()) == {1}
    read = {
        (step // 2, view, row.example.l)
        for step in range(6)
        for row in t.batch_rows(step)[1]
        for view in ("y_prime", "y_tilde")
    }
    assert set(places) == read
    chat = t.job.builder.chat
    for line in lines:
        rollout, prompt = sampled[line["step"], line["row"], line["view"]]
        assert line["text"] == chat.tokenizer.decode([*rollout.ids], skip_special_tokens=True)
        assert line["finished"] == rollout.finished
        assert line["prompt"] == chat.decode(prompt)[-TAIL:] and line["prompt"].endswith("assistant\n")
        assert (line["l_z"] is None) == (line["view"] == "y_prime")
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


@pytest.mark.slow
def test_the_longer_run_begins_with_the_shorter_one(tmp_path: Path) -> None:
    """The choice does not know where a run ends, so one that is extended has the same lines."""
    for name, epochs in (("short", 1.0), ("long", 2.0)):
        resume_stage(made(tmp_path / name, epochs=epochs, schedule="constant"))
    short, long = ((tmp_path / name / "rollouts.jsonl").read_text() for name in ("short", "long"))
    assert short and long.startswith(short) and long != short


def test_a_method_that_samples_nothing_has_no_file(tmp_path: Path) -> None:
    t = kit.trainer(tmp_path, {"name": "sft"})
    resume_stage(t)
    assert not (tmp_path / "rollouts.jsonl").exists()


# ── phases ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_what_runs_outside_of_steps_takes_in_its_inner_phases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [100.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])
    timed = Phases()

    def tick(seconds: float) -> None:
        now[0] += seconds

    with timed("student"):
        tick(1)
    with timed.outside("evaluation"):
        tick(2)
        with timed("teacher"), timed.outside("loading"):
            assert timed.now == "evaluation"
            tick(4)
    assert timed.take() == {"student": 1.0}
    timed.settle(tmp_path)
    with pytest.raises(ZeroDivisionError), timed.outside("evaluation"):
        tick(8)
        _ = 1 / 0
    timed.settle(tmp_path)
    assert phases.read(tmp_path)["seconds"] == {"evaluation": 14.0}
    assert timed.take() == {} and timed.now == ""


@pytest.mark.skipif(not phases._MARK.exists(), reason="the kernel counts no peak by phase here")
def test_the_peak_is_that_of_the_phase(tmp_path: Path) -> None:
    """100 MB in one phase and 300 in another, freed again; a later, smaller peak of the same phase is none."""
    timed = Phases()
    for name, size in (("teacher", 100), ("student", 300), ("teacher", 100), ("student", 10)):
        with timed(name):
            held = bytearray(b"x") * (size << 20)
            del held
    with timed.outside("saving"):
        pass
    timed.settle(tmp_path)
    peaks = json.loads((tmp_path / phases.FILE).read_text())["memory"]
    assert set(peaks) == {"teacher", "student", "saving"}
    assert 150 < (peaks["student"] - peaks["teacher"]) / 2**20 < 250
    assert (peaks["student"] - peaks["saving"]) / 2**20 > 250


@pytest.mark.skipif(phases._LIBC is None, reason="another allocator")
def test_what_was_freed_goes_back_to_the_system() -> None:
    """Small tensors between some that stay: without `trim` their memory stays with the process."""
    del [torch.ones(24 << 20, dtype=torch.uint8)][:]  # from now on, glibc takes these sizes from its heap
    held = [torch.ones(2 << 20, dtype=torch.uint8) for _ in range(200)]
    kept = held[::20]
    del held
    before = psutil.Process().memory_info().rss
    phases.trim()
    assert len(kept) == 10 and before - psutil.Process().memory_info().rss > 200 << 20


def test_what_takes_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "LONG", 0.05)
    monkeypatch.setattr(phases, "AGAIN", 30.0)
    said: list[str] = []
    with announced("loading x", said.append):
        phases.time.sleep(0.5)
    assert said[0] == "  loading x: 0 s so far" and re.fullmatch("  loading x: [0-9]+ s", said[1]) and len(said) == 2
    said.clear()
    with announced("loading y", said.append):
        assert said == []
    assert said == []


def test_a_training_writes_its_phases(tmp_path: Path) -> None:
    t = kit.trainer(tmp_path, {"name": "spin"}, evals=kit.builtin()[1:3], epochs=2.0, save_every=1)
    resume_stage(t)
    t.phases.settle(tmp_path)
    found = phases.read(tmp_path)
    assert set(found["seconds"]) == {"evaluation", "saving"}
    steps = read_lines(tmp_path / "times.jsonl")
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert {"reference", "student", "backward", "optimizer"} <= set(line) and "evaluation" not in line
        assert line["teacher"] < line["reference"], "R's time is its own"
    assert set(found["memory"]) == {
        "rollout",
        "teacher",
        "reference",
        "student",
        "backward",
        "optimizer",
        *found["seconds"],
    }
