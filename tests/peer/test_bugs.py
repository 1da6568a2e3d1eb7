"""Bugs found in other distillation code: each is a test of ours, and shows what the bug would have given.

The bugs were measured on TRL 1.16 or read in the code named. What is compared with TRL itself is in tests/peer.
"""

from __future__ import annotations

import inspect
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import kit
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import dudi.loss.chunked
import dudi.models.load
import dudi.recipe.schema
import dudi.run.pipeline
from dudi.data.load import load_rows
from dudi.errors import DudiError
from dudi.example import Message
from dudi.files import read_lines
from dudi.loss.chunked import Positions, Term, score
from dudi.loss.head import Head
from dudi.loss.losses import reverse_kl, token_loss
from dudi.methods import GOLD, METHODS, Loss, TokenSignal, build_method, views
from dudi.recipe.read import Data, Limits, Recipe, parse_recipe
from dudi.recipe.schema import Section
from dudi.recipe.stages import TEACHER, Generate, plan
from dudi.rollouts import Request, Rollout, Sampling
from dudi.rollouts.local import LocalEngine
from dudi.text.chat import Chat
from dudi.training.trainer import DistillationTrainer, Job, arguments
from dudi.training.window import Row, Window, collate, encode_rows

GOLD_STEP = {"name": "gkd", "lam": 0.0, "divergence": "reverse_kl"}
SAMPLED_STEP = {"name": "gkd", "lam": 1.0, "divergence": "reverse_kl"}
Step = tuple[float, dict[str, Tensor]]


def assert_close(a: Step, b: Step, factor: float = 1.0, relative: float = 1e-10) -> None:
    """a is factor times b, the loss and every gradient."""
    assert a[0] == pytest.approx(factor * b[0], rel=relative)
    assert a[1].keys() == b[1].keys()
    for name, grad in a[1].items():
        assert float((grad - factor * b[1][name]).norm()) <= relative * abs(factor) * float(b[1][name].norm()), name


def norm(step: Step) -> float:
    return float(torch.stack([g.norm() for g in step[1].values()]).norm())


def window(made: DistillationTrainer, step: int = 0) -> Window:
    epoch, rows, weight = made.window_rows(step)
    signals = made.job.method.active(made.job.seed, step)
    return made.job.builder.build(made.decoder.refreshed(), signals, rows, weight, epoch)


