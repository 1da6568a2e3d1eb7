"""Rows within limits, windows, micro-batches and Blocks: against independent constructions and the paper's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import kit
import pytest
import torch
from transformers import PreTrainedModel

from dudi.example import Example, Message
from dudi.methods import Loss, Method, Response, TokenSignal, View, build_method, views
from dudi.recipe.schema import Limits
from dudi.rollouts import Request, Rollout
from dudi.signals import compared, judged
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer
from dudi.training.window import Item, Row, Window, WindowBuilder, collate, encode_rows

CPU = torch.device("cpu")
BUILTIN = kit.builtin()
VERBALIZER = Verbalizer(kit.LANGUAGES, 3)
WIDE = Limits(prompt=4000, verbalizer=4000, total=8000, rollout=8, teacher_prompt=8000)
MODEL: Any = None
"""The forced sampler asks no model."""


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(kit.tokenizer(), None, {})


def row(n: int, l: str = "id", x: str = "q", y: str = "a") -> Example:
    return Example((Message("user", x * n),), y, l, f"row-{n}")


# ── limits on rows ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_x_at_the_limit_stays_and_a_longer_one_is_left_out_and_counted(chat: Chat) -> None:
    rows = [row(n, l) for l in ("id", "my") for n in range(1, 8)]
    lengths = [len(chat.prompt(e.x)) for e in rows]
    limit = sorted(lengths)[6]
    found = encode_rows(rows, chat, replace_limits(prompt=limit))
    kept = [k for k, n in enumerate(lengths) if n <= limit]
    assert 0 < len(kept) < len(rows)
    assert [r.index for r in found.rows] == kept, "a row keeps its number in the data, which keys its random numbers"
    assert found.left_out == Counter(e.l for e, n in zip(rows, lengths, strict=True) if n > limit)
    for r in found.rows:
        assert list(r.x) == chat.prompt(rows[r.index].x), "a question is never cut"


def replace_limits(**values: Any) -> Limits:
    return WIDE.model_copy(update=values)


@pytest.mark.parametrize("room", [1, 2, 3, 5, 6, 7])
def test_a_y_too_long_is_cut_right_without_its_end(chat: Chat, room: int) -> None:
    example = kit.message("q")
    y = "abcdefgh"
    whole = chat.response(example, y)
    assert len(whole) > 6
    x = len(chat.prompt(example))
    (found,) = encode_rows([Example(example, y, "th", "r")], chat, replace_limits(total=x + room)).rows
    assert list(found.x) == chat.prompt(example)
    assert list(found.y) == whole[:room]
    assert found.y_cut is (len(whole) > room)
    assert (chat.turn_end in found.y) is (not found.y_cut)


def test_a_y_that_just_fits_is_whole(chat: Chat) -> None:
    x, y = kit.message("q"), "abc"
    n = len(chat.prompt(x)) + len(chat.response(x, y))
    examples = [Example(x, y, "th", "r")]
    for total, cut in ((n, 0), (n - 1, 1)):
        found = encode_rows(examples, chat, replace_limits(total=total))
        assert found.cut == Counter({"th": cut})
        assert found.rows[0].y_cut is bool(cut)
        assert (found.rows[0].y[-1] == chat.turn_end) is not bool(cut)


def test_density_counts_every_row_and_no_turn_end(chat: Chat) -> None:
    examples = BUILTIN[::5]
    found = encode_rows(examples, chat, replace_limits(prompt=60))
    assert sum(found.left_out.values()) > 0
    tokens, characters = Counter[str](), Counter[str]()
    for e in examples:
        tokens[e.l] += len(chat.tokenizer(e.y)["input_ids"])
        characters[e.l] += len(e.y)
    assert (found.tokens, found.characters) == (tokens, characters)


def test_limits_by_language(chat: Chat) -> None:
    short = {"default": 10_000, "my": 5}
    rows = [row(3, "id"), row(3, "my"), row(3, "th")]
    assert [r.example.l for r in encode_rows(rows, chat, replace_limits(prompt=short)).rows] == ["id", "th"]
    x = len(chat.prompt(rows[0].x))
    found = encode_rows(rows, chat, replace_limits(total={"default": x + 1, "id": 10_000}))
    assert [r.y_cut for r in found.rows] == [False, True, True]


def test_the_papers_limits(chat: Chat) -> None:
    """Appendix B: 1,024 tokens in all, rollouts of 256; ours: x 768, p_z 64 more, z 4,096."""
    paper = Limits()
    assert [paper.of(name, "my") for name in ("total", "rollout", "prompt", "verbalizer", "teacher_prompt")] == [
        1024, 256, 768, 64, 4096,
    ]  # fmt: skip
    fixed = len(chat.prompt(kit.message("")))
    at, over = ("\x00" * (n - fixed) for n in (768, 769))  # a byte without merges is a token
    examples = [Example((Message("user", text),), "\x00" * 400, "ta", "r") for text in (at, over)]
    found = encode_rows(examples, chat, paper)
    (kept,) = found.rows
    assert (len(kept.x), len(kept.y), kept.y_cut) == (768, 256, True)
    assert found.left_out == Counter({"ta": 1}) and found.cut == Counter({"ta": 1})


# ── the window ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Recording(kit.Forced):
    """The forced sampler, which also keeps what it was asked."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat)
        self.calls: list[list[Request]] = []

    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        self.calls.append(list(requests))
        return super().__call__(model, requests)


