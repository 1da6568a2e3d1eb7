"""Every method and variant: loss and all gradients of a real optimizer step equal the brute force of `oracle`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.oracle import Oracle, agree, lively, use_exact_norms, worst

from dudi.example import Example
from dudi.methods import build_method
from dudi.recipe.schema import Limits
from dudi.training.metrics import record
from dudi.training.trainer import DistillationTrainer

PLACES = (0, 1, 13, 26, 29, 42, 57, 78, 85)
"""Rows with system turns (0, 42) and with several turns (1, 29, 57, 85), in all seven languages, of unequal lengths."""
MODES = ("none", "english", "multilingual", "crosslingual", "mix")

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "sft-all": {"name": "sft", "loss_on": "all_assistant"},
    "dft": {"name": "dft"},
    "dft-all": {"name": "dft", "loss_on": "all_assistant"},
    "spin": {"name": "spin"},
    "spin-original": {"name": "spin", "variant": "original"},
    "spin-online": {"name": "spin", "variant": "online"},
    "spin-online-beta": {"name": "spin", "variant": "online", "spin_beta": 0.5},
    "sdft": {"name": "sdft"},
    "sdft-official": {"name": "sdft", "variant": "official"},
    "sdft-reverse": {"name": "sdft", "variant": "reverse"},
    "sdft-no-skip": {"name": "sdft", "skip_tokens": 0},
    "sdft-crosslingual": {"name": "sdft", "verbalizer": "crosslingual"},
    "seqkd": {"name": "seqkd"},
    "seqkd-nll": {"name": "seqkd", "variant": "nll"},
    "seqkd-jsd": {"name": "seqkd", "variant": "jsd"},
    "seqkd-jsd-beta": {"name": "seqkd", "variant": "jsd", "jsd_beta": 0.2},
    "gkd-sum": {"name": "gkd", "variant": "sum"},
    "gkd-sum-beta": {"name": "gkd", "variant": "sum", "jsd_beta": 0.85},
    "gkd-sum-forward": {"name": "gkd", "variant": "sum", "divergence": "forward_kl"},
    "gkd-sum-reverse": {"name": "gkd", "variant": "sum", "divergence": "reverse_kl"},
    "gkd-sum-lam": {"name": "gkd", "variant": "sum", "lam": 0.3},
    "dudi": {"name": "dudi"},
    **{f"dudi-{mode}": {"name": "dudi", "verbalizer": mode} for mode in MODES},
    "dudi-without-english": {"name": "dudi", "include_english": False},
    "dudi-mix-without-english": {"name": "dudi", "verbalizer": "mix", "include_english": False},
    "dudi-forward": {"name": "dudi", "divergence": "forward_kl"},
    "dudi-jsd": {"name": "dudi", "divergence": "jsd"},
    "dudi-jsd-beta": {"name": "dudi", "divergence": "jsd", "jsd_beta": 0.3},
    "dudi-without-sequence": {"name": "dudi", "without": ("sequence",)},
    "dudi-without-off": {"name": "dudi", "without": ("off_policy",)},
    "dudi-without-on": {"name": "dudi", "without": ("on_policy",)},
    "dudi-sequence-only": {"name": "dudi", "without": ("off_policy", "on_policy")},
    "dudi-spin-beta": {"name": "dudi", "spin_beta": 0.5},
    "dudi-weights": {"name": "dudi", "alpha": 0.7, "lam": 0.2},
    "dudi-lam-1": {"name": "dudi", "lam": 1.0},
}


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    use_exact_norms(monkeypatch)


@cache
def examples() -> tuple[Example, ...]:
    """The rows of these tests: real rows with their texts shortened, so that the brute force is quick."""
    rows, real = [], kit.builtin()
    for k, place in enumerate(PLACES):
        e = real[place]
        x = tuple(replace(m, content=m.content[: 8 + 3 * k].rstrip()) for m in e.x)
        rows.append(replace(e, x=x, y=e.y[: 9 + 5 * (k * k % 7)].rstrip()))
    return tuple(rows)


def make(folder: Path, table: Mapping[str, Any], **more: Any) -> DistillationTrainer:
    """Nine ragged rows in three micro-batches, chunks of five; SDFT's average is moved away from the student."""
    method, dtype = build_method(table), more.pop("dtype", torch.float64)
    models: dict[str, Any] = {"student": kit.model(1, rows=kit.VOCAB + 6, dtype=dtype)}
    if method.needs_larger_teacher:
        models["teacher"] = kit.model(2, hidden=64, rows=kit.VOCAB + 20, dtype=dtype)
    if method.needs_reference:
        models["reference"] = kit.model(3, rows=kit.VOCAB + 6, dtype=dtype)
    models |= {name: more.pop(name) for name in ("student", "teacher", "reference") if name in more}
    for name, model in models.items():
        lively(model)
        if name != "student":
            model.requires_grad_(False).eval()
    made = kit.trainer(
        folder, table, **models, **{"examples": examples(), "batch": 9, "micro_batch": 4, "head_chunk": 5, **more}
    )
    if made.ema:
        other = lively(kit.model(7, rows=kit.VOCAB + 6, dtype=dtype))
        for mine, theirs in zip(made.ema.model.parameters(), other.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 0.3)
    return made