def checkpoints_activations(model: torch.nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def with_sampler(made: DistillationTrainer, sampler: Any) -> DistillationTrainer:
    made.job = replace(made.job, builder=replace(made.job.builder, engine=sampler))
    return made


# ── counts and means ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_on_policy_loss_divided_by_the_gold_token_count(tmp_path: Path) -> None:
    """TRL GKD and GOLD: counts are taken before sampling. Here gold answers several times as long change nothing."""
    short = [replace(e, y=e.y[:20]) for e in kit.builtin()[::13][:8]]
    long = [replace(e, y=e.y[:20] * 8) for e in short]
    made = [kit.trainer(tmp_path / str(k), SAMPLED_STEP, examples=e) for k, e in enumerate((short, long))]
    assert_close(kit.step(made[0]), kit.step(made[1]))
    gold = [sum(len(row.y) for row in m.job.rows) for m in made]
    sampled = sum(len(i.response) for items in window(made[0]).items.values() for i in items if i)
    assert window(made[0]).counts(made[0].job.method.active(0, 0)) == {"on_policy": sampled}
    assert gold[1] > 4 * gold[0] and sampled not in gold  # divided by these, the loss would be off by as much


def test_gradient_1_over_ga_under_accumulation(tmp_path: Path) -> None:
    """TRL GOLD and IW-OPD: 8 rows at once, 4 x 2, 2 x 4 and 1 x 8 differ by the number of micro-batches."""
    whole = kit.step(kit.trainer(tmp_path / "8", {"name": "dudi"}))
    for size in (4, 2, 1):
        made = kit.trainer(tmp_path / str(size), {"name": "dudi"}, micro_batch=size)
        calls: list[float] = []
        inner = made._micro_batch
        made._micro_batch = lambda *a, _inner=inner, _calls=calls: _calls.append(1.0) or _inner(*a)  # type: ignore[func-returns-value,method-assign]
        assert_close(kit.step(made), whole)
        assert len(calls) == 8 // size


def test_a_mean_of_micro_batch_means(tmp_path: Path) -> None:
    """The repair that is often made instead: with answers of unequal length the mean of means is another number."""
    examples = sorted(kit.builtin()[:40], key=lambda e: len(e.y))[::5][:8]
    whole = kit.step(kit.trainer(tmp_path / "whole", GOLD_STEP, examples=examples, micro_batch=2))
    parts = [
        kit.step(kit.trainer(tmp_path / str(k), GOLD_STEP, examples=examples[k : k + 2], batch=2)) for k in (0, 2, 4, 6)
    ]
    assert abs(sum(p[0] for p in parts) / 4 / whole[0] - 1) > 1e-3


def test_divided_by_the_token_count_twice(tmp_path: Path) -> None:
    """torchtune: both KD recipes. Loss and gradient here are those of one plain mean over the tokens."""
    made = kit.trainer(tmp_path, GOLD_STEP, autocast=False)
    student, teacher = made.student, made.job.teacher
    assert teacher is not None
    terms = []
    for row in made.job.rows:
        ids = torch.tensor([[*row.x, *row.y]])
        log_p, log_q = (
            torch.log_softmax(m(input_ids=ids).logits[0, len(row.x) - 1 : -1, : kit.VOCAB], -1)
            for m in (student, teacher)
        )
        terms.append((log_p.exp() * (log_p - log_q)).sum(-1))
    plain = torch.cat(terms)
    plain.mean().backward()
    grads = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    got = kit.step(made)
    assert_close(got, (float(plain.mean().detach()), grads), relative=1e-9)
    assert len(plain) > 100  # the bug: a gradient so many times too small


def test_unrenormalised_top_k_has_a_gradient_where_teacher_is_student() -> None:
    """verl (dropped it), NeMo-RL. A divergence has none there; a truncated sum of p (log p - log q) has."""
    torch.manual_seed(0)
    hidden = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(60, 16, dtype=torch.float64, requires_grad=True)
    head, frozen = Head(weight, vocab=60), Head(weight.detach().clone(), vocab=60)
    for loss in (Loss.REVERSE_KL, Loss.FORWARD_KL, Loss.JSD):
        term = Term(token_loss(TokenSignal("one", 1.0, loss, GOLD)), torch.ones(5))
        labels = torch.zeros(5, dtype=torch.long)
        result = score(hidden, head, frozen, [Positions(labels, (term,), hidden.detach())]).loss
        result.backward()
        assert (
            abs(float(result.detach())) < 1e-12
            and float(hidden.grad.norm()) < 1e-12
            and float(weight.grad.norm()) < 1e-11
        )
        hidden.grad = weight.grad = None
    log_p = torch.log_softmax(hidden @ weight.T, -1)
    top = log_p.topk(8, -1).indices
    truncated = (log_p.exp() * (log_p - log_p.detach())).gather(-1, top).sum()
    truncated.backward()
    assert abs(float(truncated.detach())) < 1e-12 and float(hidden.grad.norm()) > 0.1


# ── masks and ends ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_loss_sliced_at_the_padded_prompt_width(tmp_path: Path) -> None:
    """TRL before 2026-06: beside a long prompt, a row with a short one lost the start of its answer."""
    rows = sorted(kit.builtin()[:60], key=lambda e: sum(len(m.content) for m in e.x))
    pair = [rows[0], rows[-1]]
    both = kit.trainer(tmp_path / "both", GOLD_STEP, examples=pair, batch=2)
    x, y = [len(r.x) for r in both.job.rows], [len(r.y) for r in both.job.rows]
    (block,) = collate(window(both), [0, 1], 0, torch.device("cpu")).values()
    assert sorted(block.per_row(block.weight).tolist()) == sorted(y)
    alone = [kit.step(kit.trainer(tmp_path / str(k), GOLD_STEP, examples=pair[k : k + 1], batch=1))[0] for k in (0, 1)]
    assert kit.step(both)[0] == pytest.approx((alone[0] * y[0] + alone[1] * y[1]) / sum(y), rel=1e-10)
    assert max(x[0] + y[0] - max(x), 0) < y[0] / 2  # what the slice would have left of the first answer


def test_end_masked_where_it_is_also_the_padding(tmp_path: Path) -> None:
    """TRL before 2026-07: a student that never learns to stop. Here every answer keeps its end as a target."""
    tok = kit.tokenizer()
    tok.pad_token = tok.eos_token
    made = kit.trainer(tmp_path, {"name": "sft"}, tok=tok)
    chat = made.job.builder.chat
    assert chat.pad == chat.turn_end
    (block,) = collate(window(made), list(range(8)), chat.pad, torch.device("cpu")).values()
    ends = int((block.labels == chat.turn_end).sum())
    assert ends == 8 and len(block.labels) == sum(len(r.y) for r in made.job.rows)
    masked = len(block.labels) - ends  # the targets of the bug, by id
    assert window(made).counts(made.job.method.signals) == {"off_policy": masked + 8}


def test_end_appended_to_truncated_rollouts(tmp_path: Path) -> None:
    """KDFlow: a student that learns to stop early. Here the finish reason decides, and a cut response has no end."""
    made = kit.trainer(tmp_path, SAMPLED_STEP, forced=False, limits=Limits(prompt=400, total=600, rollout=5))
    chat = made.job.builder.chat
    items = [i for view in window(made).items.values() for i in view if i is not None]
    cut = [i for i in items if not i.finished]
    assert len(items) == 8 and cut
    assert all(len(i.response) == 5 and not set(i.response) & set(chat.stop_ids) for i in cut)
    assert all(i.response[-1] in chat.stop_ids for i in items if i.finished)
    assert window(made).counts(made.job.method.active(0, 0))["on_policy"] == sum(len(i.response) for i in items)


def test_end_appended_to_a_truncated_answer() -> None:
    """The same for a gold answer that is cut at limits.total."""
    chat = Chat(kit.tokenizer(), None, {})
    example = kit.builtin()[0]
    x, y = chat.prompt(example.x), chat.response(example.x, example.y)
    rows = encode_rows([example], chat, Limits(prompt=400, total=len(x) + len(y) - 3, rollout=8))
    assert rows.rows[0].y == tuple(y[:-3]) and rows.rows[0].y_cut and chat.turn_end not in rows.rows[0].y


@pytest.mark.parametrize("language", ["my", "ta", "th"])
def test_rollout_text_tokenized_again(tmp_path: Path, language: str) -> None:
    """KDFlow: text cut within a character comes back as other tokens. Here the ids sampled are the ids trained on."""
    chat = Chat(kit.tokenizer(), None, {})
    (example, *_) = [e for e in kit.builtin() if e.l == language]
    ids = chat.response(example.x, example.y)[:-1]
    again = [n for n in range(5, 25) if chat._ids(chat.decode(ids[:n])) != ids[:n]]
    assert again, "no cut falls within a character: the test shows nothing"
    given = {(0, "y_tilde"): Rollout(tuple(ids[: again[0]]), False)}
    made = kit.trainer(tmp_path, SAMPLED_STEP, examples=[example], batch=1)
    with_sampler(made, kit.Forced(chat, given))
    (block,) = collate(window(made), [0], 0, torch.device("cpu")).values()
    assert block.labels.tolist() == ids[: again[0]]
    assert block.teacher is not None
    assert block.teacher.input_ids[0, -again[0] :].tolist() == ids[: again[0]]


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_teacher_prompt_cut_from_the_left(tmp_path: Path) -> None:
    """SDFT's code, TRL SDFT (512 tokens): question and demonstration vanish first. Here z is whole or not used."""
    made = kit.trainer(tmp_path / "a", {"name": "sdft"})
    chat = made.job.builder.chat
    (items,) = window(made).items.values()
    lengths = []
    for row, item in zip(window(made).rows, items, strict=True):
        assert item is not None and item.teacher is not None
        text = chat.decode(item.teacher)
        assert row.example.x[-1].content in text and row.example.y in text
        assert row.example.x[-1].content not in chat.decode(
            item.teacher[-len(item.teacher) // 2 :]
        )  # what a cut leaves
        lengths.append(len(item.teacher))
    limit = sorted(lengths)[4]
    limits = Limits(prompt=400, verbalizer=300, total=600, rollout=8, teacher_prompt=limit)
    tight = kit.trainer(tmp_path / "b", {"name": "sdft"}, limits=limits)
    (kept,) = window(tight).items.values()
    assert [i is None for i in kept] == [n > limit for n in lengths]
    assert window(tight).dropped.total() == sum(n > limit for n in lengths) > 0
    assert all(i is None or i.teacher == j.teacher for i, j in zip(kept, items, strict=True) if j is not None)


@pytest.mark.parametrize("marker", ["edited", "llama"])
def test_training_chat_template_refused(marker: str) -> None:
    """TRL refuses Llama-3's and any edited Qwen template. Here the mask comes from the prefix, for any template."""
    templates = {
        "edited": kit.CHATML.replace("{{ m['role'] }}\n", "{{ m['role'] | upper }}:\n").replace(
            "assistant\n", "ASSISTANT:\n"
        ),
        "llama": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    }
    assert "generation %}" not in templates[marker]
    chat = Chat(kit.tokenizer(), templates[marker], {})
    x, y = kit.message("apa kabar?", "baik", "dan kamu?", system="singkat"), "baik juga"
    assert chat.decode(chat.prompt(x) + chat.response(x, y)).startswith(chat.decode(chat.prompt(x)) + y)
    ids, targets = chat.conversation(x, y)
    assert chat.decode([ids[t] for t in targets]) == f"baik<|im_end|>{y}<|im_end|>"


def test_a_failed_rollout_shifts_every_later_teacher_prompt(tmp_path: Path) -> None:
    """tinker-cookbook: lists joined by index. Here a row is one record, with or without a rollout."""
    made = kit.trainer(tmp_path / "a", {"name": "dudi"})
    whole = window(made)
    (view,) = [v for v in whole.items if v.name == "y_tilde"]
    longest = max(range(8), key=lambda k: len(whole.items[view][k].teacher or ()))  # type: ignore[union-attr]
    assert longest not in (6, 7)
    room = len(whole.items[view][longest].teacher or ()) - 1  # type: ignore[union-attr]
    limits = Limits(prompt=400, verbalizer=300, total=600, rollout=8, teacher_prompt=room)
    fewer = window(kit.trainer(tmp_path / "b", {"name": "dudi"}, limits=limits))
    assert fewer.items[view][longest] is None
    for k in set(range(8)) - {longest}:
        assert fewer.items[view][k] == whole.items[view][k]
    shifted = [item for item in whole.items[view] if item is not whole.items[view][longest]]
    assert shifted[longest] != whole.items[view][longest]  # what an index would have found


def test_a_sampler_that_returns_too_few(tmp_path: Path) -> None:
    """The same, from the other side: a rollout that is missing is an error at once, never a shift."""
    made = kit.trainer(tmp_path, {"name": "dudi"})
    with_sampler(made, lambda model, requests: [Rollout((5, 2), True) for _ in requests[1:]])
    with pytest.raises(ValueError, match="zip"):
        window(made)


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_padded_vocabularies_refused_or_padded_again(tmp_path: Path) -> None:
    """TRL refuses Qwen2.5-7B -> 0.5B, GOLD adds random rows. Here rows past the tokenizer's are sliced off both heads:
    the loss is that of models without them, and they get no gradient."""
    student, teacher = (
        kit.model(1, rows=kit.VOCAB + 6),
        kit.model(2, hidden=64, rows=kit.VOCAB + 20).requires_grad_(False),
    )
    bare_student, bare_teacher = kit.model(1), kit.model(2, hidden=64).requires_grad_(False)
    for bare, padded in ((bare_student, student), (bare_teacher, teacher)):
        rows = len(padded.get_output_embeddings().weight)
        state = padded.state_dict()
        bare.load_state_dict({name: v[: kit.VOCAB] if len(v) == rows else v for name, v in state.items()})
    bare = kit.step(kit.trainer(tmp_path / "bare", GOLD_STEP, student=bare_student, teacher=bare_teacher.eval()))
    made = kit.trainer(tmp_path / "padded", GOLD_STEP, student=student, teacher=teacher.eval())
    loss, grads = kit.step(made)
    name = "model.embed_tokens.weight"
    assert float(grads[name][kit.VOCAB :].abs().max()) == 0.0
    assert_close((loss, {**grads, name: grads[name][: kit.VOCAB]}), bare)
    row = made.job.rows[0]
    ids = torch.tensor([[*row.x, *row.y]])
    with torch.no_grad():
        log_p, log_q = (torch.log_softmax(m(input_ids=ids).logits[0], -1)[..., : kit.VOCAB] for m in (student, teacher))
        wrong = reverse_kl(log_p, log_q, ids[0])[0]
        right = reverse_kl(log_p.log_softmax(-1), log_q.log_softmax(-1), ids[0])[0]
    assert float((wrong - right).abs().max()) > 1e-2  # a softmax over the padding as well


def test_padded_vocabulary_rows_are_not_sampled() -> None:
    """What refuses to train may still be sampled: rows past the tokenizer's, however likely the head makes them."""
    student = kit.model(1, rows=kit.VOCAB + 6, tied=False)
    with torch.no_grad():
        student.get_output_embeddings().weight[kit.VOCAB :] *= 100
    requests = [Request((5, 6, 7), (0, k), 12) for k in range(8)]
    for rollout in LocalEngine(Sampling((2,), 0, kit.VOCAB, 1.0))(student, requests):
        assert max(rollout.ids) < kit.VOCAB


def test_no_cache_in_rollouts(tmp_path: Path) -> None:
    """TRL GKD by default: gradient checkpointing turns the cache off, and each new token reads everything again."""
    made = kit.trainer(tmp_path, SAMPLED_STEP, forced=False, gradient_checkpointing=True)
    lengths: list[int] = []
    cached: list[int] = []

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if made.phases.now == "rollout":
            lengths.append(kwargs["input_ids"].shape[1])
            cached.append(kwargs.get("cache", kwargs.get("past_key_values")).get_seq_length())

    assert checkpoints_activations(made.student)
    made.student.base_model.register_forward_hook(record, with_kwargs=True)
    kit.step(made)
    prefill, *steps = lengths
    assert prefill == max(len(row.x) for row in made.job.rows)
    assert len(steps) == 7 and set(steps) == {1}
    assert cached == [prefill + k for k in range(8)]
    without = prefill * len(lengths) + sum(range(len(lengths)))
    assert without > 4 * sum(lengths)  # positions computed without a cache


def test_a_name_that_samples_the_wrong_model(tmp_path: Path) -> None:
    """TRL GKD: `lmbda=1.0` for SeqKD samples the student. Here SeqKD is a variant by name: the teacher writes."""
    table = {"name": "x", "models": {"student": "s", "teacher": "t"}, "data": {"source": "builtin"}}
    for variant in ("nll", "jsd"):
        stages = plan(parse_recipe({**table, "method": {"name": "seqkd", "variant": variant}}, "test"))
        written = [s for s in stages if isinstance(s, Generate)]
        assert [s.writer for s in written] == [TEACHER]
        method = build_method({"name": "seqkd", "variant": variant})
        assert not any(view.response.sampled for view in views(method.signals))

        def refuse(*_: Any) -> list[Rollout]:
            raise AssertionError("sampled within a step")

        made = kit.trainer(tmp_path / variant, {"name": "seqkd", "variant": variant})
        stored = {
            row.index: kit.Forced(made.job.builder.chat).response(row.index, "stored").ids for row in made.job.rows
        }
        with_sampler(made, lambda model, requests: refuse() if requests else [])
        (items,) = window(made).items.values()
        assert [i.response for i in items if i] == [stored[row.index] for row in window(made).rows]


def test_ranks_draw_different_coins() -> None:
    """TRL GKD: `random.random()` on each rank, so that ranks train on different signals in one step."""
    method = build_method({"name": "gkd"})
    straight = [method.active(7, step)[0].name for step in range(50)]
    random.seed(1)
    torch.manual_seed(1)
    assert [method.active(7, step)[0].name for step in range(50)] == straight
    assert set(straight) == {"off_policy", "on_policy"}
    generators = [random.Random(rank) for rank in range(2)]
    assert len({tuple(g.random() <= 0.5 for _ in range(50)) for g in generators}) == 2  # theirs


# ── every setting changes something ──────────────────────────────────────────────────────────────────────────────────
# tinker-cookbook declared a temperature and never passed it on; KDFlow swallowed a misspelt setting in **kwargs. For
# every key of a recipe the table below names another value and what it changes; a new key without an entry fails.
@dataclass(frozen=True)
class Entry:
    """value: another value than the base recipe's; probe: what it must change; base: what else stands in both."""

    value: Any
    probe: Callable[[World, dict[str, Any]], Any]
    base: Mapping[str, Any] = field(default_factory=dict)


class World:
    """Tiny models and data on disk, and the recipe that reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, Any] = {}
        tok = kit.tokenizer()
        for name, seed, hidden in (("student", 1, 16), ("other", 3, 16), ("teacher", 2, 32), ("teacher2", 4, 32)):
            made = kit.model(seed, hidden, layers=1, dtype=torch.float32)
            kit.save(folder / name, made, tok)
        (folder / "chat.jinja").write_text(
            "{{ note }}" + kit.CHATML.replace("m['role']", "m['role'] | upper").replace("assistant", "ASSISTANT")
        )
        (folder / "templates").mkdir()
        text = (Path(dudi.__file__).parent / "text" / "templates" / "id.toml").read_text(encoding="utf-8")
        (folder / "templates" / "id.toml").write_text(text.replace("{language}", "~{language}~"), encoding="utf-8")
        rows = [
            {"language": e.l, "messages": [m.as_dict() for m in (*e.x, Message("assistant", e.y))]}
            for e in kit.builtin()
        ]
        rows = [row for row in rows if row["language"] in ("id", "th")]
        self._write("data.jsonl", rows)
        self._write("few.jsonl", rows[3:9] + rows[-6:])
        self._write("broken.jsonl", [*rows, {"language": "id", "messages": []}])
        self._write("plain.jsonl", [{"messages": row["messages"]} for row in rows[:12]])
        self._write("splits/train.jsonl", rows[::2])
        self._write("splits/test.jsonl", rows[1::2])
        (folder / "sea").mkdir()
        both = [self._sea(k, row) for k, row in enumerate(r for r in rows if r["language"] == "id")]
        pq.write_table(pa.Table.from_pylist(both), folder / "sea" / "Indonesian.parquet")

    def _write(self, name: str, rows: list[Any]) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def _sea(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        """A row in both formats, with another conversation in each; every third is of low quality."""
        return {
            **row,
            "conversations_id": f"id-{number}",
            "conversations": json.dumps(
                [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": "a"}]
            ),
            "prompt_primary_language": "Indonesian",
            "prompt_primary_domain": "Food",
            "prompt_primary_task": "QA",
            "prompt_complexity": "Simple",
            "prompt_input_quality": "Poor" if number % 3 == 0 else "Excellent",
            "prompt_is_coherent": True,
            "prompt_is_natural": True,
            "prompt_sensitivity": "None",
        }

    def table(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The base recipe with changes by dotted key; paths that exist in the world are filled in."""
        table: dict[str, Any] = {
            "name": "base",
            "output": str(self.folder / "runs" / "{name}"),
            "method": {"name": "dudi"},
            "cold_start": {"method": {"name": "none"}},
            "models": {"student": "@student", "teacher": "@teacher"},
            "data": {"source": "@data.jsonl", "languages": ("id", "th")},
            "limits": {"prompt": 300, "verbalizer": 200, "total": 500, "rollout": 6, "teacher_prompt": 1500},
            "training": {
                "batch": 4,
                "micro_batch": 4,
                "max_steps": 2,
                "epochs": 2.0,
                "log_every": 1,
                "overlap_every": 0,
            },
        }
        for key, value in changes.items():
            *parts, last = key.split(".")
            place = table
            for part in parts:
                place = place.setdefault(part, {})
            place[last] = value
        return self._paths(table)

    def _paths(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._paths(item) for key, item in value.items()}
        return str(self.folder / value[1:]) if isinstance(value, str) and value.startswith("@") else value

    def before(self, entry: Entry) -> Any:
        """What a probe sees of the base recipe, and sees again."""
        key = f"{entry.probe.__name__} {entry.base}"
        if key not in self.seen:
            self.seen[key], again = (entry.probe(self, self.table(entry.base)) for _ in range(2))
            assert again == self.seen[key], f"{key}: not repeatable"
        return self.seen[key]

    def start(self, table: dict[str, Any]) -> tuple[Job, list[dict[str, Any]], Path]:
        """A run until its first trainer is made: the job, how models were loaded, the run's folder."""
        recipe = parse_recipe(table, "test")
        folder = Path(recipe.output.format(name=recipe.name))
        shutil.rmtree(folder, ignore_errors=True)
        jobs: list[Job] = []
        loads: list[dict[str, Any]] = []

        def stop(job: Job, *_: Any) -> Any:
            jobs.append(job)
            raise _Started

        def load(path: str, **kwargs: Any) -> Any:
            loads.append({"path": path, **kwargs})
            return real(path, **kwargs)

        real = dudi.models.load.AutoModelForCausalLM.from_pretrained
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dudi.run.pipeline, "DistillationTrainer", stop)
            patch.setattr(dudi.models.load, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=load))
            with pytest.raises(_Started):
                dudi.run.pipeline.run(recipe, say=lambda _: None)
        return jobs[0], loads, folder

    def train(self, table: dict[str, Any]) -> tuple[DistillationTrainer, Path]:
        """The first training, to its end."""
        made = DistillationTrainer(self.start(table)[0])
        made.job.folder.mkdir(parents=True, exist_ok=True)
        made.train()
        return made, made.job.folder