def build(
    chat: Chat,
    method: Method | dict[str, Any],
    limits: Limits = WIDE,
    examples: Sequence[Example] | None = None,
    epoch: int = 0,
    weight: list[float] | None = None,
) -> tuple[Window, Recording, Method]:
    """A window of some built-in rows, the sampler that served it, and the method."""
    built = method if isinstance(method, Method) else build_method(method)
    rows = list(encode_rows(examples or BUILTIN[::9], chat, limits).rows)
    sampler = Recording(chat)
    stored = {r.index: sampler.response(r.index, "stored") for r in rows}
    builder = WindowBuilder(chat, VERBALIZER, limits, sampler, 3, stored)
    weights = weight or [1.0] * len(rows)
    return builder.build(MODEL, built.signals, rows, weights, epoch), sampler, built


def by_response(window: Window, response: Response) -> list[Item | None]:
    (found,) = (items for view, items in window.items.items() if view.response is response)
    return found


def test_a_window_of_dudi(chat: Chat) -> None:
    window, sampler, method = build(chat, {"name": "dudi"}, epoch=4)
    assert list(window.items) == list(views(method.signals))
    for k, r in enumerate(window.rows):
        e = r.example
        y, y_prime, y_tilde = (by_response(window, s)[k] for s in (Response.GOLD, Response.Y_PRIME, Response.Y_TILDE))
        assert y is not None and y_prime is not None and y_tilde is not None
        assert (y.student, y.teacher, y.response) == (r.x, r.x, r.y)
        assert (y_prime.student, y_prime.teacher) == (r.x, None), "nobody but student and reference reads y'"
        v = VERBALIZER(list(window.items)[2], e, 4, r.index)
        assert (list(y_tilde.student), list(y_tilde.teacher or ())) == (chat.prompt(v.student), chat.prompt(v.teacher))
        assert y_tilde.l_z == v.l_z not in (None, e.l)
        for item, name in ((y_prime, "y_prime"), (y_tilde, "y_tilde")):
            wanted = sampler.response(r.index, name)
            assert (item.response, item.finished) == (wanted.ids, wanted.finished)
    assert len(sampler.calls) == 1, "all sampled views of all rows in one call"
    assert len(sampler.calls[0]) == 2 * len(window.rows)


def test_requests_are_keyed_by_everything_that_may_differ(chat: Chat) -> None:
    limits = replace_limits(rollout={"default": 8, "my": 16})
    window, sampler, _ = build(chat, {"name": "dudi"}, limits, epoch=2)
    requests = sampler.calls[0]
    names = ["y_prime"] * len(window.rows) + ["y_tilde"] * len(window.rows)
    rows = [r.index for r in window.rows] * 2
    assert [r.key for r in requests] == [("train", 3, 2, i, n) for i, n in zip(rows, names, strict=True)]
    assert len({r.key for r in requests}) == len(requests)
    assert [r.limit for r in requests] == [16 if r.example.l == "my" else 8 for r in window.rows] * 2


