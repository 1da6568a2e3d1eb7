"""What a model is asked with: the chat template's arguments that it was trained with, and its attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.evals import save_model, write
from transformers import BloomConfig, BloomForCausalLM

from dudi.errors import DudiError
from dudi.evals.evaluate import evaluate
from dudi.evals.respond import load_responder
from dudi.example import Message
from dudi.records import CHAT_KWARGS

THINKING = "{% if not think %}no {% endif %}{{ style or '' }}" + kit.CHATML


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write(tmp_path / "bench")


def trained_with(folder: Path, text: str) -> str:
    """A model folder whose template reads `think` and `style`, with the arguments of its training."""
    model = kit.model(3, rows=kit.VOCAB + 6, dtype=torch.float32, tied=False)
    path = kit.save(folder, model, kit.tokenizer(template=THINKING))
    (folder / CHAT_KWARGS).write_text(text, encoding="utf-8")
    return path


def recorded(out: Path) -> Any:
    return json.loads((out / "eval.json").read_text(encoding="utf-8"))["decoding"]["chat_kwargs"]


def test_a_model_is_asked_as_it_was_trained(bench: Path, tmp_path: Path) -> None:
    model = trained_with(tmp_path / "m", '{"think": true, "style": "brief"}')
    question = (Message("user", "?"),)
    prompts = {
        name: load_responder(model, chat_kwargs=given).chat.prompt(question)
        for name, given in {
            "own": None,
            "spelt out": {"think": True, "style": "brief"},
            "other": {"think": False},
        }.items()
    }
    assert prompts["own"] == prompts["spelt out"] != prompts["other"]
    (tmp_path / "m" / CHAT_KWARGS).unlink()
    assert load_responder(model).chat.prompt(question) not in prompts.values()


def test_single_keys_are_overridden_and_the_record_says_what_was_used(bench: Path, tmp_path: Path) -> None:
    model = trained_with(tmp_path / "m", '{"think": true, "style": "brief"}')
    evaluate(model, bench, tmp_path / "own", limit=1, say=lambda text: None)
    assert recorded(tmp_path / "own") == {"think": True, "style": "brief"}
    evaluate(model, bench, tmp_path / "other", limit=1, say=lambda text: None, chat_kwargs={"style": "long", "n": 2})
    assert recorded(tmp_path / "other") == {"think": True, "style": "long", "n": 2}
    (tmp_path / "m" / CHAT_KWARGS).write_text('{"think": false}')  # other prompts: these answers are not mixed
    with pytest.raises(DudiError, match=r"decoding\.chat_kwargs is \{'think': True, 'style': 'brief'\} there"):
        evaluate(model, bench, tmp_path / "own", limit=1, say=lambda text: None)


BROKEN = {
    "a list": ("[1]", "chat_kwargs.json: expected a table (JSON object), found [1]"),
    "a number with a point": ('{"a": 1.5}', "chat_kwargs.json: a: expected a text, a whole number, true or false"),
    "a table": (
        '{"a": {"b": 1}}',
        "chat_kwargs.json: a: expected a text, a whole number, true or false, found {'b': 1}",
    ),
    "a key twice": ('{"a": 1, "a": 2}', "chat_kwargs.json: not valid JSON: key 'a' occurs twice"),
    "cut off": ('{"a": ', "chat_kwargs.json: not valid JSON"),
    "empty": ("", "chat_kwargs.json: not valid JSON"),
    "an argument of ours": ('{"tokenize": true}', "the chat template refuses"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_and_nothing_is_written(name: str, bench: Path, tmp_path: Path) -> None:
    text, said = BROKEN[name]
    model = trained_with(tmp_path / "m", text)
    with pytest.raises(DudiError) as refused:
        evaluate(model, bench, tmp_path / "out", say=lambda text: None)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def eager_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of a class that has no SDPA."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=kit.VOCAB, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    return kit.save(tmp_path_factory.mktemp("models") / "bloom", BloomForCausalLM(config), kit.tokenizer())


def test_transformers_chooses_the_attention(eager_only: str, bench: Path, tmp_path: Path) -> None:
    table = evaluate(eager_only, bench, tmp_path / "out", say=lambda text: None)
    assert table.overall.mean is not None
    assert load_responder(eager_only).model.config._attn_implementation == "eager"
    assert load_responder(save_model(tmp_path / "m", 3)).model.config._attn_implementation == "sdpa"


def test_the_attention_asked_for(eager_only: str, bench: Path, tmp_path: Path) -> None:
    model, out = save_model(tmp_path / "m", 3), tmp_path / "out"
    assert load_responder(model, attention="eager").model.config._attn_implementation == "eager"
    evaluate(model, bench, out, limit=1, say=lambda text: None, attention="eager")
    assert json.loads((out / "eval.json").read_text())["decoding"]["attention"] == "eager"
    with pytest.raises(DudiError, match=r"decoding\.attention is 'eager' there, and None here"):
        evaluate(model, bench, out, limit=1, say=lambda text: None)
    with pytest.raises(DudiError, match=r"\(with --attention sdpa; left out, transformers chooses\)"):
        evaluate(eager_only, bench, tmp_path / "none", say=lambda text: None, attention="sdpa")
    with pytest.raises(DudiError, match=r"attention: expected one of 'sdpa', 'eager'.* found 'fast'"):
        evaluate(model, bench, tmp_path / "none", say=lambda text: None, attention="fast")
    assert not (tmp_path / "none").exists()


def test_a_tokenizer_with_a_token_more_than_the_model_has_embeddings(tmp_path: Path) -> None:
    """As Gemma 3's, for images: what can be trained can be asked, but for questions that hold it."""
    tok = kit.tokenizer()
    tok.add_tokens(["<image>"])
    model = kit.save(tmp_path / "m", kit.model(3, rows=kit.VOCAB, dtype=torch.float32), tok)
    chat = load_responder(model).chat
    assert chat.vocab == kit.VOCAB and chat.prompt((Message("user", "?"),))
    with pytest.raises(DudiError, match="the text holds '<image>'"):
        chat.prompt((Message("user", "<image>?"),))
