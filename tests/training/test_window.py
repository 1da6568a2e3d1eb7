"""Rows within limits, and the window of a step: who reads what, what is dropped, what is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import kit
import pytest
from kit.rows import builtin
from kit.windows import MODEL, VERBALIZER, WIDE, build, by_response, limits_with

from dudi.example import Example, Message
from dudi.methods import Loss, Method, Response, TokenSignal, View, build_method, views
from dudi.recipe.read import Limits
from dudi.rollouts import Rollout
from dudi.signals import compared, judged
from dudi.text.chat import Chat
from dudi.training.window import Item, Window, WindowBuilder, encode_rows


def row(n: int, l: str = "id", x: str = "q", y: str = "a") -> Example:
    return Example((Message("user", x * n),), y, l, f"row-{n}")


# ── limits on rows ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_x_at_the_limit_stays_and_a_longer_one_is_left_out_and_counted(chat: Chat) -> None:
    rows = [row(n, l) for l in ("id", "my") for n in range(1, 8)]
    lengths = [len(chat.prompt(e.x)) for e in rows]
    limit = sorted(lengths)[6]
    found = encode_rows(rows, chat, limits_with(prompt=limit))
    kept = [k for k, n in enumerate(lengths) if n <= limit]
    assert 0 < len(kept) < len(rows)
    assert [r.index for r in found.rows] == kept, "a row keeps its number in the data, which keys its random numbers"
    assert found.left_out == Counter(e.l for e, n in zip(rows, lengths, strict=True) if n > limit)
    for r in found.rows:
        assert list(r.x) == chat.prompt(rows[r.index].x), "a question is never cut"


@pytest.mark.parametrize("room", [1, 2, 3, 5, 6, 7])
def test_a_y_too_long_is_cut_right_without_its_end(chat: Chat, room: int) -> None:
    example = kit.message("q")
    y = "abcdefgh"
    whole = chat.response(example, y)
    assert len(whole) > 6
    x = len(chat.prompt(example))
    (found,) = encode_rows([Example(example, y, "th", "r")], chat, limits_with(total=x + room)).rows
    assert list(found.x) == chat.prompt(example)
    assert list(found.y) == whole[:room]
    assert found.y_cut is (len(whole) > room)
    assert (chat.turn_end in found.y) is (not found.y_cut)


def test_a_y_that_just_fits_is_whole(chat: Chat) -> None:
    x, y = kit.message("q"), "abc"
    n = len(chat.prompt(x)) + len(chat.response(x, y))
    examples = [Example(x, y, "th", "r")]
    for total, cut in ((n, 0), (n - 1, 1)):
        found = encode_rows(examples, chat, limits_with(total=total))
        assert found.cut == Counter({"th": cut})
        assert found.rows[0].y_cut is bool(cut)
        assert (found.rows[0].y[-1] == chat.turn_end) is not bool(cut)


def test_density_counts_every_row_and_no_turn_end(chat: Chat) -> None:
    examples = builtin()[::5]
    found = encode_rows(examples, chat, limits_with(prompt=60))
    assert sum(found.left_out.values()) > 0
    tokens, characters = Counter[str](), Counter[str]()
    for e in examples:
        tokens[e.l] += len(chat.tokenizer(e.y)["input_ids"])
        characters[e.l] += len(e.y)
    assert (found.tokens, found.characters) == (tokens, characters)


def test_limits_by_language(chat: Chat) -> None:
    short = {"default": 10_000, "my": 5}
    rows = [row(3, "id"), row(3, "my"), row(3, "th")]
    assert [r.example.l for r in encode_rows(rows, chat, limits_with(prompt=short)).rows] == ["id", "th"]
    x = len(chat.prompt(rows[0].x))
    found = encode_rows(rows, chat, limits_with(total={"default": x + 1, "id": 10_000}))
    assert [r.y_cut for r in found.rows] == [False, True, True]


def test_the_papers_limits(chat: Chat) -> None:
    """Appendix B: 1,024 tokens in all, rollouts of 256; ours: x 768, z 4,096; what p_z adds is computed."""
    paper = Limits()
    assert [paper.of(name, "my") for name in ("total", "rollout", "prompt", "verbalizer", "teacher_prompt")] == [
        1024, 256, 768, 0, 4096,
    ]  # fmt: skip
    fixed = len(chat.prompt(kit.message("")))
    at, over = ("\x00" * (n - fixed) for n in (768, 769))  # a byte without merges is a token
    examples = [Example((Message("user", text),), "\x00" * 400, "ta", "r") for text in (at, over)]
    found = encode_rows(examples, chat, paper)
    (kept,) = found.rows
    assert (len(kept.x), len(kept.y), kept.y_cut) == (768, 256, True)
    assert found.left_out == Counter({"ta": 1}) and found.cut == Counter({"ta": 1})


# ── the window ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
    limits = limits_with(rollout={"default": 8, "my": 16})
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


def test_a_sampler_that_returns_too_few(chat: Chat) -> None:
    """A rollout that is missing is an error at once, and shifts no other row's."""
    rows = encode_rows(builtin()[:3], chat, WIDE).rows
    builder = WindowBuilder(
        chat, VERBALIZER, WIDE, lambda _, requests: [Rollout((5, 2), True)] * (len(requests) - 1), 3
    )
    with pytest.raises(ValueError, match="zip"):
        builder.build(MODEL, build_method({"name": "dudi"}).signals, list(rows), [1.0] * 3, 0)


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
        limits = limits_with(teacher_prompt=limit)
    else:
        limits = limits_with(prompt=prompt, verbalizer=max(limit - prompt, 1))
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
        limits = limits_with(prompt=len(r.x), verbalizer=extra)
        assert sum(build(chat, {"name": "dudi"}, limits, [row(3)])[0].dropped.values()) == dropped


def test_a_long_z_is_nothing_to_a_view_that_no_teacher_reads(chat: Chat) -> None:
    window, _, _ = build(chat, {"name": "dudi", "without": ["on_policy"]}, limits_with(teacher_prompt=1))
    assert not window.dropped and len(window.items) == 2
    y_tilde = build_method({"name": "dudi"}).signals[2]
    assert isinstance(y_tilde, TokenSignal)
    nll = Method("x", "x", (replace(y_tilde, loss=Loss.NLL),))
    window, _, _ = build(chat, nll, limits_with(teacher_prompt=1))
    assert not window.dropped and all(i is not None and i.teacher is None for i in window.items[y_tilde.view])


def test_limits_of_z_by_language(chat: Chat) -> None:
    limits = limits_with(teacher_prompt={"default": 8000, "ta": 1, "my": 1})
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
    examples = builtin()[:4]
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


MANY = [e for e in builtin() if sum(m.role == "assistant" for m in e.x) >= 1]


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
    window, _, method = build(chat, {"name": "sft", "loss_on": "all_assistant"}, limits_with(total=limit), MANY)
    (items,) = window.items.values()
    for (ids, targets), item in zip(whole, items, strict=True):
        assert item is not None
        kept = [t for t in targets if t < limit]
        assert list(item.targets or ()) == kept and kept
        assert list(item.student + item.response) == ids[:limit]
        assert item.finished is False
    assert window.counts(method.signals)["off_policy"] == sum(t < limit for _, ts in whole for t in ts)