def test_a_step_without_sampled_views_asks_for_nothing(chat: Chat) -> None:
    _, sampler, _ = build(chat, {"name": "sft"})
    assert sampler.calls == [[]]


@pytest.mark.parametrize("name", ["seqkd", "spin"])
def test_stored_responses(chat: Chat, name: str) -> None:
    window, sampler, method = build(chat, {"name": name})
    assert method.stored is not None
    for r, item in zip(window.rows, by_response(window, method.stored), strict=True):
        wanted = sampler.response(r.index, "stored")
        assert item is not None
        assert (item.student, item.response, item.finished) == (r.x, wanted.ids, wanted.finished)


@pytest.mark.parametrize("name", ["seqkd", "sft"])
def test_nobody_reads_a_teachers_prompt_for_a_cross_entropy(chat: Chat, name: str) -> None:
    window, _, method = build(chat, {"name": name})
    assert judged(method.signals) == ()
    assert all(item is not None and item.teacher is None for items in window.items.values() for item in items)


def test_who_is_scored_by_whom() -> None:
    def names(found: tuple[View, ...]) -> set[str]:
        return {view.name for view in found}

    expected = {
        "sft": (set(), set()),
        "spin": (set(), {"y", "opponent"}),
        "sdft": ({"y_tilde"}, set()),
        "gkd": ({"y", "y_tilde"}, set()),
        "dudi": ({"y", "y_tilde"}, {"y", "y_prime"}),
    }
    for name, (teacher, reference) in expected.items():
        signals = build_method({"name": name}).signals
        assert (names(judged(signals)), names(compared(signals))) == (teacher, reference), name


# ── what is too long is dropped, and only its own term ───────────────────────────────────────────────────────────────
def lengths_of(window: Window) -> list[tuple[int, int]]:
    found = by_response(window, Response.Y_TILDE)
    return [(len(i.student), len(i.teacher or ())) for i in found if i is not None]