class _Started(Exception):
    pass


# ── probes ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def saved_recipe(w: World, table: dict[str, Any]) -> str:
    return (w.start(table)[2] / "recipe.toml").read_text(encoding="utf-8")


def run_folder(w: World, table: dict[str, Any]) -> str:
    folder = w.start(table)[2]
    assert (folder / "recipe.toml").is_file()
    return str(folder)


def loaded_rows(w: World, table: dict[str, Any]) -> Any:
    """Rows that train and that are set aside, or what the data is refused with."""
    try:
        job = w.start(table)[0]
    except DudiError as error:
        return str(error)
    return [
        [(row.index, row.example.x, row.example.y, row.example.l) for row in rows] for rows in (job.rows, job.eval_rows)
    ]


def windows(w: World, table: dict[str, Any]) -> Any:
    """All token ids of one step on the first rows, in their own order: prompts, responses, dropped rows."""
    job = w.start(table)[0]
    rows: list[Row] = list(job.rows[:3]) + list(job.rows[-3:])
    built = job.builder.build(job.student.eval(), job.method.signals, rows, [1.0] * 6, 0)
    items = {v.name: [i and (i.student, i.teacher, i.response) for i in found] for v, found in built.items.items()}
    return items, dict(built.dropped)


def first_rows(w: World, table: dict[str, Any]) -> Any:
    return [row.index for row in DistillationTrainer(w.start(table)[0]).window_rows(0)[1]]


