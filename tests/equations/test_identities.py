"""What must hold of whole optimizer steps whatever the numbers: zeros, signs, counts, randomness."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.oracle import Oracle, agree, lively, use_exact_norms
from transformers import PreTrainedModel

from dudi.example import Example
from dudi.recipe.schema import Limits
from dudi.rollouts import Request, Rollout
from dudi.text.chat import Chat
from dudi.training.trainer import DistillationTrainer
from dudi.training.window import Window

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
DUDI_TOKENS = {"name": "dudi", "without": ("sequence",)}


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    use_exact_norms(monkeypatch)


def short(count: int = 6) -> list[Example]:
    """Short rows in several languages, one with a system turn, one with several turns."""
    rows = [
        Example(kit.message("Apa kabar?", system="Singkat saja."), "Baik.", "id", "a"),
        Example(kit.message("Xin chào", "Chào bạn", "Bạn khỏe không?"), "Tôi khỏe, cảm ơn.", "vi", "b"),
        Example(kit.message("ไปไหน"), "ไปตลาด", "th", "c"),
        Example(kit.message("Ano ito?"), "Isang aklat.", "tl", "d"),
        Example(kit.message("நலமா?"), "நலம்", "ta", "e"),
        Example(kit.message("Apa ini?"), "Sebuah buku tulis.", "ms", "f"),
    ]
    return rows[:count]


def likely_end(seed: int = 1) -> PreTrainedModel:
    """A student that ends an answer now and then: EOS gets a logit that many hidden states agree with."""
    made = lively(kit.model(seed, rows=kit.VOCAB + 6, tied=False))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        ids = torch.randint(3, kit.VOCAB, (8, 40), generator=g)
        hidden = made.base_model(input_ids=ids).last_hidden_state.flatten(0, 1)
        weight = made.get_output_embeddings().weight
        common = (hidden @ weight[3 : kit.VOCAB].T).logsumexp(-1)
        weight[2] = torch.linalg.lstsq(hidden, common + 0.5).solution
    return made


def window_of(made: DistillationTrainer, step: int = 0, builder: Any = None) -> Window:
    """The window of a step."""
    epoch, rows, weight = made.window_rows(step)
    signals = made.job.method.active(made.job.seed, step)
    return (builder or made.job.builder).build(made.job.student, signals, rows, weight, epoch)


def oracle_of(made: DistillationTrainer, rows: Sequence[Example], window: Window) -> Oracle:
    """The brute force on the responses and draws of a window."""
    responses, l_z = {}, {}
    for view, items in window.items.items():
        for row, item in zip(window.rows, items, strict=True):
            assert item is not None
            responses[row.index, view.name] = item.response
            if view.name == "y_tilde":
                l_z[row.index] = item.l_z
    return Oracle(
        made.job.builder.chat.tokenizer,
        made.job.student,
        made.teacher and made.teacher.model,
        made.job.reference,
        list(enumerate(rows)),
        lambda index, name: responses[index, name],
        l_z,
    )


def size(grads: Mapping[str, torch.Tensor]) -> float:
    """The largest entry of a gradient."""
    return max(float(g.abs().max()) for g in grads.values())


class Recorder:
    """A sampler that keeps what it was asked and what it answered."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, []

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        answers = self.inner(model, requests)
        self.calls.append(list(zip(requests, answers, strict=True)))
        return answers