@pytest.mark.parametrize("what", ["p_z", "z"])
def test_p_z_or_z_too_long(chat: Chat, what: str) -> None:
    whole, _, _ = build(chat, {"name": "dudi"})
    sizes = [size[what == "z"] for size in lengths_of(whole)]
    limit = sorted(sizes)[len(sizes) // 2]
    prompt = max(len(r.x) for r in whole.rows)
    if what == "z":
        limits = replace_limits(teacher_prompt=limit)
    else:
        limits = replace_limits(prompt=prompt, verbalizer=max(limit - prompt, 1))
        limit = prompt + max(limit - prompt, 1)
    window, sampler, method = build(chat, {"name": "dudi"}, limits)
    assert len(window.rows) == len(whole.rows)
    gone = [size > limit for size in sizes]
    assert any(gone) and not all(gone)
    assert [i is None for i in by_response(window, Response.Y_TILDE)] == gone
    assert window.dropped == Counter(("y_tilde", r.example.l) for r, g in zip(window.rows, gone, strict=True) if g)
    assert sum(r.key[4] == "y_tilde" for r in sampler.calls[0]) == gone.count(False)
    # the other terms stay, and the responses of other rows are the same
    for response in (Response.GOLD, Response.Y_PRIME):
        assert by_response(window, response) == by_response(whole, response)
    kept = [i for i in by_response(whole, Response.Y_TILDE)]
    for mine, theirs in zip(by_response(window, Response.Y_TILDE), kept, strict=True):
        assert mine is None or mine == theirs
    counts = window.counts(method.signals)
    assert counts["sequence"] == len(window.rows)
    assert counts["off_policy"] == sum(len(r.y) for r in window.rows)
    assert counts["on_policy"] == sum(len(i.response) for i in by_response(window, Response.Y_TILDE) if i)


def test_p_z_may_be_longer_than_x_by_the_verbalizers_limit_exactly(chat: Chat) -> None:
    (r,) = encode_rows([row(3)], chat, WIDE).rows
    p_z = lengths_of(build(chat, {"name": "dudi"}, examples=[row(3)])[0])[0][0]
    for extra, dropped in ((p_z - len(r.x), 0), (p_z - len(r.x) - 1, 1)):
        limits = replace_limits(prompt=len(r.x), verbalizer=extra)
        assert sum(build(chat, {"name": "dudi"}, limits, [row(3)])[0].dropped.values()) == dropped


def test_a_long_z_is_nothing_to_a_view_that_no_teacher_reads(chat: Chat) -> None:
    window, _, _ = build(chat, {"name": "dudi", "without": ["on_policy"]}, replace_limits(teacher_prompt=1))
    assert not window.dropped and len(window.items) == 2
    y_tilde = build_method({"name": "dudi"}).signals[2]
    assert isinstance(y_tilde, TokenSignal)
    nll = Method("x", "x", (replace(y_tilde, loss=Loss.NLL),))
    window, _, _ = build(chat, nll, replace_limits(teacher_prompt=1))
    assert not window.dropped and all(i is not None and i.teacher is None for i in window.items[y_tilde.view])


def test_limits_of_z_by_language(chat: Chat) -> None:
    limits = replace_limits(teacher_prompt={"default": 8000, "ta": 1, "my": 1})
    window, _, _ = build(chat, {"name": "dudi"}, limits)
    gone = {r.example.l for r, i in zip(window.rows, by_response(window, Response.Y_TILDE), strict=True) if i is None}
    assert gone == {"ta", "my"} & {r.example.l for r in window.rows} != set()


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("skip", [0, 1, 3, 100])
def test_counts_with_skipped_tokens(chat: Chat, skip: int) -> None:
    window, sampler, method = build(chat, {"name": "sdft", "skip_tokens": skip})
    sizes = [len(sampler.response(r.index, "y_tilde").ids) for r in window.rows]
    assert min(sizes) < 3 < max(sizes)
    assert window.counts(method.signals) == {"on_policy": sum(max(n - skip, 0) for n in sizes)}


def test_counts_leave_filler_rows_out(chat: Chat) -> None:
    examples = BUILTIN[:4]
    window, sampler, method = build(chat, {"name": "dudi"}, examples=examples, weight=[1.0, 0.0, 1.0, 0.0])
    kept = [r for r, w in zip(window.rows, window.weight, strict=True) if w]
    assert window.counts(method.signals) == {
        "sequence": 2,
        "off_policy": sum(len(r.y) for r in kept),
        "on_policy": sum(len(sampler.response(r.index, "y_tilde").ids) for r in kept),
    }


def test_a_sequence_signal_needs_both_of_its_views() -> None:
    method = build_method({"name": "spin"})
    y, loser = views(method.signals)
    item = Item((5, 6), None, (7, 2), True)
    window = Window([None] * 4, [1.0, 1.0, 1.0, 0.0], {y: [item, None, item, item], loser: [item, item, None, item]})  # type: ignore[list-item]
    assert window.counts(method.signals) == {"sequence": 1.0}


MANY = [e for e in BUILTIN if sum(m.role == "assistant" for m in e.x) >= 1]


def test_all_assistant_turns(chat: Chat) -> None:
    assert MANY, "built-in rows of several turns"
    window, _, method = build(chat, {"name": "sft", "loss_on": "all_assistant"}, examples=MANY)
    (items,) = window.items.values()
    total = 0
    for r, item in zip(window.rows, items, strict=True):
        ids, targets = chat.conversation(r.example.x, r.example.y)
        assert item is not None and list(item.student + item.response) == ids
        assert list(item.targets or ()) == targets
        assert len(targets) > len(r.y)
        total += len(targets)
    assert window.counts(method.signals) == {"off_policy": total}


def test_all_assistant_turns_are_cut_at_the_limit(chat: Chat) -> None:
    whole = [chat.conversation(e.x, e.y) for e in MANY]
    limit = min(len(ids) for ids, _ in whole) - 3
    window, _, method = build(chat, {"name": "sft", "loss_on": "all_assistant"}, replace_limits(total=limit), MANY)
    (items,) = window.items.values()
    for (ids, targets), item in zip(whole, items, strict=True):
        assert item is not None
        kept = [t for t in targets if t < limit]
        assert list(item.targets or ()) == kept and kept
        assert list(item.student + item.response) == ids[:limit]
        assert item.finished is False
    assert window.counts(method.signals)["off_policy"] == sum(t < limit for _, ts in whole for t in ts)


# ── micro-batches ────────────────────────────────────────────────────────────────────────────────────────────────────
def window_of(sizes: Sequence[Sequence[tuple[int, int] | None]]) -> Window:
    """A window with the given (prompt, response) lengths, by view and row."""
    names = [View(Response.GOLD), View(Response.Y_PRIME), View(Response.Y_TILDE)]
    items = {
        view: [None if s is None else Item((1,) * s[0], None, (1,) * s[1], True) for s in column]
        for view, column in zip(names, sizes, strict=False)
    }
    n = len(sizes[0])
    return Window([None] * n, [1.0] * n, items)  # type: ignore[list-item]


def random_windows() -> Iterator[Window]:
    g = torch.Generator().manual_seed(0)
    for _ in range(40):
        n, views_ = (int(torch.randint(1, high, (1,), generator=g)) for high in (12, 4))
        yield window_of(
            [
                [
                    None
                    if float(torch.rand(1, generator=g)) < 0.2
                    else tuple(torch.randint(1, 30, (2,), generator=g).tolist())
                    for _ in range(n)
                ]
                for _ in range(views_)
            ]  # type: ignore[misc]
        )


def padded(window: Window, places: Sequence[int]) -> int:
    """Padded student tokens of some rows, over all views: rows x widest, a view none of them has costs nothing."""
    width = 0
    for items in window.items.values():
        width += max((len(i.student) + len(i.response) for p in places if (i := items[p])), default=0)
    return width * len(places)


@pytest.mark.parametrize("rows, tokens", [(1, 10**6), (3, 10**6), (100, 10**6), (100, 1), (100, 90), (4, 120)])
def test_micro_batches_cover_every_row_once_under_both_limits(rows: int, tokens: int) -> None:
    for window in random_windows():
        found = list(window.micro_batches(rows, tokens))
        assert sorted(p for places in found for p in places) == list(range(len(window.rows)))
        for places, after in zip(found, [*found[1:], []], strict=True):
            assert 0 < len(places) <= rows
            assert padded(window, places) <= tokens or len(places) == 1
            if after:  # and none is smaller than it has to be
                assert len(places) == rows or padded(window, [*places, after[0]]) > tokens


def test_one_row_always_fits() -> None:
    window = window_of([[(500, 500), (1, 1), (500, 500)]])
    assert list(window.micro_batches(8, 10)) == [[0], [2], [1]]


def test_micro_batches_hold_rows_of_similar_lengths_the_longest_first() -> None:
    """Burmese beside English: in the rows' own order every micro-batch would be as wide as the widest row."""
    window = window_of([[(400, 100), (20, 5), (40, 9), (300, 90), (21, 5), (10, 2)]])
    found = list(window.micro_batches(2, 10**6))
    assert found == [[0, 3], [2, 4], [1, 5]]
    assert sum(padded(window, places) for places in found) < 0.7 * sum(
        padded(window, [row, row + 1]) for row in (0, 2, 4)
    )


# ── Blocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────
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
    examples = BUILTIN[::13]
    limits = replace_limits(teacher_prompt={"default": 8000, "th": 1})  # some rows have no such view
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
    window, sampler, _ = build(chat, {"name": "dudi"}, replace_limits(teacher_prompt={"default": 8000, "th": 1}))
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
    window, _, _ = build(chat, {"name": "sft"}, examples=BUILTIN[:2], weight=[1.0, 0.0])
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
