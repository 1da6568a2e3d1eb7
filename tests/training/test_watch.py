"""A signal without tokens, a first update that was too large, rows held out that nobody asked to evaluate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kit
import pytest
from kit import runs

from dudi.errors import DudiError
from dudi.files import read_lines
from dudi.methods import build_method
from dudi.recipe.schema import Limits, Training
from dudi.rollouts import Rollout
from dudi.run.pipeline import resume_stage, run
from dudi.run.summary import markdown, summarize
from dudi.training.watch import Watch

SHORT = {"prompt": 400, "verbalizer": 300, "total": 600, "rollout": 8}


# ── a signal without tokens ──────────────────────────────────────────────────────────────────────────────────────────
NOTHING = {
    "within what is skipped": (
        {"name": "sdft", "skip_tokens": 8},
        {**SHORT, "teacher_prompt": 2000},
        "on_policy",
        "its responses are . tokens long on average, and none lies beyond method.skip_tokens: lower that, or raise"
        " limits.rollout",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_signal_that_never_has_a_token_is_said_once_and_then_an_error(case: str, tmp_path: Path) -> None:
    method, limits, name, why = NOTHING[case]
    said: list[str] = []
    training = {"epochs": 1.0}
    none = {"name": "none"}
    recipe = runs.recipe(tmp_path, method, limits=limits, training=training, cold_start={"method": none})
    with pytest.raises(DudiError, match=rf"stage {method['name']}: signal {name} .* in all 3 steps: {why}"):
        run(recipe, say=said.append)
    warnings = [line for line in said if "had no token" in line]
    assert warnings == [f"  step 1: warning: signal {name} had no token to train on in step 1"], "once, by name"
    out = Path(recipe.output)
    (stage,) = runs.stages(out)
    assert not (stage / "model").exists() and not (out / "summary.json").exists()
    found = summarize(out)["stages"][stage.name]
    assert found["steps"] == 3 and name not in found["signals"]
    if not found["signals"]:
        assert "Warning: no signal had a token to train on." in markdown(summarize(out))


def test_an_interval_is_whole_and_the_last_one_may_be_shorter(tmp_path: Path) -> None:
    said: list[str] = []
    trainer = kit.trainer(
        tmp_path,
        {"name": "sdft", "skip_tokens": 20},
        epochs=5.0,
        log_every=2,
        limits=Limits(prompt=400, verbalizer=300, total=600, rollout=8, teacher_prompt=2000),
    )
    trainer.say = said.append
    resume_stage(trainer)
    assert said == ["  step 2: warning: signal on_policy had no token to train on in steps 1 to 2"]


def sums(method: Any, counts: dict[str, float], losses: dict[str, float] | None = None) -> dict[str, float]:
    found = {}
    for s in method.signals:
        count = counts.get(s.name, 0.0)
        for language, share in (("th", 0.25), ("my", 0.75)):
            found[f"signal/{s.name}/{language}/count"] = count * share
            found[f"signal/{s.name}/{language}/loss"] = count * share * (losses or {}).get(s.name, 1.0)
    return found


def test_a_coin_that_fell_otherwise_is_no_fault() -> None:
    method = build_method({"name": "gkd", "lam": 0.5})
    sides = [method.active(0, step)[0].name for step in range(40)]
    same = next(k for k in range(40) if sides[k] == sides[k + 1] == "off_policy")
    watch = Watch(method, Training(), 0)
    assert watch.interval(same + 1, same + 2, sums(method, {"off_policy": 4})) == []
    (line,) = watch.interval(1, 40, sums(method, {"off_policy": 4}))
    assert "signal on_policy had no token to train on in steps 1 to 40" in line
    lines = [{"step": same + 2, "loss": 1.0, "signal": {"off_policy": {"count": 3}}}]
    with pytest.raises(DudiError, match="signal on_policy"):
        watch.check_end("gkd", [*lines, {"step": 40, "loss": 1.0}])
    always = Watch(build_method({"name": "gkd", "lam": 0.0}), Training(), 0)
    always.check_end("gkd", lines)


# ── the first update ─────────────────────────────────────────────────────────────────────────────────────────────────
def told(losses: Sequence[float], **training: Any) -> list[str]:
    """What is said when the sequence signal takes these values, a step each, summed up over intervals of three."""
    method = build_method({"name": "dudi"})
    watch, said = Watch(method, Training(**{"lr": 1e-4, **training}), 0), []
    total = sums(method, {})
    for step, loss in enumerate(losses, 1):
        now = sums(method, {"sequence": 4, "off_policy": 8, "on_policy": 8}, {"sequence": loss})
        total = {key: total[key] + now[key] for key in now}
        said += watch.step(step, total)
        if step % 3 == 0:
            watch.interval(step - 2, step, total)
            total = sums(method, {})
    return said


def test_a_first_update_that_is_too_large_is_said_once() -> None:
    (line,) = told([0.69, 9.7, 12.0, 20.0, 30.0])
    assert line == (
        "  step 2: warning: sequence rose from 0.69 to 9.7: the first update at training.lr = 0.0001 was too large; try"
        " training.warmup_steps = 20 or a lower rate"
    )
    (later,) = told([0.69, 0.7, 0.7, 0.8, 2.2])
    assert "step 5: " in later


@pytest.mark.parametrize(
    ("losses", "training"),
    [
        ([0.69, 2.0, 2.0, 2.0, 2.0], {}),  # less than three times
        ([0.69, 0.7, 0.7, 0.7, 0.7, 9.0], {}),  # after the first steps
        ([0.69, 9.7], {"lr": 9e-5}),
        ([0.69, 9.7], {"warmup_steps": 1}),
        ([0.0, 0.2], {}),  # a teacher that is the student's average: from nothing, any rise is many times
    ],
)
def test_what_is_no_such_update(losses: list[float], training: dict[str, Any]) -> None:
    assert told(losses, **training) == []


def test_a_real_first_update_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    same = kit.model(1, rows=kit.VOCAB + 6).requires_grad_(False).eval()  # the student begins at ln 2
    method = {"name": "spin", "variant": "online"}
    trainer = kit.trainer(tmp_path, method, reference=same, epochs=6.0, lr=1.0, schedule="constant", log_every=4)
    trainer.say = said.append
    resume_stage(trainer)
    assert len([line for line in said if "sequence rose from 0.693 to" in line]) == 1, said


# ── rows held out ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("every", "steps"), [(0, [3]), (2, [2, 3]), (3, [3])])
def test_rows_held_out_are_evaluated_at_the_end(every: int, steps: list[int], tmp_path: Path) -> None:
    trainer = kit.trainer(tmp_path, {"name": "sft"}, evals=kit.builtin()[1:4], epochs=3.0, eval_every=every)
    resume_stage(trainer)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval" in line] == steps


def test_evaluations_without_rows_are_refused(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, {"name": "sft"}, training={"eval_every": 2})
    with pytest.raises(DudiError, match=r"training\.eval_every = 2, but no row is held out: set data.eval_rows_per_la"):
        run(recipe, say=lambda text: None)
    assert not Path(recipe.output).exists()


# ── answers that are cut ─────────────────────────────────────────────────────────────────────────────────────────────
def test_a_generation_says_what_it_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second row of Thai and none of the others; the same in the log, the stage's folder and the summary."""
    from dudi import rollouts
    from dudi.rollouts.local import LocalEngine

    class Sampler(LocalEngine):
        def __call__(self, model: Any, requests: Any) -> list[Rollout]:
            if requests and requests[0].key[0] != "teacher":
                return super().__call__(model, requests)
            return [Rollout((5, 6), False) if r.key[-1] % 2 else Rollout((5, 2), True) for r in requests]

    monkeypatch.setitem(rollouts.ENGINES, "local", Sampler)
    said: list[str] = []
    none = {"name": "none"}
    recipe = runs.recipe(tmp_path, {"name": "seqkd"}, training={"epochs": 1.0}, cold_start={"method": none})
    out = run(recipe, say=said.append)
    languages = [row["language"] for row in read_lines(tmp_path / "rows-11.jsonl")]
    wanted: dict[str, dict[str, int]] = {}
    for number, l in enumerate(languages):
        entry = wanted.setdefault(l, {"rows": 0, "cut": 0})
        entry["rows"] += 1
        entry["cut"] += number % 2
    assert json.loads((out / "1-seqkd-responses" / "cut.json").read_text())["train"] == wanted
    (line,) = (line for line in said if "answers that run into limits.rollout" in line)
    l, entry = next((l, e) for l, e in wanted.items() if e["cut"])
    assert f"{l} {entry['cut']} of {entry['rows']} ({entry['cut'] / entry['rows']:.0%})" in line
    assert line.strip() in (out / "summary.md").read_text().replace("- train", "train")