# ── teacher == student ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    "table",
    [
        {"name": "gkd", "lam": 0.0},
        {"name": "gkd", "lam": 1.0},
        {"name": "gkd", "variant": "sum"},
        {**DUDI_TOKENS, "verbalizer": "none"},
    ],
    ids=["off", "on", "sum", "dudi"],
)
def test_nothing_to_learn_from_oneself(tmp_path: Path, table: dict[str, Any], divergence: str) -> None:
    student = lively(kit.model(1, rows=kit.VOCAB + 6))
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    more: dict[str, Any] = {"student": student, "examples": short(), "micro_batch": 4}
    table = {**table, "divergence": divergence}
    loss, grads = kit.step(kit.trainer(tmp_path / "same", table, teacher=teacher, **more))
    assert abs(loss) < 1e-14 and size(grads) < 1e-13
    assert set(grads) == {name for name, _ in student.named_parameters()}, "zero is not the same as nothing computed"
    with torch.no_grad():
        teacher.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    loss, grads = kit.step(kit.trainer(tmp_path / "other", table, teacher=teacher, **more))
    assert loss > 1e-4 and size(grads) > 1e-4


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("mode", ["english", "multilingual", "crosslingual", "mix"])
def test_a_verbalizer_makes_a_teacher_of_the_student_itself(tmp_path: Path, mode: str, divergence: str) -> None:
    student = lively(kit.model(1, rows=kit.VOCAB + 6))
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    table = {**DUDI_TOKENS, "verbalizer": mode, "divergence": divergence}
    loss, grads = kit.step(kit.trainer(tmp_path, table, student=student, teacher=teacher, examples=short()))
    assert loss > 1e-3 and size(grads) > 1e-3


# ── SPIN ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
SPINS = [
    {"name": "spin"},
    {"name": "spin", "variant": "online", "spin_beta": 0.5},
    {"name": "dudi", "alpha": 1.0, "without": ("off_policy", "on_policy")},
]


@pytest.mark.parametrize("table", SPINS, ids=["original", "online", "dudi"])
def test_spin_starts_at_log_2_and_moves_towards_y(tmp_path: Path, table: dict[str, Any]) -> None:
    """At theta = R the loss is log 2; a step against its gradient raises the likelihood of y and lowers that of y'.

    (Their difference must grow in any model; that each moves its own way needs responses that do not share much.)
    """
    student = lively(kit.model(3, rows=kit.VOCAB + 6))
    reference = copy.deepcopy(student).requires_grad_(False).eval()
    made = kit.trainer(tmp_path, table, student=student, reference=reference, examples=short())
    loss, grads = kit.step(made)
    assert loss == pytest.approx(math.log(2), rel=1e-12)
    window = window_of(made)
    before = log_likelihoods(oracle_of(made, short(), window), window)
    with torch.no_grad():
        for name, p in student.named_parameters():
            p -= 1e-3 * grads[name]
    after = log_likelihoods(oracle_of(made, short(), window), window)
    assert after["y"] > before["y"] + 1e-5
    other = next(name for name in before if name != "y")
    assert after[other] < before[other] - 1e-5
    assert kit.step(made)[0] < loss


def log_likelihoods(brute: Oracle, window: Window) -> dict[str, float]:
    """log S(response | x) by view, summed over rows."""
    with torch.no_grad():
        return {
            view.name: sum(
                brute.sequence_log_prob(brute.student, brute.x(e), brute.respond(index, view.name)).item()
                for index, e in brute.rows
            )
            for view in window.items
        }


# ── randomness ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_y_prime_and_y_tilde_are_two_samples(tmp_path: Path) -> None:
    """Without a verbalizer both have the same prompt: only the key tells them apart."""
    made = kit.trainer(tmp_path, {"name": "dudi", "verbalizer": "none"}, examples=short(), forced=False)
    recorder = Recorder(made.job.builder.engine)
    window = window_of(made, builder=replace(made.job.builder, engine=recorder))
    assert len(recorder.calls) == 1, "all rollouts of a step are one call"
    keys = [request.key for request, _ in recorder.calls[0]]
    assert len(keys) == 12 and len(set(keys)) == 12
    by_view = {view.name: items for view, items in window.items.items()}
    different = 0
    for a, b in zip(by_view["y_prime"], by_view["y_tilde"], strict=True):
        assert a is not None and b is not None
        assert a.student == b.student
        different += a.response != b.response
    assert different == 6
    drawn = {key[-1]: {k[:-1] for k in keys if k[-1] == key[-1]} for key in keys}
    assert set(drawn) == {"y_prime", "y_tilde"} and drawn["y_prime"] == drawn["y_tilde"], "keys differ by view alone"


