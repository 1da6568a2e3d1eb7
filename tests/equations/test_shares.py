"""`training.equalize`: a step's gradient is that of each language's own mean loss, in the shares asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.additions.unlikely import unlikely
from kit.oracle import lively, use_exact_norms

from dudi.example import Example
from dudi.files import read_lines
from dudi.methods import METHODS
from dudi.recipe.schema import Limits
from dudi.training.shares import Shares
from dudi.training.trainer import DistillationTrainer

TABLES: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "sft-all": {"name": "sft", "loss_on": "all_assistant"},
    "spin": {"name": "spin"},
    "sdft": {"name": "sdft"},
    "seqkd": {"name": "seqkd", "variant": "jsd"},
    "gkd": {"name": "gkd", "variant": "sum"},
    "dudi": {"name": "dudi"},
    "unlikely": {"name": "unlikely"},
}
LENGTHS = {"id": (70, 40, 60), "my": (9,), "th": (14, 8)}
"""Characters of y: Indonesian has many times the tokens of Burmese."""


@pytest.fixture(autouse=True)
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    use_exact_norms(monkeypatch)
    monkeypatch.setitem(METHODS, "unlikely", unlikely)


def examples(*languages: str) -> list[Example]:
    """Rows of some of the languages, the languages mixed; a row is the same whichever others are there."""
    found = []
    for l in LENGTHS:
        rows = [e for e in kit.builtin() if e.l == l][: len(LENGTHS[l])]
        for e, size in zip(rows, LENGTHS[l], strict=True):
            x = tuple(replace(m, content=m.content[:12].strip()) for m in e.x)
            found.append(replace(e, x=x, y=(e.y * 9)[:size].strip()))
    kept = [e for k in range(3) for e in found[k::3]]
    return [e for e in kept if e.l in (languages or LENGTHS)]


def made(folder: Path, name: str, rows: list[Example], equalize: Any = "none", **more: Any) -> DistillationTrainer:
    """All rows in one step. A row's forced responses and draws go by its number: here, among all rows."""
    t = kit.trainer(folder, TABLES[name], examples=rows, **{"batch": len(rows), "equalize": equalize, **more})
    for model in (t.job.student, t.job.teacher, t.job.reference):
        if model is not None:
            lively(model)
    number = {e.id: k for k, e in enumerate(examples())}
    t.job = replace(t.job, rows=[replace(row, index=number[row.example.id]) for row in t.job.rows])
    forced, stored = kit.Forced(t.job.builder.chat, longest=25), t.job.builder.stored
    object.__setattr__(t.job.builder, "engine", forced)
    if stored:
        object.__setattr__(t.job.builder, "stored", {k: forced.response(k, "stored") for k in number.values()})
    return t