def drawn(made: DistillationTrainer, step: int = 0) -> dict[int, str | None]:
    """l_z of every row in this step: the verbalizer's draw, which is also that of the step's window."""
    epoch, rows, weight = made.window_rows(step)
    signals = made.job.method.active(made.job.seed, step)
    window = made.job.builder.build(made.job.student, signals, rows, weight, epoch)
    found: dict[int, str | None] = {}
    for view, items in window.items.items():
        for row, item in zip(rows, items, strict=True):
            if view.verbalizer.value != "none":
                found[row.index] = made.job.builder.verbalizer(view, row.example, epoch, row.index).l_z
                assert item is None or item.l_z == found[row.index]
    return found


def oracle(
    made: DistillationTrainer,
    rows: Sequence[Example] | None = None,
    l_z: Mapping[int, str | None] | None = None,
    respond: Any = None,
    places: Sequence[int] | None = None,
) -> Oracle:
    """The brute force of a trainer's models, forced responses and limits."""
    forced = kit.Forced(made.job.builder.chat)
    limits = made.job.builder.limits
    rows = list(rows or examples())
    return Oracle(
        tokenizer=made.job.builder.chat.tokenizer,
        student=made.job.student,
        teacher=made.teacher and made.teacher.model,
        reference=made.job.reference,
        rows=[(k, rows[k]) for k in (range(len(rows)) if places is None else places)],
        respond=respond or (lambda index, view: forced.response(index, view).ids),
        l_z=drawn(made) if l_z is None else l_z,
        prompt_limit=int(limits.prompt),
        verbalizer_limit=int(limits.verbalizer),
        total_limit=int(limits.total),
        teacher_prompt_limit=int(limits.teacher_prompt),
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_equation(tmp_path: Path, name: str) -> None:
    made = make(tmp_path, METHODS[name])
    agree(kit.step(made), oracle(made).step(METHODS[name]), 1e-9)


@pytest.mark.parametrize(
    "name", ["spin", "spin-online", "seqkd-jsd", "gkd-sum", "dudi", "dudi-none", "dudi-without-off"]
)
def test_a_step_is_the_equation_with_a_cache(tmp_path: Path, name: str) -> None:
    """Methods that score a response which stays the same, beside others that do not."""
    made = make(tmp_path, METHODS[name], cache="memory", micro_batch=2)
    assert made.cache.judged or made.cache.compared
    agree(kit.step(made), oracle(made).step(METHODS[name]), 1e-9)


@pytest.mark.parametrize(
    "table", [{"name": "gkd"}, {"name": "gkd", "lam": 0.2, "divergence": "reverse_kl"}], ids=["default", "reverse"]
)
@pytest.mark.parametrize("on_policy", [True, False])
def test_a_coin_step_is_the_equation_of_its_side(tmp_path: Path, table: dict[str, Any], on_policy: bool) -> None:
    made = make(tmp_path, table)
    method = made.job.method
    sides = [{s.name for s in method.active(0, step)} for step in range(60)]
    assert {"on_policy"} in sides and {"off_policy"} in sides
    step = sides.index({"on_policy"} if on_policy else {"off_policy"})
    made.state.global_step = step
    found, brute = kit.step(made), oracle(made, l_z={})
    agree(found, brute.step(table, coin=on_policy), 1e-9)
    assert found[0] != pytest.approx(brute.step(table, coin=not on_policy)[0], rel=1e-4)


@pytest.mark.parametrize("lam", [0.2, 0.5])
def test_the_coin_falls_as_often_as_lambda_and_by_seed_and_step_alone(lam: float) -> None:
    method = build_method({"name": "gkd", "lam": lam})
    falls = [[s.name for s in method.active(seed, step)] for seed in (0, 1) for step in range(2000)]
    assert all(len(f) == 1 for f in falls)
    share = sum(f == ["on_policy"] for f in falls) / len(falls)
    assert abs(share - lam) < 0.03
    assert falls[:2000] != falls[2000:]
    assert falls == [[s.name for s in method.active(seed, step)] for seed in (0, 1) for step in range(2000)]


@pytest.mark.parametrize(
    "name", ["sft-all", "dft", "spin", "sdft", "seqkd-jsd", "gkd-sum", "dudi", "dudi-forward", "dudi-jsd"]
)
def test_in_float32(tmp_path: Path, name: str) -> None:
    """The trainer in float32 against the oracle in float64, on the same weights."""
    made = make(tmp_path, METHODS[name], dtype=torch.float32)
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    agree(kit.step(made), oracle(made).step(METHODS[name]), 1e-5)


@pytest.mark.parametrize("kind, tied", [("qwen2", False), ("qwen3", True), ("llama", False)])
def test_other_architectures(tmp_path: Path, kind: str, tied: bool) -> None:
    rows = (kit.VOCAB + 6, kit.VOCAB + 20)
    made = make(
        tmp_path,
        METHODS["dudi"],
        student=kit.model(1, kind=kind, tied=tied, rows=rows[0]),
        teacher=kit.model(2, kind=kind, tied=tied, rows=rows[1], hidden=64),
        reference=kit.model(3, kind=kind, tied=tied, rows=rows[0]),
    )
    agree(kit.step(made), oracle(made).step(METHODS["dudi"]), 1e-9)


@pytest.mark.parametrize(
    "split", [{"micro_batch": 1}, {"micro_batch": 9}, {"micro_batch_tokens": 300}, {"head_chunk": 1000}], ids=str
)
def test_the_split_changes_nothing(tmp_path: Path, split: dict[str, int]) -> None:
    made = make(tmp_path, METHODS["dudi"], **split)
    agree(kit.step(made), oracle(made).step(METHODS["dudi"]), 1e-9)


@pytest.mark.parametrize("name", ["dudi", "sft-all", "gkd-sum"])
def test_limits(tmp_path: Path, name: str) -> None:
    """x too long: no row; y too long: cut without EOS; z or p_z too long: no on-policy term for that row alone."""
    limits = Limits(prompt=80, verbalizer=90, total=100, rollout=8, teacher_prompt=150)
    made = make(tmp_path, METHODS[name], limits=limits)
    brute = oracle(made)
    lengths = {index: len(brute.y(e)) for index, e in brute.rows}
    cut = [index for index, e in brute.rows if brute.y(e)[-1] != brute.end]
    assert 2 < len(brute.rows) < len(PLACES) and 0 < len(cut) < len(lengths), "the limits do nothing here"
    if name == "dudi":
        without = [index for index, e in brute.rows if brute.prompts("crosslingual", index, e) is None]
        assert 0 < len(without) < len(brute.rows), "no z is too long here"
    agree(kit.step(made), brute.step(METHODS[name]), 1e-9)


def test_p_z_too_long(tmp_path: Path) -> None:
    limits = Limits(prompt=80, verbalizer=3, total=600, rollout=8, teacher_prompt=2000)
    made = make(tmp_path, METHODS["dudi"], limits=limits)
    brute = oracle(made)
    kept = [index for index, e in brute.rows if brute.prompts("crosslingual", index, e) is not None]
    assert 0 < len(kept) < len(brute.rows)
    agree(kit.step(made), brute.step(METHODS["dudi"]), 1e-9)


@pytest.mark.parametrize("seed", [3, 11])
@pytest.mark.parametrize(
    "table", [METHODS["dudi"], METHODS["dudi-mix"], METHODS["dudi-without-english"]], ids=["full", "mix", "no-en"]
)
def test_other_seeds_and_epochs(tmp_path: Path, seed: int, table: dict[str, Any]) -> None:
    """A ragged last step of a later epoch: other rows, other draws."""
    made = make(tmp_path, table, seed=seed, batch=6)
    step = 2 * made.steps_per_epoch - 1
    epoch, rows, _ = made.window_rows(step)
    assert epoch == 1 and len(rows) == 3
    made.state.global_step = step
    brute = oracle(made, l_z=drawn(made, step), places=[r.index for r in rows])
    agree(kit.step(made), brute.step(table), 1e-9)


def test_what_a_step_reads(tmp_path: Path) -> None:
    """The window's ids are the texts written out by hand, and l_z is drawn from the right set."""
    seen: dict[tuple[str, bool], set[tuple[str, str | None]]] = {}
    for mode in MODES:
        for english in (True, False):
            table = {"name": "dudi", "verbalizer": mode, "include_english": english}
            made = make(tmp_path / f"{mode}{english}", table)
            brute = oracle(made, l_z={})
            for epoch in range(8 if mode in ("crosslingual", "mix") else 1):
                _, rows, weight = made.window_rows(0)
                window = made.job.builder.build(made.job.student, made.job.method.signals, rows, weight, epoch)
                for view, items in window.items.items():
                    for row, item in zip(rows, items, strict=True):
                        e = row.example
                        assert item is not None
                        if view.name == "y_tilde":
                            brute.l_z = {row.index: item.l_z}
                            seen.setdefault((mode, english), set()).add((e.l, item.l_z))
                            assert (item.student, item.teacher) == brute.prompts(mode, row.index, e)
                        else:
                            assert item.student == brute.x(e)
                            assert item.teacher in (None, brute.x(e))
                        if view.name == "y":
                            assert item.response == brute.y(e) and item.finished
                        else:
                            assert item.response == brute.respond(row.index, view.name)
    for (mode, english), pairs in seen.items():
        targets = {target for _, target in pairs}
        if mode in ("none", "english"):
            assert targets == {None}
        elif mode == "multilingual":
            assert all(target == l for l, target in pairs)
        else:
            assert ("en" in targets) is english
            assert set(kit.LANGUAGES) <= targets
            assert any(target == l for l, target in pairs) is (mode == "mix")


@pytest.mark.parametrize("name", ["gkd", "dudi", "sdft"])
def test_evaluation_is_the_expected_loss(tmp_path: Path, name: str) -> None:
    table = {"name": name}
    made = make(tmp_path, table, evals=examples(), batch=4, micro_batch=3)
    epoch, signals = 0, made.job.method.expected()
    window = made.job.eval_builder.build(
        made.job.student, signals, list(made.job.eval_rows), [1.0] * len(PLACES), epoch
    )
    l_z = {}
    for view, items in window.items.items():
        if view.name == "y_tilde":
            l_z = {row.index: item.l_z for row, item in zip(made.job.eval_rows, items, strict=True) if item}
    brute = oracle(made, l_z=l_z)
    if name == "gkd":
        wanted = 0.5 * brute.loss(table, coin=True) + 0.5 * brute.loss(table, coin=False)
    else:
        wanted = brute.loss(table)
    assert made.evaluate()["eval_loss"] == pytest.approx(wanted.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("table", "cache"),
    [
        ({"name": "gkd"}, "off"),
        ({"name": "gkd"}, "memory"),
        ({"name": "sdft", "ema_rate": 0.3, "skip_tokens": 1}, "off"),
        ({"name": "spin", "variant": "online"}, "disk"),
    ],
    ids=lambda t: t if isinstance(t, str) else t["name"],
)
def test_a_run_of_several_steps(tmp_path: Path, table: dict[str, Any], cache: str) -> None:
    """Two epochs of three steps: order, coin, clipping, AdamW, linear decay, moving average, by hand."""
    lr, steps = 5e-3, 6
    made = make(tmp_path, table, batch=4, epochs=2.0, lr=lr, max_grad_norm=0.02, cache=cache)
    brute = oracle(made, l_z={index: None for index in range(len(PLACES))})
    known = {key: value for key, value in table.items() if key != "ema_rate"}
    everything = list(brute.rows)
    state = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in brute.student.named_parameters()}
    for step in range(steps):
        brute.rows = [everything[row.index] for row in made.window_rows(step)[1]]
        coin = {s.name for s in made.job.method.active(0, step)} == {"on_policy"}
        _, grads = brute.step(known, coin if table["name"] == "gkd" else None)
        norm = float(torch.cat([g.flatten() for g in grads.values()]).norm())
        assert norm > 0.02, "nothing to clip"
        with torch.no_grad():
            for name, p in brute.student.named_parameters():
                g = grads[name] * 0.02 / (norm + 1e-6)
                m, v = state[name]
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                bias = (1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1))
                p -= lr * (1 - step / steps) * (m / bias[0]) / ((v / bias[1]).sqrt() + 1e-8)
            if table["name"] == "sdft":
                assert brute.teacher is not None
                for mine, theirs in zip(brute.teacher.parameters(), brute.student.parameters(), strict=True):
                    mine.copy_(0.7 * mine + 0.3 * theirs)
    before = copy.deepcopy(made.job.student)
    made.train()
    moved = {n: p - q for (n, p), q in zip(made.job.student.named_parameters(), before.parameters(), strict=True)}
    wanted = {n: p - q for (n, p), q in zip(brute.student.named_parameters(), before.parameters(), strict=True)}
    assert worst(moved, wanted) < 1e-6  # Adam divides by square roots: small differences of small gradients grow
    if made.ema:
        assert brute.teacher is not None
        for mine, theirs in zip(made.ema.model.parameters(), brute.teacher.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_what_a_step_reports(tmp_path: Path) -> None:
    """Each signal's mean and, on the teacher's prompts of training, overlap@16 and entropies."""
    made = make(tmp_path, METHODS["dudi"])
    kit.step(made)
    reported = record(made.meter.sums, made.job.method.signals)
    brute = oracle(made)
    with torch.no_grad():
        wanted = {
            "sequence": brute.sequence(0.1, "y_prime"),
            "off_policy": brute.off_policy("reverse_kl", 0.5),
            "on_policy": brute.on_policy("reverse_kl", 0.5, "crosslingual"),
        }
        for name, value in wanted.items():
            assert reported["signal"][name]["loss"] == pytest.approx(value.item(), rel=1e-9)
        measures: dict[str, list[float]] = {
            "overlap": [],
            "entropy_student": [],
            "entropy_teacher": [],
            "overlap_mass": [],
        }
        for index, e in brute.rows:
            both, rollout = brute.prompts("crosslingual", index, e), brute.respond(index, "y_tilde")
            assert both is not None
            s, t = (
                brute.log_softmax(brute.student, both[0], rollout),
                brute.log_softmax(brute.teacher, both[1], rollout),
            )
            for log_s, log_t in zip(s.tolist(), t.tolist(), strict=True):
                top = [set(sorted(range(kit.VOCAB), key=lambda v, p=p: -p[v])[:16]) for p in (log_s, log_t)]
                measures["overlap"].append(len(top[0] & top[1]) / 16)
                measures["overlap_mass"].append(sum(math.exp(log_s[v]) for v in top[0] & top[1]))
                measures["entropy_student"].append(-sum(math.exp(p) * p for p in log_s))
                measures["entropy_teacher"].append(-sum(math.exp(p) * p for p in log_t))
    for name, values in measures.items():
        assert reported["measure"]["y_tilde"][name] == pytest.approx(sum(values) / len(values), rel=1e-9)