def test_rollouts_repeat_and_change_with_epoch_seed_and_salt(tmp_path: Path) -> None:
    made = kit.trainer(tmp_path / "a", {"name": "gkd", "variant": "sum"}, examples=short(), forced=False)
    other = kit.trainer(tmp_path / "b", {"name": "gkd", "variant": "sum"}, examples=short(), forced=False, seed=1)

    def responses(builder: Any, epoch: int) -> list[tuple[int, ...]]:
        rows = list(made.job.rows)
        window = builder.build(made.job.student, made.job.method.signals, rows, [1.0] * len(rows), epoch)
        return [item.response for view, items in window.items.items() for item in items if view.response.sampled]

    first = responses(made.job.builder, 0)
    assert len(first) == 6 and first == responses(made.job.builder, 0)
    for changed in (
        responses(made.job.builder, 1),
        responses(other.job.builder, 0),
        responses(made.job.eval_builder, 0),
    ):
        assert all(a != b for a, b in zip(first, changed, strict=True))


def test_duplicates_of_a_row_get_rollouts_of_their_own(tmp_path: Path) -> None:
    """Real data has the same row, and the same id, twice."""
    rows = [short()[0]] * 8
    made = kit.trainer(tmp_path, {"name": "dudi"}, examples=rows, forced=False)
    window = window_of(made)
    by_view = {view.name: [item for item in items if item] for view, items in window.items.items()}
    assert len({item.response for item in by_view["y"]}) == 1
    assert len({item.response for item in by_view["y_prime"]}) == 8
    assert len({item.response for item in by_view["y_tilde"]}) == 8
    assert len({item.l_z for item in by_view["y_tilde"]}) > 2, "each row draws its own l_z"


# ── ends of responses ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("table", [{"name": "dudi"}, {"name": "gkd", "variant": "sum"}], ids=["dudi", "gkd"])
def test_a_step_on_sampled_rollouts_covers_exactly_their_tokens(
    tmp_path: Path, table: dict[str, Any], pad_is_eos: bool
) -> None:
    """Some stop, some are cut at the limit: no EOS is appended to those, and EOS counts in the others."""
    tok = kit.tokenizer()
    if pad_is_eos:
        tok.pad_token = tok.eos_token
    limits = Limits(prompt=400, verbalizer=300, total=600, rollout=7, teacher_prompt=2000)
    made = kit.trainer(
        tmp_path, table, student=likely_end(), examples=short(), forced=False, limits=limits, tok=tok, micro_batch=4
    )
    end = made.job.builder.chat.turn_end
    window = window_of(made)
    sampled = [item for view, items in window.items.items() if view.response.sampled for item in items if item]
    assert {item.finished for item in sampled} == {True, False}
    for item in sampled:
        assert end not in item.response[:-1]
        assert (item.response[-1] == end) is item.finished
        assert item.finished or len(item.response) == 7
    counts = window.counts(made.job.method.signals)
    for view, items in window.items.items():
        tokens = sum(len(item.response) for item in items if item)
        name = {"y": "off_policy", "y_tilde": "on_policy"}.get(view.name)
        assert name is None or counts[name] == tokens
    agree(kit.step(made), oracle_of(made, short(), window).step(table), 1e-9)


@pytest.mark.parametrize("name", ["sft", "dft", "gkd-sum"])
def test_the_end_is_trained_where_it_is_also_the_padding(tmp_path: Path, name: str) -> None:
    """Masking labels by the pad id would drop the EOS of every answer."""
    table = {"name": "gkd", "variant": "sum"} if name == "gkd-sum" else {"name": name}
    tok = kit.tokenizer()
    tok.pad_token = tok.eos_token
    made = kit.trainer(tmp_path, table, examples=short(), tok=tok, micro_batch=4)
    chat = made.job.builder.chat
    assert chat.pad == chat.turn_end == tok.eos_token_id
    window = window_of(made)
    for items in window.items.values():
        assert any(item and item.response[-1] == chat.turn_end for item in items)
    brute = oracle_of(made, short(), window)
    found = kit.step(made)
    agree(found, brute.step(table), 1e-9)
    whole = brute.y
    brute.y = lambda e: whole(e)[:-1]  # type: ignore[method-assign]
    assert found[0] != pytest.approx(brute.step(table)[0], rel=1e-4)


