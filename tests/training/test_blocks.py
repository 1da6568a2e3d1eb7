"""Blocks: what each model reads and predicts, against an independent construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.rows import builtin
from kit.windows import build, limits_with

from dudi.methods import Method, TokenSignal, build_method
from dudi.signals import judged
from dudi.text.chat import Chat
from dudi.training.window import Row, collate

CPU = torch.device("cpu")


PAD = 0
METHODS: list[dict[str, Any]] = [
    {"name": "sft"},
    {"name": "sft", "loss_on": "all_assistant"},
    {"name": "seqkd", "variant": "jsd"},
    {"name": "spin"},
    {"name": "sdft"},
    {"name": "gkd", "variant": "sum"},
    {"name": "dudi"},
    {"name": "dudi", "verbalizer": "mix"},
]


@pytest.mark.parametrize("table", METHODS, ids=str)
def test_blocks_by_an_independent_construction(chat: Chat, table: dict[str, Any]) -> None:
    examples = builtin()[::13]
    limits = limits_with(teacher_prompt={"default": 8000, "th": 1})  # some rows have no such view
    weight = [1.0] * (len(examples) - 1) + [0.0]
    window, _, method = build(chat, table, limits, examples, weight=weight)
    scored = judged(method.signals)
    seen = 0
    for places in ([0, 1, 2], [4, 3], [5], list(range(len(examples)))):
        blocks = collate(window, places, PAD, CPU)
        for view, block in blocks.items():
            assert (block.view, block.rows) == (view, len(places))
            expected = []  # (place in the micro-batch, place in the response, token, the tokens read before it by each)
            for k, place in enumerate(places):
                item = window.items[view][place]
                if item is None:
                    continue
                whole = list(item.student + item.response)
                targets = range(len(item.student), len(whole)) if item.targets is None else item.targets
                for position, t in enumerate(targets):
                    other = None if item.teacher is None else [*item.teacher, *whole[len(item.student) : t]]
                    expected.append((k, position, whole[t], whole[:t], other, window.weight[place]))
            assert block.row.tolist() == [e[0] for e in expected]
            assert block.position.tolist() == [e[1] for e in expected]
            assert block.labels.tolist() == [e[2] for e in expected]
            assert block.weight.tolist() == [e[5] for e in expected]
            assert read_before(block.student, expected) == [e[3] for e in expected]
            assert (block.teacher is not None) is (view in scored)
            if block.teacher is not None:
                assert read_before(block.teacher, expected) == [e[4] for e in expected]
            seen += len(expected)
        missing = [v for v in window.items if v not in blocks]
        assert all(window.items[v][p] is None for v in missing for p in places)
    assert seen > 40


def read_before(reading: Any, expected: Sequence[Any]) -> list[list[int]]:
    """For each predicting position, the ids of its sequence up to and with it: what a causal model has read there."""
    width = reading.input_ids.shape[1]
    found = []
    for flat in reading.predicts.tolist():
        line, at = divmod(flat, width)
        found.append(reading.input_ids[line, : at + 1].tolist())
    assert len(found) == len(expected)
    return found


def test_sequences_are_padded_on_the_right_only(chat: Chat) -> None:
    window, _, _ = build(chat, {"name": "dudi"})
    places = list(range(len(window.rows)))
    for view, block in collate(window, places, -7, CPU).items():
        items = [i for i in window.items[view] if i is not None]
        for reading, prompt in ((block.student, "student"), (block.teacher, "teacher")):
            if reading is None:
                continue
            for line, item in zip(reading.input_ids.tolist(), items, strict=True):
                ids = [*getattr(item, prompt), *item.response]
                assert line == ids + [-7] * (len(line) - len(ids))
            assert reading.input_ids.shape[1] == max(len(getattr(i, prompt)) + len(i.response) for i in items)


def test_student_and_teacher_read_the_same_response_through_other_prompts(chat: Chat) -> None:
    window, _, _ = build(chat, {"name": "dudi"})
    view = list(window.items)[2]
    block = collate(window, list(range(len(window.rows))), PAD, CPU)[view]
    assert block.teacher is not None
    n, t = block.student, block.teacher
    assert n.input_ids.shape != t.input_ids.shape
    # the token after each predicting position, where there is one, is the label: for both alike
    for reading in (n, t):
        width = reading.input_ids.shape[1]
        after = [(p + 1) for p in reading.predicts.tolist()]
        assert all(p % width for p in after), "a response never begins a sequence"
        flat = reading.input_ids.flatten()
        assert [int(flat[p]) for p in after] == block.labels.tolist()


def test_the_same_prompt_is_read_once(chat: Chat) -> None:
    window, _, _ = build(chat, {"name": "gkd", "variant": "sum"})
    for block in collate(window, [0, 1], PAD, CPU).values():
        assert block.teacher is block.student


def test_rows_sum_up_by_micro_batch_row(chat: Chat) -> None:
    window, sampler, _ = build(chat, {"name": "dudi"}, limits_with(teacher_prompt={"default": 8000, "th": 1}))
    places = list(range(len(window.rows)))[::-1]
    block = collate(window, places, PAD, CPU)[list(window.items)[2]]
    thai = [window.rows[p].example.l == "th" for p in places]
    sizes = [
        0 if t else len(sampler.response(window.rows[p].index, "y_tilde").ids)
        for p, t in zip(places, thai, strict=True)
    ]
    assert block.per_row(torch.ones_like(block.weight)).tolist() == sizes
    assert block.present().tolist() == [float(not t) for t in thai]
    assert any(thai) and not all(thai)


def test_a_filler_row_is_not_present(chat: Chat) -> None:
    window, _, _ = build(chat, {"name": "sft"}, examples=builtin()[:2], weight=[1.0, 0.0])
    (block,) = collate(window, [0, 1], PAD, CPU).values()
    assert block.present().tolist() == [1.0, 0.0]


def test_a_row_is_frozen_and_signals_share_a_view(chat: Chat) -> None:
    """GKD's two signals read two views; SFT's reads one: a view is built once, however many signals read it."""
    gold = build_method({"name": "sft"}).signals[0]
    assert isinstance(gold, TokenSignal)
    twice = Method("x", "x", (gold, replace(gold, name="again", weight=2.0)))
    window, _, _ = build(chat, twice)
    assert len(window.items) == 1
    counts = window.counts(twice.signals)
    assert counts["off_policy"] == counts["again"] > 0
    assert isinstance(window.rows[0], Row)
