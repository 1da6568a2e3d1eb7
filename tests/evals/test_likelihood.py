"""Choices by likelihood: log p against brute force, whatever the batch; the metrics; an evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.evals import DESCRIPTION, item, rows, save_model, write
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import Benchmark, read_benchmark
from dudi.evals.cells import task_scores
from dudi.evals.evaluate import evaluate
from dudi.evals.likelihood import together
from dudi.evals.metrics import METRICS
from dudi.evals.respond import Responder
from dudi.records import Item
from dudi.report.comparison.write import write_comparison
from dudi.text.chat import Chat

TEXTS = [
    ("id", "Hujan turun, lalu?", ["jalan basah", "jalan kering sekali hari ini"], 0),
    ("id", "Ia lapar, lalu?", ["ia tidur", "ia makan nasi"], 1),
    ("th", "ฝนตก แล้วอะไรต่อ", ["ถนนเปียก", "ถนนแห้งมาก"], 0),
    ("th", "เขาหิว", ["เขานอน", "เขากินข้าว"], 1),
    ("my", "မိုးရွာသည်။", ["လမ်းစိုသည်", "လမ်းခြောက်သည်"], 1),
    ("my", "ဗိုက်ဆာ", ["စားသည်", "အိပ်သည်"], 0),
]


def items(task: str = "cause") -> list[dict[str, Any]]:
    return [
        item(f"{task}{k}", task, l, text, choices=choices, targets=[choices[right]])
        for k, (l, text, choices, right) in enumerate(TEXTS)
    ]


def bench(folder: Path, metric: str = "choice_loglik", **task: Any) -> Path:
    """Written answers, labels by likelihood, and texts by likelihood."""
    labels = [{**row, "id": f"L{row['id']}", "task": "label"} for row in rows() if row["task"] == "mood"]
    likely = {"competency": "nlu", "metric": metric, **task}
    tasks = {**DESCRIPTION["tasks"], "label": likely, "cause": likely}
    return write(folder, {**DESCRIPTION, "tasks": tasks}, [*rows(), *labels, *items()])


def responder(kind: str = "qwen2", batch: int = 64) -> Responder:
    model = kit.model(3, rows=kit.VOCAB + 6, kind=kind, dtype=torch.float32, tied=False).requires_grad_(False).eval()
    return Responder(model, Chat(kit.tokenizer(), None, {}), (2,), 0.0, batch)


def silent(b: Benchmark) -> list[Item]:
    return [one for one in b.items if one.task in ("label", "cause")]


@torch.no_grad()
def brute_force(model: PreTrainedModel, one: Item) -> tuple[float, ...]:
    """One forward pass a choice, all logits, no padding, no batch, float64."""
    found = []
    tokenizer = kit.tokenizer()
    prompt = tokenizer.apply_chat_template(
        [m.as_dict() for m in one.prompt], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    for choice in one.choices or ():
        ids = tokenizer(choice, add_special_tokens=False)["input_ids"]
        logits = model.double()(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, :, : kit.VOCAB]
        log_p = logits.log_softmax(-1)
        found.append(sum(float(log_p[len(prompt) + k - 1, id]) for k, id in enumerate(ids)))
    return tuple(found)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_log_p_is_that_of_brute_force(tmp_path: Path, kind: str) -> None:
    b = read_benchmark(bench(tmp_path))
    asked = responder(kind)
    found = asked.answer(silent(b), b, 0)
    for one, answer in zip(silent(b), found, strict=True):
        assert answer.log_p == pytest.approx(brute_force(asked.model, one), rel=1e-5, abs=1e-5)
    spread = [max(a.log_p or ()) - min(a.log_p or ()) for a in found]
    assert min(spread) > 0.1  # the choices differ by more than any rounding


def test_neither_batch_nor_order_nor_company_changes_log_p(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    asked = list(b.items)  # written answers among them
    wanted = {one.id: answer for one, answer in zip(asked, responder().answer(asked, b, 0), strict=True)}
    seen: list[int] = []
    for batch, chosen in ((1, asked), (3, asked[::-1]), (5, silent(b)[2:7])):
        for one, answer in zip(chosen, responder(batch=batch).answer(chosen, b, 9, seen.append), strict=True):
            assert answer.log_p == (
                None if wanted[one.id].log_p is None else pytest.approx(wanted[one.id].log_p, abs=1e-5)
            )
    assert sum(seen) == 2 * len(asked) + 5


def test_choices_of_one_token_share_their_prompt(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    asked = responder()
    read: list[int] = []
    asked.model.model.register_forward_pre_hook(
        lambda module, given, named: read.append(len(named["input_ids"])), with_kwargs=True
    )
    labels = [one for one in b.items if one.task == "label" and one.language == "id"]
    asked.answer(labels, b, 0)
    assert len(labels) == 2 and read == [2]  # A and B are a token each: two prompts, and not four


@pytest.mark.parametrize(
    "batch, wanted", [(1, [[2], [0], [1]]), (4, [[2, 0], [1]]), (5, [[2, 0], [1]]), (9, [[2, 0, 1]])]
)
def test_batches_are_of_whole_items(batch: int, wanted: list[list[int]]) -> None:
    assert list(together([2, 0, 1], {0: 2, 1: 3, 2: 2}, batch)) == wanted


def test_a_choice_too_long_for_the_model_is_an_error_of_that_item(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    asked = responder()
    lengths = []
    for one in silent(b):
        pairs = [asked.chat.row(one.prompt, choice) for choice in one.choices or ()]
        lengths.append(max(len(before) + len(ids) - 1 for before, ids in pairs))
    asked.model.config.max_position_embeddings = max(lengths) - 1
    found = asked.answer(silent(b), b, 0)
    assert [one.error is not None for one in found] == [n == max(lengths) for n in lengths]


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    asked = responder()
    with torch.no_grad():
        asked.model.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(DudiError, match="not finite"):
        asked.answer(silent(b), b, 0)


# ── the metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_answer_is_the_likeliest_choice_or_the_likeliest_by_the_character(tmp_path: Path) -> None:
    one = next(one for one in read_benchmark(bench(tmp_path)).items if one.task == "cause")
    assert one.choices is not None and [len(choice) for choice in one.choices] == [11, 28]
    assert METRICS["choice_loglik"].chosen(one, (-20.0, -30.0)) == one.choices[0]
    assert METRICS["choice_loglik_norm"].chosen(one, (-20.0, -30.0)) == one.choices[1]
    assert METRICS["choice_loglik"].chosen(one, (-9.0, -9.0)) == one.choices[0]  # of equals the first


def graded(b: Benchmark, log_p: dict[str, tuple[float, ...]]) -> list[Any]:
    return [grade(one, Answer("", 0, True, log_p=log_p[one.id]), b) for one in b.items if one.id in log_p]


def test_labels_are_scored_as_choice_scores_them(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    found = graded(b, {"Lm1": (-1.0, -2.0), "Lm2": (-1.0, -2.0), "Lm3": (-5.0, -6.0), "Lm4": (-7.0, -6.0)})
    assert [one.response for one in found] == ["A", "A", "ดี", "ไม่ดี"]
    assert [one.value for one in found] == [1, 0, 1, 1]
    by_language = {score.language: score for score in task_scores(found, b, "m", 0)}
    assert (by_language["id"].raw, by_language["id"].score) == (50, 0)  # always A: chance
    assert (by_language["th"].raw, by_language["th"].score) == (100, 100)
    nothing = (None, None, None, None)
    one = by_language["th"]
    assert (one.stopped, one.tokens, one.in_language, one.undetermined) == nothing  # nothing was written


def test_texts_are_scored_by_their_places(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    first = graded(b, {f"cause{k}": (-1.0, -2.0) for k in range(len(TEXTS))})
    assert {(one.raw, one.score) for one in task_scores(first, b, "m", 0)} == {(50, 0)}  # always the first: chance
    right = graded(b, {f"cause{k}": (-1.0 - r, -2.0 + r) for k, (_, _, _, r) in enumerate(TEXTS)})
    assert {(one.raw, one.score) for one in task_scores(right, b, "m", 0)} == {(100, 100)}


def test_texts_all_right_at_one_place_are_refused(tmp_path: Path) -> None:
    folder = bench(tmp_path)
    given = [{**row, "targets": row["choices"][:1]} if row["language"] == "th" else row for row in items()]
    description = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    write(folder, description, [*rows(), *given, *items("label")])
    with pytest.raises(DudiError, match="language 'th': the right choice is at the same place in all 2 items"):
        read_benchmark(folder)


def test_a_limit_of_tokens_belongs_to_written_answers(tmp_path: Path) -> None:
    with pytest.raises(
        DudiError, match=r"tasks\.label\.max_new_tokens: not read; metric 'choice_loglik' writes nothing"
    ):
        read_benchmark(bench(tmp_path / "a", max_new_tokens=3))
    with pytest.raises(DudiError, match=r"tasks\.label\.max_new_tokens: missing; metric 'choice' needs a limit"):
        read_benchmark(bench(tmp_path / "b", metric="choice"))


# ── an evaluation ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_it_evaluates_rescores_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bench(tmp_path / "bench")
    models = [save_model(tmp_path / f"m{seed}", seed, tied=False) for seed in (3, 4)]
    outs = [tmp_path / f"out{seed}" for seed in (3, 4)]
    tables = [evaluate(model, folder, out, say=lambda text: None) for model, out in zip(models, outs, strict=True)]
    lines = [json.loads(line) for line in (outs[0] / "responses-0.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(("log_p" in line) == (line["task"] in ("label", "cause")) for line in lines)
    assert all(len(line["log_p"]) == 2 for line in lines if "log_p" in line)
    assert "| cause | id | 2 | - | - | - | - |" in (outs[0] / "table.md").read_text(encoding="utf-8")
    monkeypatch.setattr("dudi.evals.evaluate.load_responder", None)  # not loaded again
    assert evaluate(models[0], folder, outs[0], say=lambda text: None) == tables[0]
    page = write_comparison([f"a={outs[0]}", f"b={outs[1]}"], None, ())
    assert "nlu" in page


def test_likelihoods_do_not_depend_on_the_temperature(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path))
    cold, hot = responder(), dataclasses.replace(responder(), temperature=2.0)
    assert cold.answer(silent(b), b, 0) == hot.answer(silent(b), b, 5)