def model_loads(w: World, table: dict[str, Any]) -> Any:
    job, loads, _ = w.start(table)
    return loads, float(job.student.get_input_embeddings().weight.detach().double().sum())


def teacher_weights(w: World, table: dict[str, Any]) -> float:
    teacher = w.start(table)[0].teacher
    assert teacher is not None
    return float(teacher.get_input_embeddings().weight.detach().double().sum())


def processes_of_loads(w: World, table: dict[str, Any]) -> list[Any]:
    """Over how many of two processes each model is loaded, as the first of the two sees it."""
    found: list[Any] = []
    real = dudi.run.pipeline.load_model

    def load(path: str, what: str, models: Any, dtype: Any, revision: Any, frozen: bool, processes: int) -> Any:
        found.append((what, processes))
        return real(path, what, models, dtype, revision, frozen)

    two = SimpleNamespace(is_main_process=True, num_processes=2, process_index=0, wait_for_everyone=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dudi.run.pipeline, "load_model", load)
        patch.setattr(dudi.run.pipeline, "PartialState", lambda cpu: two)
        w.start(table)
    return found


def tokenizer_loads(w: World, table: dict[str, Any]) -> Any:
    """Revisions and trust, as tokenizers and configurations are asked for."""
    seen = []

    def spy(real: Any) -> Any:
        def load(path: str, **kwargs: Any) -> Any:
            seen.append((path, kwargs["revision"], kwargs["trust_remote_code"]))
            return real(path, **kwargs)

        return SimpleNamespace(from_pretrained=load)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AutoTokenizer", "AutoConfig"):
            patch.setattr(dudi.models.load, name, spy(getattr(dudi.models.load, name).from_pretrained))
        return w.start(table)[1], seen


