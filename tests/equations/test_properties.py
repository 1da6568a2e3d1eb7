"""Whatever is given: a result or one line of `DudiError`, and never anything else; what is read is what was written."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import kit
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kit.recipes import GOOD, KEYS, good

from dudi.data.conversation import RowError, is_blank, messages_of, parse_conversations, to_example
from dudi.data.load import load_rows
from dudi.data.rows import as_line
from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.methods import Mode, Response, View
from dudi.recipe.read import dump_recipe, load_recipe, parse_recipe
from dudi.recipe.schema import Data, Recipe
from dudi.records import Item
from dudi.strict import parsed
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer, read_template

bounded = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
filled = text.filter(lambda t: not is_blank(t))
special = (
    st.lists(
        st.sampled_from(
            ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im", "|>", "\ufdd0", "\ufdd12", "a", "ไทย", " ", "\n"]
        )
        | filled,
        min_size=1,
        max_size=6,
    )
    .map("".join)
    .filter(str.strip)
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=6)


def one_line(error: DudiError) -> None:
    line = str(error)
    assert line and len(line.splitlines()) == 1 and len(line) < 3000


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@bounded
@given(st.sampled_from([path for path, _ in KEYS]), values)
def test_any_value_of_any_key_is_a_recipe_or_one_line(path: tuple[str, ...], value: Any) -> None:
    table = good()
    inner = table
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = value
    try:
        assert isinstance(parse_recipe(table, "here"), Recipe)
    except DudiError as error:
        one_line(error)


@bounded
@given(
    st.lists(
        st.text(max_size=20) | st.builds("{}={}".format, st.sampled_from(["seed", "a.b", "chat.kwargs.x"]), text),
        max_size=3,
    )
)
@example(["seed=" + "9" * 5000])
@example([".".join("a" * 3000) + "=1"])
def test_any_override_is_a_recipe_or_one_line(tmp_path: Path, items: list[str]) -> None:
    file = tmp_path / "r.toml"
    file.write_text(GOOD, encoding="utf-8")
    try:
        load_recipe(file, items)
    except DudiError as error:
        one_line(error)


@bounded
@given(st.binary(max_size=60) | st.text(alphabet="[]{}=.\"'ab1\n#\\ ", max_size=60).map(str.encode))
def test_any_file_is_a_recipe_or_one_line(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(data)
    with pytest.raises(DudiError) as error:
        load_recipe(file)
    one_line(error.value)


@bounded
@given(
    filled.filter(lambda t: "\0" not in t),
    st.dictionaries(filled, text | st.booleans() | st.integers(-9, 9), max_size=3),
)
def test_a_recipe_is_read_back_as_it_was_written(tmp_path: Path, description: str, kwargs: dict[str, Any]) -> None:
    table = good() | {"description": description, "chat": {"kwargs": kwargs}}
    try:
        recipe = parse_recipe(table, "here")
    except DudiError:
        assert "\0" in repr(kwargs).replace("\\x00", "\0")
        return
    file = tmp_path / "r.toml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(file) == recipe


# ── conversations and JSONL ──────────────────────────────────────────────────────────────────────────────────────────
@st.composite
def conversations(draw: Any) -> list[dict[str, str]]:
    turns = draw(st.lists(filled, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
    messages = [{"role": ("user", "assistant")[k % 2], "content": t} for k, t in enumerate(turns)]
    return [{"role": "system", "content": draw(filled)}, *messages] if draw(st.booleans()) else messages


@bounded
@given(conversations(), st.booleans())
def test_a_conversation_as_text_is_the_conversation(messages: list[dict[str, str]], python: bool) -> None:
    read = parse_conversations(repr(messages) if python else json.dumps(messages))
    row = to_example(read, "id", "r")
    assert messages_of(row) == messages
    again = json.loads(as_line(row))
    assert to_example(again["messages"], "id", "r") == row


@bounded
@given(conversations(), st.integers(0, 400), st.text(alphabet="[]{}(),'\"\\:x\0", max_size=3))
def test_a_damaged_conversation_is_a_row_or_a_row_error(messages: list[Any], at: int, inserted: str) -> None:
    whole = repr(messages)
    try:
        to_example(parse_conversations(whole[: at % len(whole)] + inserted + whole[at % len(whole) :]), "id", "r")
    except RowError as error:
        one_line(error)


line = st.one_of(
    conversations().map(lambda m: json.dumps({"language": "id", "messages": m}).encode()),
    st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")),
    values.map(lambda v: json.dumps(v).encode()),
)


@bounded
@given(st.lists(line, max_size=5))
def test_every_line_of_a_file_is_counted_once(tmp_path: Path, lines: list[bytes]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(lines))
    there = sum(bool(one.strip()) for one in lines)
    try:
        loaded = load_rows(Data(source=str(file), bad_rows="skip"), 0)
    except DudiError as error:
        one_line(error)
        return
    assert all(one.balanced for one in loaded.report.languages.values())
    assert sum(one.read for one in loaded.report.languages.values()) == there
    assert len({as_line(row) for row in loaded.train}) == len(loaded.train)


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────
@bounded
@given(filled, filled, st.sampled_from(kit.LANGUAGES), st.integers(0, 99))
@example("{demonstration}", "{question} {language} {0} {", "id", 0)
def test_question_and_answer_are_in_the_prompts_as_they_are(x: str, y: str, l: str, row: int) -> None:
    v = shipped()
    made = v(View(Response.Y_TILDE, Mode.CROSSLINGUAL), Example((Message("user", x),), y, l, "r"), 0, row)
    student, teacher = made.student[-1].content, made.teacher[-1].content
    assert made.l_z is not None and made.l_z != l
    assert x in student and x in teacher and y in teacher
    name = v.templates[l].names[made.l_z]
    assert student.replace(x, "").count(name) >= 1 or name in x


@cache
def shipped() -> Verbalizer:
    return Verbalizer(kit.LANGUAGES)


@bounded
@given(st.dictionaries(st.sampled_from(["teacher", "student", "teacher_unnamed", "x"]), values), st.binary(max_size=20))
def test_any_template_file_is_a_template_or_one_line(tmp_path: Path, table: dict[str, Any], noise: bytes) -> None:
    file = tmp_path / "id.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    file.write_bytes("\n".join([*lines, "[names]", 'vi = "v"']).encode() + noise)
    try:
        read_template(file)
    except DudiError as error:
        one_line(error)


@bounded
@given(special, special, st.none() | special)
def test_no_text_can_write_a_special_token(x: str, y: str, system: str | None) -> None:
    c = chatml()
    messages = kit.message(x, system=system)
    prompt, response = c.prompt(messages), c.response(messages, y)
    turns = 3 if system else 2
    assert [prompt.count(i) for i in (0, 1, 2)] == [0, turns, turns - 1]
    assert [i for i in response if i in c.specials.ids] == [c.turn_end]
    assert c.decode(prompt).endswith(f"<|im_start|>user\n{x}<|im_end|>\n<|im_start|>assistant\n")
    assert c.decode(response) == f"{y}<|im_end|>"


@cache
def chatml() -> Chat:
    return Chat(kit.tokenizer(), None, {})


@bounded
@given(st.text(alphabet="{}%messages|for in'\"()[]*+-~ .10\n", max_size=40))
def test_any_chat_template_is_one_or_one_line(source: str) -> None:
    try:
        Chat(kit.tokenizer(template=None), source or " ", {})
    except DudiError as error:
        assert re.match(r"the (chat template|tokenizer) ", str(error))


# ── benchmarks ───────────────────────────────────────────────────────────────────────────────────────────────────────
@bounded
@given(st.dictionaries(st.sampled_from([*Item.model_fields, "x"]), values) | values)
def test_any_item_is_one_or_one_line(value: Any) -> None:
    try:
        parsed(Item, json.dumps(value), "here")
    except DudiError as error:
        one_line(error)
