"""Token ids kept with a run: the same as made anew, used only where nothing that they depend on has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch

from dudi.data.load import load_rows, write_rows
from dudi.example import Example
from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Limits, Recipe
from dudi.run import prepare as preparing
from dudi.run.prepare import prepare
from dudi.text.chat import Chat
from dudi.training import phases
from dudi.training.tokens import encodings, key_of, read_encodings, write_encodings
from dudi.training.window import encode_rows

STRICT = "{% if messages[0]['content'] == 'X' %}{{ raise_exception('no X') }}{% endif %}" + kit.CHATML
ROWS = [*kit.builtin()[:12], Example(kit.message("X"), "y", "id", "refused")]


@pytest.mark.parametrize("all_answers", [False, True])
def test_what_is_kept_is_what_was_made(tmp_path: Path, all_answers: bool) -> None:
    chat = Chat(kit.tokenizer(), STRICT, {})
    made = encodings(ROWS, chat, all_answers)
    assert [one.refused is None for one in made] == [True] * 12 + [False]
    key = key_of(ROWS, chat, all_answers)
    assert key is not None
    write_encodings(tmp_path / "t.npz", key, made)
    assert read_encodings(tmp_path / "t.npz", key) == made
    limits = Limits(prompt=60, total=100)
    assert encode_rows(ROWS, chat, limits, kept=made) == encode_rows(
        ROWS, chat, limits, kept=read_encodings(tmp_path / "t.npz", key)
    )
    if not all_answers:
        assert encode_rows(ROWS, chat, limits) == encode_rows(ROWS, chat, limits, kept=made)
        for one, example in zip(made, ROWS[:12], strict=False):
            assert (list(one.x), list(one.y)) == (chat.prompt(example.x), chat.response(example.x, example.y))


CHANGES: dict[str, Callable[[], tuple[list[Example], Chat, bool]]] = {
    "a row less": lambda: (ROWS[1:], Chat(kit.tokenizer(), STRICT, {}), False),
    "another answer": lambda: (
        [Example(kit.message("X"), "z", "id", "refused"), *ROWS[1:]],
        Chat(kit.tokenizer(), STRICT, {}),
        False,
    ),
    "the template": lambda: (ROWS, Chat(kit.tokenizer(), kit.CHATML, {}), False),
    "chat.kwargs": lambda: (ROWS, Chat(kit.tokenizer(), STRICT, {"a": 1}), False),
    "merge_system": lambda: (ROWS, Chat(kit.tokenizer(), STRICT, {}, merge_system=True), False),
    "the vocabulary": lambda: (ROWS, Chat(kit.tokenizer(300), STRICT, {}), False),
    "all answers": lambda: (ROWS, Chat(kit.tokenizer(), STRICT, {}), True),
    "eos": lambda: (ROWS, Chat(other_eos(), STRICT.replace("<|im_end|>", ""), {}), False),
}


def other_eos() -> Any:
    tok = kit.tokenizer()
    tok.eos_token = "<|endoftext|>"
    return tok


@pytest.mark.parametrize("change", CHANGES)
def test_another_key_is_another_file(change: str) -> None:
    key = key_of(ROWS, Chat(kit.tokenizer(), STRICT, {}), False)
    assert key == key_of(list(ROWS), Chat(kit.tokenizer(), STRICT, {}), False)
    assert key_of(*CHANGES[change]()) != key


def test_a_file_that_is_not_whole_is_not_used(tmp_path: Path) -> None:
    chat = Chat(kit.tokenizer(), STRICT, {})
    file, made = tmp_path / "t.npz", encodings(ROWS, chat)
    write_encodings(file, "k", made)
    whole = file.read_bytes()
    assert read_encodings(file, "k") == made
    assert read_encodings(file, "other") is read_encodings(file, None) is read_encodings(tmp_path / "none", "k") is None
    for broken in (b"", b"PK", whole[:-30], whole[: len(whole) // 2], whole.replace(b"ids.npy", b"idx.npy")):
        file.write_bytes(broken)
        assert read_encodings(file, "k") is None
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    file.write_bytes(changed)
    assert read_encodings(file, "k") in (None, made)  # a byte of the ids fails the sum of the archive


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    kit.save(tmp_path / "student", kit.model(1, rows=kit.VOCAB, dtype=torch.float32), kit.tokenizer())
    table = {
        "name": "r",
        "method": {"name": "sft"},
        "models": {"student": str(tmp_path / "student")},
        "data": {"source": "builtin", "eval_rows_per_language": 1},
    }
    return parse_recipe(table, "a test")


def test_the_time_of_tokenizing_is_its_own(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves only where rows are read (1000 s) and tokenized (10 s, training and evaluation each)."""
    now = [0.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])

    def slow(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slower(*given: Any) -> Any:
            now[0] += seconds
            return work(*given)

        return slower

    monkeypatch.setattr(preparing, "load_rows", slow(load_rows, 1000.0))
    monkeypatch.setattr(preparing, "encodings", slow(encodings, 10.0))
    timed = phases.Phases()
    prepare(recipe, phases=timed)
    timed.settle(tmp_path)
    assert phases.read(tmp_path)["seconds"] == {"reading": 1000.0, "tokenizing": 20.0}


def test_a_second_start_tokenizes_nothing_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(recipe)
    write_rows(load_rows(recipe.data, 0), tmp_path / "data")
    first.keep_tokens(tmp_path / "data")
    assert sorted(p.name for p in (tmp_path / "data").glob("tokens-*")) == ["tokens-eval.npz", "tokens-train.npz"]

    def never(*_: Any) -> Any:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(preparing, "encodings", never)
    again = prepare(recipe, first.data, tmp_path / "data")
    assert again.train == first.train and again.eval == first.eval and again.said == first.said
    with pytest.raises(AssertionError, match="tokenized again"):
        prepare(recipe, first.data)