def student_form(w: World, table: dict[str, Any]) -> Any:
    job = w.start(table)[0]
    return job.student.dtype, job.autocast, job.student.config._attn_implementation


def trainer_arguments(w: World, table: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments(w.start(table)[0]).to_dict().items() if k not in ("output_dir", "logging_dir")}


def micro_batches(w: World, table: dict[str, Any]) -> int:
    made = DistillationTrainer(w.start(table)[0])
    calls: list[int] = []
    inner = made._micro_batch
    made._micro_batch = lambda *a: calls.append(len(a[2])) or inner(*a)  # type: ignore[func-returns-value,method-assign]
    kit.step(made)
    return len(calls)


def chunk_sizes(w: World, table: dict[str, Any]) -> set[int]:
    """The largest pieces in which response positions meet the heads."""
    made = DistillationTrainer(w.start(table)[0])
    seen: set[int] = set()
    real = dudi.loss.head.Head.product

    def product(head: Head, hidden: Tensor) -> Tensor:
        seen.add(len(hidden))
        return real(head, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dudi.loss.head.Head, "product", product)
        kit.step(made)
    return {max(seen)}


def checkpointed(w: World, table: dict[str, Any]) -> bool:
    return checkpoints_activations(DistillationTrainer(w.start(table)[0]).student)


