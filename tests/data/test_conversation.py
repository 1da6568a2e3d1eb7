import json
import os
from pathlib import Path

import pytest
from hypothesis import given as property_of
from hypothesis import settings
from hypothesis import strategies as st
from kit.data import turns

from dudi.data.conversation import (
    MAX_CHARS,
    RowError,
    fingerprint,
    is_blank,
    is_zawgyi,
    messages_of,
    parse_conversations,
    to_example,
)
from dudi.example import Message

CHAT = [
    {"role": "system", "content": "Jawab singkat."},
    {"role": "user", "content": 'it\'s "x"\n\ta', "extra": None},
    {"role": "assistant", "content": "သည်"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "ปี"},
]


@pytest.mark.parametrize(
    "text", [repr(CHAT), json.dumps(CHAT), json.dumps(CHAT, ensure_ascii=False), CHAT, f"  {CHAT!r}\n"]
)
def test_both_string_forms_give_the_same_row(text):
    example = to_example(parse_conversations(text), "my", "a:1")
    assert example.y == "ปี"
    assert example.x == tuple(Message(turn["role"], turn["content"]) for turn in CHAT[:-1])
    assert (example.l, example.id) == ("my", "a:1")
    assert messages_of(example) == [{"role": turn["role"], "content": turn["content"]} for turn in CHAT]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty conversation"),
        ("", "empty conversation"),
        (" \n", "empty conversation"),
        ("[]", "empty conversation"),
        ([], "empty conversation"),
        ("[{'role': 'user', 'content': 'x'}", "unreadable conversation"),
        ("nonsense", "unreadable conversation"),
        ("[x for x in (1, 2)]", "unreadable conversation"),
        ("[\0]", "unreadable conversation"),
        ("[" * 100_000, "unreadable conversation"),
        ("[" * 50_000 + "]" * 50_000, "unreadable conversation"),
        ("[" + "-" * 100_000 + "1]", "unreadable conversation"),
        ("[" + "1+" * 50_000 + "1]", "unreadable conversation"),
        ("[" + "9" * 10_000 + "]", "unreadable conversation"),
        ("[" + " " * MAX_CHARS + "]", "too long"),
        ('{"role": "user"}', "not a list"),
        ("17", "not a list"),
        (17, "not a list"),
        (b"[]", "not a list"),
        ({"role": "user"}, "not a list"),
    ],
)
def test_what_is_no_conversation(value, reason):
    with pytest.raises(RowError) as error:
        parse_conversations(value)
    assert error.value.reason == reason
    assert error.value.field == "conversations"
    assert error.value.wanted in str(error.value) and error.value.found in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "[__import__('pathlib').Path({path!r}).touch()]",
        "[{{'role': 'user', 'content': open({path!r}, 'w')}}]",
        "[{{'role': 'user', 'content': f'{{open({path!r}, chr(119))}}'}}]",
        "[(lambda: open({path!r}, 'w'))()]",
    ],
)
def test_nothing_is_executed(expression, tmp_path: Path):
    victim = tmp_path / "executed"
    with pytest.raises(RowError):
        parse_conversations(expression.format(path=os.fspath(victim)))
    assert not victim.exists()


def turn(role, content="text"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        ([], "messages", "empty conversation"),
        ([turn("user")], "messages", "no answer"),
        ([turn("system")], "messages", "no answer"),
        ([turn("user"), turn("assistant"), turn("user")], "messages", "no answer"),
        ([turn("assistant")], "messages[0].role", "turns out of order"),
        ([turn("system"), turn("assistant")], "messages[1].role", "turns out of order"),
        ([turn("user"), turn("user"), turn("assistant")], "messages[1].role", "turns out of order"),
        ([turn("user"), turn("assistant"), turn("assistant")], "messages[2].role", "turns out of order"),
        ([turn("user"), turn("system"), turn("assistant")], "messages[1].role", "turns out of order"),
        ([turn("human"), turn("assistant")], "messages[0].role", "unknown role"),
        ([turn(["user"]), turn("assistant")], "messages[0].role", "unknown role"),
        ([{"content": "x"}, turn("assistant")], "messages[0].role", "unknown role"),
        ([turn("user", ""), turn("assistant")], "messages[0].content", "empty content"),
        ([turn("user"), turn("assistant", " \n")], "messages[1].content", "empty content"),
        ([turn("user", None), turn("assistant")], "messages[0].content", "content is not text"),
        (
            [turn("user", [{"type": "text", "text": "x"}]), turn("assistant")],
            "messages[0].content",
            "content is not text",
        ),
        ([turn("user", 10**5000), turn("assistant")], "messages[0].content", "content is not text"),
        ([turn("user", "\ud800"), turn("assistant")], "messages[0].content", "invalid text"),
        ([turn("user", "x" * MAX_CHARS), turn("assistant")], "messages", "too long"),
        (["user: hi", "assistant: ho"], "messages[0]", "not a message"),
        ([None, turn("assistant")], "messages[0]", "not a message"),
    ],
)
def test_broken_messages(messages, field, reason):
    with pytest.raises(RowError) as error:
        to_example(messages, "id", "a:1")
    assert (error.value.field, error.value.reason) == (field, reason)
    assert len(str(error.value)) < 300


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "other"]), inner, max_size=3)
    ),
    max_leaves=12,
)
code = st.text(alphabet="[]{}(),:'\"\\x1 -+*#\nrole user\0é\ud800", max_size=60)


@settings(max_examples=50, deadline=None)
@property_of(st.one_of(anything, anything.map(repr), code, code.map(lambda text: "[" + text + "]")))
def test_any_value_is_a_row_or_a_row_error(value):
    try:
        example = to_example(parse_conversations(value), "id", "a:1")
    except RowError:
        return
    assert example.x[-1].role == "user" and example.y.strip()


contents = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda t: not is_blank(t))


@settings(max_examples=50, deadline=None)
@property_of(st.lists(st.tuples(contents, contents), min_size=1, max_size=3), st.none() | contents, st.booleans())
def test_every_good_conversation_survives_both_forms(pairs, system, extra):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in pairs:
        messages += turns(question, answer)
    messages = [{**message, "other": None} for message in messages] if extra else messages
    rows = [to_example(parse_conversations(form(messages)), "id", "a:1") for form in (repr, json.dumps, list)]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0].y == pairs[-1][1]


def test_fingerprint_is_of_roles_and_texts_only():
    def row(messages, language="id", id="a"):
        return fingerprint(to_example(messages, language, id))

    base = row(turns("a", "b"))
    assert base == row(turns("a", "b"), "vi", "z")
    others = [
        turns("a", "c"),
        turns("ab", "b"),
        turns("a,b", "b"),
        [{"role": "system", "content": "s"}, *turns("a", "b")],
        [*turns("a", "b"), *turns("a", "b")],
    ]
    assert len({base, *map(row, others)}) == 1 + len(others)


def test_zawgyi_is_looked_for_in_every_turn_of_burmese_rows_only():
    zawgyi = "ကိုယ္စားလွယ္မ်ားသည္ ျဖစ္ေနမည္ကို စိုးရိမ္ခဲ့ၾကပါသည္။"
    assert is_zawgyi(to_example(turns("translate this", zawgyi), "my", "a"))
    assert is_zawgyi(to_example(turns(zawgyi, "translated"), "my", "a"))
    assert not is_zawgyi(to_example(turns(zawgyi, "translated"), "th", "a"))