def test_a_cut_answer_does_not_train_an_end(tmp_path: Path) -> None:
    """y beyond limits.total: the tokens that fit, and no EOS after them."""
    limits = Limits(prompt=60, verbalizer=300, total=44, rollout=8, teacher_prompt=2000)
    made = kit.trainer(tmp_path, {"name": "sft"}, examples=short(), limits=limits)
    items = [item for items in window_of(made).items.values() for item in items if item]
    end = made.job.builder.chat.turn_end
    cut = [item for item in items if not item.finished]
    assert 0 < len(cut) < len(items)
    for item in items:
        assert (item.response[-1] == end) is item.finished
        assert len(item.student) + len(item.response) <= 44
    assert all(len(item.student) + len(item.response) == 44 for item in cut)


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_counts_are_taken_after_sampling(tmp_path: Path) -> None:
    """8 gold tokens and 64 sampled ones: each term is a mean over its own tokens."""
    chat = Chat(kit.tokenizer(), None, {})
    text = next(y for y in ("1234567890"[:n] for n in range(1, 11)) if len(chat.response(kit.message("?"), y)) == 8)
    rows = [Example(kit.message("?"), text, "id", "a")]
    long = Rollout(tuple(range(3, 67)), False)
    made = kit.trainer(tmp_path, {"name": "gkd", "variant": "sum", "divergence": "reverse_kl"}, examples=rows)
    builder = made.job.builder
    object.__setattr__(builder, "engine", kit.Forced(chat, {(0, "y_tilde"): long}))
    window = window_of(made)
    assert window.counts(made.job.method.signals) == {"off_policy": 8, "on_policy": 64}
    brute = oracle_of(made, rows, window)
    assert len(brute.y(rows[0])) == 8 and len(brute.respond(0, "y_tilde")) == 64
    agree(kit.step(made), brute.step({"name": "gkd", "variant": "sum", "divergence": "reverse_kl"}), 1e-9)


@pytest.mark.parametrize(
    "table",
    [
        {"name": "sft"},
        {"name": "spin", "variant": "online"},
        {"name": "gkd", "variant": "sum"},
        {"name": "dudi", "verbalizer": "none"},
    ],
    ids=lambda t: t["name"],
)
def test_a_mean_is_divided_once(tmp_path: Path, table: dict[str, Any]) -> None:
    """The same rows three times over, in any split: the same loss and gradient."""
    rows = short(4)

    def one(name: str, copies: int, **training: Any) -> tuple[float, dict[str, torch.Tensor]]:
        made = kit.trainer(tmp_path / name, table, examples=rows * copies, batch=4 * copies, **training)
        forced = kit.Forced(made.job.builder.chat)
        given = {
            (k, view): forced.response(k % 4, view)
            for k in range(len(rows) * copies)
            for view in ("y_prime", "y_tilde")
        }
        object.__setattr__(made.job.builder, "engine", kit.Forced(made.job.builder.chat, given))
        return kit.step(made)

    first = one("once", 1)
    agree(one("thrice", 3), first, 1e-9)
    agree(one("thrice one by one", 3, micro_batch=1), first, 1e-9)
    agree(one("once by tokens", 1, micro_batch_tokens=200), first, 1e-9)


def test_terms_add_up(tmp_path: Path) -> None:
    """Dropping a term leaves the others' weights as they are."""
    parts = ("sequence", "off_policy", "on_policy")

    def one(*without: str) -> tuple[float, dict[str, torch.Tensor]]:
        table = {"name": "dudi", "without": without}
        return kit.step(kit.trainer(tmp_path / "-".join(without), table, examples=short()))

    whole = one()
    alone = [one(*(p for p in parts if p != kept)) for kept in parts]
    total = {name: sum(grads[name] for _, grads in alone) for name in whole[1]}
    agree((sum(loss for loss, _ in alone), total), whole, 1e-9)
    assert all(loss > 1e-3 for loss, _ in alone)