def logged_steps(w: World, table: dict[str, Any]) -> list[int]:
    return [line["step"] for line in read_lines(w.train(table)[1] / "metrics.jsonl") if "eval" not in line]


def evaluated_steps(w: World, table: dict[str, Any]) -> list[int]:
    return [line["step"] for line in read_lines(w.train(table)[1] / "metrics.jsonl") if "eval" in line]


def measured_steps(w: World, table: dict[str, Any]) -> list[int]:
    return [line["step"] for line in read_lines(w.train(table)[1] / "metrics.jsonl") if "measure" in line]


def saved_checkpoints(w: World, table: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in w.train(table)[1].glob("checkpoint-*"))


def repeating(w: World, table: dict[str, Any]) -> list[bool]:
    """Whether only operations that repeat are allowed, when the trainer is made."""
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        real = torch.use_deterministic_algorithms
        patch.setattr(torch, "use_deterministic_algorithms", lambda on, **k: seen.append(on) or real(on, **k))
        w.start(table)
    assert not torch.are_deterministic_algorithms_enabled()
    return seen


def generation_file(w: World, table: dict[str, Any]) -> str:
    """`generation_config.json` as it is saved."""
    job = w.start(table)[0]
    job.student.save_pretrained(w.folder / "saved")
    return (w.folder / "saved" / "generation_config.json").read_text()