def combined(
    folder: Path, name: str, shares: Mapping[str, float], **more: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """sum of s_l L_l, and of its gradients: each language alone, in a step of its own, by the plain mean."""
    loss, grads = 0.0, {}
    for l, share in shares.items():
        alone = kit.step(made(folder / l, name, examples(l), **more))
        loss += share * alone[0]
        for parameter, grad in alone[1].items():
            grads[parameter] = grads.get(parameter, 0) + share * grad
    return loss, grads


def assert_equal(one: tuple[float, Any], other: tuple[float, Any], tolerance: float = 1e-9) -> None:
    """The same loss, and the same gradient of every parameter, relative to the largest."""
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    largest = max(float(grad.abs().max()) for grad in other[1].values())
    assert largest > 1e-5 and one[1].keys() == other[1].keys()
    for parameter, grad in one[1].items():
        assert float((grad - other[1][parameter]).abs().max()) <= tolerance * largest, parameter


def shares_of(asked: Mapping[str, float]) -> dict[str, float]:
    return {l: share / sum(asked.values()) for l, share in asked.items()}


@pytest.mark.parametrize(
    ("name", "asked"),
    [*((name, "tokens") for name in TABLES), *((name, {"id": 2.0, "my": 1.0, "th": 0.25}) for name in ("sft", "dudi"))],
)
def test_a_step_is_its_languages_in_the_shares_asked_for(tmp_path: Path, name: str, asked: Any) -> None:
    shares = shares_of(dict.fromkeys(LENGTHS, 1.0) if asked == "tokens" else asked)
    wanted = combined(tmp_path / "alone", name, shares)
    t = made(tmp_path / "all", name, examples(), asked, micro_batch=3)
    assert_equal(kit.step(t), wanted)
    plain = made(tmp_path / "plain", name, examples(), micro_batch=3)
    assert kit.step(plain)[0] != pytest.approx(wanted[0], rel=1e-4), "the shares are those of the tokens"
    counts, plainly = (
        {key: value for key, value in one.meter.sums.items() if key.startswith("signal/") and key.endswith("/count")}
        for one in (t, plain)
    )
    assert counts == plainly and any(counts.values()), "metrics count tokens, whatever their weight"


@pytest.mark.parametrize("split", [{"micro_batch": 1}, {"micro_batch_tokens": 300, "cache": "memory"}], ids=str)
def test_the_split_changes_nothing(tmp_path: Path, split: dict[str, Any]) -> None:
    whole = kit.step(made(tmp_path / "a", "dudi", examples(), "tokens"))
    assert_equal(kit.step(made(tmp_path / "b", "dudi", examples(), "tokens", **split)), whole)


def test_rows_that_fill_up_count_for_nothing(tmp_path: Path) -> None:
    """A process's ragged end is filled with a row of weight 0, here the only one of its language."""
    t = made(tmp_path / "a", "dudi", examples("id", "th"), {"id": 1.0, "th": 1.0, "my": 8.0})
    rows = made(tmp_path / "b", "dudi", examples("my")).job.rows
    before = t.window_rows

    def filled(step: int) -> Any:
        epoch, found, weight = before(step)
        return epoch, [*found, *rows], [*weight, 0.0]

    wanted = kit.step(t)
    t.window_rows = filled  # type: ignore[method-assign]
    assert_equal(kit.step(t), wanted)


def test_a_step_without_a_language_is_shared_by_the_others(tmp_path: Path) -> None:
    asked = {"id": 2.0, "my": 5.0, "th": 1.0}
    t = made(tmp_path / "all", "dudi", examples("id", "th"), asked)
    assert_equal(kit.step(t), combined(tmp_path / "alone", "dudi", {"id": 2 / 3, "th": 1 / 3}))


def test_a_term_that_a_language_lacks_is_missing_from_its_own_loss(tmp_path: Path) -> None:
    """Every z in Burmese is too long: what its share has less of, no other language gets."""
    limits = Limits(prompt=400, verbalizer=300, total=600, rollout=8, teacher_prompt={"default": 2000, "my": 1})
    asked = {"id": 1.0, "my": 1.0, "th": 1.0}
    t = made(tmp_path / "all", "dudi", examples(), "tokens", limits=limits)
    assert_equal(kit.step(t), combined(tmp_path / "alone", "dudi", shares_of(asked), limits=limits))
    assert t.meter.sums["signal/on_policy/my/count"] == 0 < t.meter.sums["signal/off_policy/my/count"]


def test_one_language_has_it_all(tmp_path: Path) -> None:
    one, other = (made(tmp_path / str(k), "dudi", examples("id"), e) for k, e in enumerate(("none", "tokens")))
    assert_equal(kit.step(one), kit.step(other), 1e-12)


def test_the_loss_on_rows_held_out_is_shared_alike(tmp_path: Path) -> None:
    """As many rows in evaluation as in a step: the same loss, where nothing is sampled."""
    t = made(tmp_path / "a", "sft", examples(), {"id": 3.0, "my": 1.0, "th": 1.0}, evals=examples())
    assert t.evaluate()["eval_loss"] == pytest.approx(kit.step(t)[0], rel=1e-9)
    plain = made(tmp_path / "b", "sft", examples(), evals=examples())
    assert plain.evaluate()["eval_loss"] == pytest.approx(kit.step(plain)[0], rel=1e-9)


# ── the order of an epoch ────────────────────────────────────────────────────────────────────────────────────────────
def test_each_language_is_dealt_out_evenly(tmp_path: Path) -> None:
    """Eight rows of one language to one of the other: with nine rows a step, both are in each."""
    rows = [replace(e, l="id") for e in kit.builtin()[:64]] + [replace(e, l="my") for e in kit.builtin()[64:72]]
    t = kit.trainer(tmp_path, {"name": "sft"}, examples=rows, batch=9, equalize="tokens")
    plain = kit.trainer(tmp_path / "plain", {"name": "sft"}, examples=rows, batch=9)
    steps = [Counter(row.example.l for row in t.batch_rows(step)[1]) for step in range(8)]
    assert steps == [Counter(id=8, my=1)] * 8
    assert any(not any(row.example.l == "my" for row in plain.batch_rows(step)[1]) for step in range(8))
    epochs = [[row.index for step in range(8 * e, 8 * e + 8) for row in t.batch_rows(step)[1]] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(72)) and epochs[0] != epochs[1]
    order = [number for number in epochs[0] if rows[number].l == "id"]
    drawn = [row.index for step in range(8) for row in plain.batch_rows(step)[1] if row.example.l == "id"]
    assert order == drawn, "within a language, the order is the one drawn"
    assert Shares(None).dealt([2, 0, 1], t.job.rows) == [2, 0, 1]


def test_with_twice_as_many_rows_as_steps_no_full_step_lacks_a_language(tmp_path: Path) -> None:
    """Any mixture: 2 to 7 languages, 8 to 300 rows each."""
    row = made(tmp_path, "sft", examples("my")).job.rows[0]
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        sizes = torch.randint(8, 300, (int(torch.randint(2, 8, (1,), generator=g)),), generator=g).tolist()
        named = [f"l{k}" for k, size in enumerate(sizes) for _ in range(size)]
        rows = [replace(row, example=replace(row.example, l=l)) for l in named]
        batch = int(torch.randint(4, 33, (1,), generator=g))
        order = Shares({}).dealt(torch.randperm(len(rows), generator=g).tolist(), rows)
        assert sorted(order) == list(range(len(rows)))
        steps = [{named[k] for k in order[at : at + batch]} for at in range(0, len(order) - batch + 1, batch)]
        for k, size in enumerate(sizes):
            assert size < 2 * len(rows) / batch or all(f"l{k}" in step for step in steps), (seed, k)


def test_two_epochs_are_the_same_whatever_the_split(tmp_path: Path) -> None:
    """Steps that hold one, two or three languages."""
    ends = []
    for k, size in enumerate((3, 7)):
        t = made(tmp_path / str(k), "gkd", examples(), "tokens", batch=4, micro_batch=size, epochs=2.0)
        t.train()
        ends.append([line["loss"] for line in read_lines(tmp_path / str(k) / "metrics.jsonl")])
    assert len(ends[0]) == 4 and ends[0] == pytest.approx(ends[1], rel=1e-9)
