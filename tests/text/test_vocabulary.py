"""Tokenizers of one family share a vocabulary and differ in added tokens; models may have fewer embeddings than a
tokenizer has tokens: what they have in common is used, and a text that holds anything else is refused."""

from __future__ import annotations

import kit
import pytest
from transformers import PreTrainedTokenizerBase

from dudi.errors import DudiError
from dudi.example import Example
from dudi.recipe.schema import Limits
from dudi.text.chat import Chat
from dudi.text.vocabulary import check_same_tokenizer
from dudi.training.window import encode_rows


def with_added(*tokens: str) -> PreTrainedTokenizerBase:
    tok = kit.tokenizer()
    tok.add_tokens(list(tokens))
    return tok


@pytest.mark.parametrize(
    "student, teacher, shared",
    [
        ([], ["<tool>", "<think>"], kit.VOCAB),
        (["<tool>", "<think>"], [], kit.VOCAB),
        (["<tool>"], ["<tool>", "<think>"], kit.VOCAB + 1),
        (["<box>"], ["<tool>", "<box>"], kit.VOCAB),  # the same token at two ids
    ],
)
def test_what_comes_after_the_common_ids_may_be_added_tokens(
    student: list[str], teacher: list[str], shared: int
) -> None:
    assert check_same_tokenizer(with_added(*student), with_added(*teacher)) == shared


def test_an_added_token_that_one_only_reserves_is_what_the_other_calls_it() -> None:
    """Llama 3.1 gives names to tokens that Llama 3 reserves, and what ends a turn comes after them in both."""
    older = ("<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>", "<|eot|>", "<|reserved_3|>")
    later = ("<|reserved_0|>", "<|right_pad|>", "<|reserved_1|>", "<|eot|>", "<|python|>")
    for student, teacher in ((older, later), (later, older)):
        assert check_same_tokenizer(with_added(*student), with_added(*teacher)) == kit.VOCAB + 5
    assert check_same_tokenizer(with_added(*older, "<|tool|>"), with_added(*later)) == kit.VOCAB + 5
    assert check_same_tokenizer(with_added("<|a|>", "<|eot|>"), with_added("<|b|>", "<|eot|>")) == kit.VOCAB


def test_ordinary_tokens_that_differ_are_refused_even_past_the_common_ids() -> None:
    with pytest.raises(DudiError, match="different tokenizers"):
        check_same_tokenizer(kit.tokenizer(), kit.tokenizer(kit.VOCAB - 40))


def test_a_vocabulary_is_cut_where_only_added_tokens_lie_beyond() -> None:
    c = Chat(with_added("<image>"), None, {}, stops=(kit.VOCAB,))
    assert c.vocab == kit.VOCAB + 1 and kit.VOCAB in c.stop_ids
    c.limit(kit.VOCAB + 20)  # padded embeddings
    assert c.vocab == kit.VOCAB + 1
    c.limit(kit.VOCAB - 1)  # another tokenizer's model: not ours to hide
    assert c.vocab == kit.VOCAB + 1
    c.limit(kit.VOCAB)
    assert c.vocab == kit.VOCAB and kit.VOCAB not in c.stop_ids


def test_rows_that_hold_a_token_beyond_are_refused_by_name() -> None:
    c = Chat(with_added("<image>"), None, {})
    rows = [
        Example(kit.message(q), a, "id", name)
        for name, q, a in (("a", "q", "b"), ("x", "<image>", "b"), ("y", "q", "<image>"))
    ]
    assert [row.example.id for row in encode_rows(rows, c, Limits()).rows] == ["a", "x", "y"]
    c.limit(kit.VOCAB)
    found = encode_rows(rows, c, Limits())
    assert [row.example.id for row in found.rows] == ["a"]
    assert found.reasons == {"id": {"the text holds '<image>', a token that not all models of this run have": 2}}
    for row in rows[1:]:
        with pytest.raises(DudiError, match=rf'^{row.id}: the text holds .<image>.*data\.bad_rows = "skip"'):
            encode_rows([row], c, Limits(), strict=True)
        with pytest.raises(DudiError, match="<image>"):
            c.conversation(row.x, row.y)


def test_a_template_that_writes_a_token_beyond_is_refused() -> None:
    tok = with_added("<image>", "<end>")
    for template, said in (
        ("<image>" + kit.CHATML, "the chat template writes '<image>'"),
        (kit.CHATML.replace("<|im_end|>\n", "<end>"), "<end>"),
    ):
        with pytest.raises(DudiError, match=said):
            Chat(tok, template, {}).limit(kit.VOCAB)
    tok = kit.tokenizer()
    tok.add_special_tokens({"eos_token": "<eos>"})
    with pytest.raises(DudiError, match="an answer ends with '<eos>'"):
        Chat(
            tok, "{% for m in messages %}{{ m.content }}\n{% endfor %}{{ 'A:' if add_generation_prompt and false }}", {}
        ).limit(kit.VOCAB)


def test_a_padding_token_beyond_is_not_used() -> None:
    tok = kit.tokenizer()
    tok.add_special_tokens({"pad_token": "<pad>"})
    c = Chat(tok, None, {})
    assert c.pad == kit.VOCAB
    c.limit(kit.VOCAB)
    assert c.pad == c.turn_end