def first_method(w: World, table: dict[str, Any]) -> Any:
    return w.start(table)[0].method


def first_training(w: World, table: dict[str, Any]) -> Any:
    return w.start(table)[0].training


def hub_revision(w: World, table: dict[str, Any]) -> Any:
    """The revision that the hub is asked for."""
    asked: list[str | None] = []

    class Folder:
        def listing(self, repo: str, revision: str | None) -> tuple[str, list[str]]:
            asked.append(revision)
            return "commit", ["few.jsonl"]

        def open(self, repo: str, revision: str, path: str) -> Any:
            return (w.folder / path).open("rb")

    load_rows(Data(source="owner/name", revision=table["data"].get("revision")), 0, Folder())  # type: ignore[arg-type]
    return asked


TRAINING: dict[str, Entry] = {
    "lr": Entry(1e-4, trainer_arguments),
    "batch": Entry(2, first_rows),
    "epochs": Entry(3.0, trainer_arguments),
    "max_steps": Entry(3, logged_steps),
    "schedule": Entry("cosine", trainer_arguments),
    "warmup_steps": Entry(1, trainer_arguments),
    "weight_decay": Entry(0.1, trainer_arguments),
    "max_grad_norm": Entry(0.5, trainer_arguments),
    "micro_batch": Entry(1, micro_batches),
    "micro_batch_tokens": Entry(500, micro_batches),
    "gradient_checkpointing": Entry(True, checkpointed),
    "head_chunk": Entry(7, chunk_sizes),
    "log_every": Entry(2, logged_steps),
    "overlap_every": Entry(2, measured_steps),
    "eval_every": Entry(1, evaluated_steps, {"data.eval_rows_per_language": 1}),
    "save_every": Entry(1, saved_checkpoints),
    "keep_checkpoints": Entry(1, saved_checkpoints, {"training.save_every": 1}),
    "deterministic": Entry(True, repeating),
}
SAMPLES = {"generation.do_sample": True}
SEA = {"data.source": "@sea", "data.format": "sea_instruct", "data.languages": ("id",), "method": {"name": "gkd"}}
COLD = {"cold_start.method": {"name": "sft"}}
PAPER = {"paper": {"table": "2", "average": 10.1}}
ENTRIES: dict[str, Entry] = {
    "name": Entry("other", run_folder),
    "description": Entry("why", saved_recipe),
    "seed": Entry(1, windows),
    "output": Entry("@runs/elsewhere", run_folder),
    "method": Entry({"name": "sft"}, first_method),
    "cold_start.method": Entry({"name": "dft"}, first_method, COLD),
    "cold_start.checkpoint": Entry("@other", model_loads, COLD),
    **{f"cold_start.training.{k}": Entry(e.value, first_training, {**COLD, **e.base}) for k, e in TRAINING.items()},
    "models.student": Entry("@other", model_loads),
    "models.teacher": Entry("@teacher2", teacher_weights),
    "models.student_revision": Entry("abc", tokenizer_loads),
    "models.teacher_revision": Entry("abc", tokenizer_loads),
    "models.trust_remote_code": Entry(True, tokenizer_loads),
    "models.precision": Entry("float64", student_form),
    "models.attention": Entry("eager", student_form),
    "models.teacher_sharding": Entry("shard", processes_of_loads),
    "chat.template": Entry("@chat.jinja", windows),
    "chat.kwargs": Entry({"note": "hi"}, windows, {"chat.template": "@chat.jinja"}),
    "data.source": Entry("@few.jsonl", loaded_rows),
    "data.format": Entry("sea_instruct", loaded_rows, {**SEA, "data.format": "chat"}),
    "data.revision": Entry("v2", hub_revision),
    "data.split": Entry("test", loaded_rows, {"data.source": "@splits"}),
    "data.languages": Entry(("id",), loaded_rows),
    "data.language": Entry(
        "ms", loaded_rows, {"data.source": "@plain.jsonl", "data.language": "id", "data.languages": ()}
    ),
    "data.rows_per_language": Entry(2, loaded_rows),
    "data.quality_filter": Entry(False, loaded_rows, SEA),
    "data.bad_rows": Entry("skip", loaded_rows, {"data.source": "@broken.jsonl"}),
    "data.eval_rows_per_language": Entry(1, loaded_rows),
    "data.template_folder": Entry("@templates", windows),
    "limits.prompt": Entry(60, loaded_rows),
    "limits.verbalizer": Entry(1, windows, {"limits.prompt": 80}),
    "limits.total": Entry(150, windows),
    "limits.rollout": Entry(3, windows),
    "limits.teacher_prompt": Entry(250, windows),
    "rollouts.temperature": Entry(0.3, windows),
    **{f"training.{name}": entry for name, entry in TRAINING.items()},
    "generation.do_sample": Entry(True, generation_file),
    "generation.temperature": Entry(0.5, generation_file, SAMPLES),
    "generation.top_p": Entry(0.9, generation_file, SAMPLES),
    "generation.max_new_tokens": Entry(99, generation_file),
    "paper.table": Entry("3", saved_recipe, PAPER),
    "paper.average": Entry(9.0, saved_recipe, PAPER),
    "paper.languages": Entry({"id": 12.0}, saved_recipe, PAPER),
}


def leaves(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a recipe."""
    for name, info in section.model_fields.items():
        options = (info.annotation, *get_args(info.annotation))
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
        if inner is None:
            yield prefix + name
        else:
            yield from leaves(inner, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_every_recipe_key_has_an_entry() -> None:
    found = set(leaves(Recipe))
    assert found - ENTRIES.keys() == set(), "a new key of a recipe: name what it changes"
    assert ENTRIES.keys() - found == set(), "a key that is gone"


@pytest.mark.parametrize("key", ENTRIES)
def test_every_recipe_key_changes_something(world: World, key: str) -> None:
    entry = ENTRIES[key]
    before = world.before(entry)
    assert entry.probe(world, world.table({**entry.base, key: entry.value})) != before, f"{key} changes nothing"


def test_no_key_is_swallowed() -> None:
    """A misspelt key in any table is an error."""
    sections = [c for c in vars(dudi.recipe.schema).values() if isinstance(c, type) and issubclass(c, Section)]
    assert len(sections) > 10
    assert all(section.model_config["extra"] == "forbid" for section in sections)


# ── and every argument of a method ───────────────────────────────────────────────────────────────────────────────────
def step_of(tmp: Path, table: dict[str, Any]) -> Any:
    """Loss and gradient norm of a step."""
    step = kit.step(kit.trainer(tmp, table))
    return step[0], norm(step)


def conversations_of(tmp: Path, table: dict[str, Any]) -> float:
    """The loss on rows with earlier assistant turns."""
    several = [e for e in kit.builtin() if any(m.role == "assistant" for m in e.x)]
    return kit.step(kit.trainer(tmp, table, examples=several[:4], batch=4))[0]


def average_of(tmp: Path, table: dict[str, Any]) -> float:
    """The moving-average teacher after a step."""
    made = kit.trainer(tmp, table, max_steps=1, lr=0.1)
    made.train()
    assert made.ema is not None
    return float(made.ema.model.get_input_embeddings().weight.detach().sum())


def coins_of(tmp: Path, table: dict[str, Any]) -> list[str]:
    return [build_method(table).active(0, step)[0].name for step in range(30)]


def iterations_of(tmp: Path, table: dict[str, Any]) -> int:
    base = {"name": "x", "models": {"student": "s", "teacher": "t"}, "data": {"source": "builtin"}}
    return len(plan(parse_recipe({**base, "method": table}, "test")))


JSD = {"divergence": "jsd"}
ARGUMENTS: dict[str, tuple[Any, Callable[[Path, dict[str, Any]], Any], dict[str, Any]]] = {
    "sft.loss_on": ("all_assistant", conversations_of, {}),
    "dft.loss_on": ("all_assistant", conversations_of, {}),
    "spin.variant": ("online", iterations_of, {}),
    "spin.spin_beta": (0.5, step_of, {"variant": "online"}),
    "spin.iterations": (2, iterations_of, {}),
    "sdft.variant": ("reverse", step_of, {}),
    "sdft.ema_rate": (0.5, average_of, {}),
    "sdft.skip_tokens": (0, step_of, {}),
    "sdft.verbalizer": ("crosslingual", step_of, {}),
    "seqkd.variant": ("jsd", step_of, {}),
    "seqkd.jsd_beta": (0.1, step_of, {"variant": "jsd"}),
    "gkd.variant": ("sum", step_of, {}),
    "gkd.lam": (0.9, coins_of, {}),
    "gkd.divergence": ("forward_kl", step_of, {}),
    "gkd.jsd_beta": (0.1, step_of, {}),
    "dudi.alpha": (1.0, step_of, {}),
    "dudi.lam": (0.9, step_of, {}),
    "dudi.spin_beta": (0.5, step_of, {}),
    "dudi.divergence": ("forward_kl", step_of, {}),
    "dudi.jsd_beta": (0.1, step_of, JSD),
    "dudi.verbalizer": ("none", step_of, {}),
    "dudi.include_english": (False, step_of, {}),
    "dudi.without": (("sequence",), step_of, {}),
}


def test_every_argument_of_a_method_has_an_entry() -> None:
    found = {f"{name}.{argument}" for name, f in METHODS.items() for argument in inspect.signature(f).parameters}
    assert found == ARGUMENTS.keys()


@pytest.mark.parametrize("key", ARGUMENTS)
def test_every_argument_of_a_method_changes_something(tmp_path: Path, key: str) -> None:
    name, argument = key.split(".")
    value, probe, base = ARGUMENTS[key]
    table = {"name": name, **base}
    assert probe(tmp_path / "a", table) != probe(tmp_path / "b", {**table, argument: value}), f"{key} changes nothing"
