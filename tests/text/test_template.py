"""The prompt of training, of `dudi eval`, and of plain `apply_chat_template` on the saved folder are one; a system turn
is merged where a template refuses it; a template never prints today's date."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from dudi.errors import DudiError
from dudi.evals.respond import load_responder
from dudi.models.load import eos_ids, load_config
from dudi.recipe.read import load_recipe, shipped_recipes
from dudi.recipe.schema import Models
from dudi.text.chat import Chat
from dudi.text.template import MERGE_SYSTEM

QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {%- if message.role != 'system' or not loop.first %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
QWEN3 = (
    "{%- for message in messages %}\n    {%- if message.role == 'assistant' and loop.last %}\n"
    "        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- else %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}"
)
LLAMA32 = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- else %}\n"
    "        {%- set date_string = '26 Jul 2024' %}\n    {%- endif %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
    "{{- '<|im_start|>system\\n\\nToday Date: ' + date_string + '\\n\\n' + system_message + '<|im_end|>' }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n\\n' }}\n{%- endif %}\n"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
LEADING = "\n  {% if mode == 'a' %}\nA{% endif %}\n" + kit.CHATML
"""Begins with white space that Jinja keeps, or takes away, depending on what stands before."""
HABITS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5": (QWEN25, {}),
    "Qwen3": (QWEN3, {"enable_thinking": False}),
    "Llama-3.2": (LLAMA32, {"date_string": "26 Jul 2024"}),
    "odd values": (LEADING, {"mode": "a", "a": 'q"\\ \n%} {{ x }} ไทย 🌏', "n": 3, "on": True}),
    "another bos": (LLAMA32, {"date_string": "1", "bos_token": "<|im_end|>"}),
}
X = kit.message("Halo", "Ya.", "Apa kabar?", system="Sopan.")


def base() -> PreTrainedTokenizerBase:
    tok = kit.tokenizer(template="{{ 'nothing of this is read' }}")
    tok.bos_token = "<|endoftext|>"
    return tok


def plain(folder: Path, messages: Any, prompt: bool = True) -> str:
    """What anybody gets from the saved folder, who knows nothing of how it was trained."""
    turns = [m.as_dict() for m in messages]
    return str(
        AutoTokenizer.from_pretrained(folder).apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    )


@pytest.mark.parametrize("name", HABITS)
def test_the_prompt_of_training_is_that_of_evaluation_and_of_anybody(name: str, tmp_path: Path) -> None:
    template, kwargs = HABITS[name]
    trained = Chat(base(), template, kwargs)
    kit.save(tmp_path, kit.model(1, dtype=torch.float32), kit.tokenizer())
    trained.save(tmp_path)
    for x in (X, X[1:], X[1:2]):
        asked = trained.prompt(x)
        assert load_responder(str(tmp_path)).chat.prompt(x) == asked
        assert plain(tmp_path, x) == trained.decode(asked)
    assert (tmp_path / "chat_kwargs.json").exists() == bool(kwargs)
    if kwargs:
        assert json.loads((tmp_path / "chat_kwargs.json").read_text(encoding="utf-8")) == kwargs


def test_a_value_can_still_be_given_to_the_saved_template(tmp_path: Path) -> None:
    Chat(base(), QWEN3, {"enable_thinking": False}).save(tmp_path)
    tok = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "q"}]
    asked = {
        v: tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=v)
        for v in (True, False)
    }
    assert asked[True].endswith("assistant\n") and asked[False].endswith("</think>\n\n")


def test_training_again_from_the_result_changes_nothing(tmp_path: Path) -> None:
    first = Chat(base(), GEMMA, {"date_string": "x"}, merge_system=True)
    first.save(tmp_path)
    again = Chat(AutoTokenizer.from_pretrained(tmp_path), None, {"date_string": "x"}, merge_system=True)
    assert again.prompt(X) == first.prompt(X)
    assert again.saved_template.count("date_string") == first.saved_template.count("date_string")
    assert again.saved_template.count("messages[2:]") == 1


def test_the_shipped_recipes_habits_are_among_these() -> None:
    """Every `chat.kwargs` of a shipped recipe is one that is tried above."""
    tried = [kwargs for _, kwargs in HABITS.values()]
    assert all(load_recipe(name).chat.kwargs in tried for name in shipped_recipes())


def test_qwens_own_template(tmp_path: Path) -> None:
    folder = os.environ.get("DUDI_DATA_DIR")
    if folder is None:
        pytest.skip("DUDI_DATA_DIR is not set")
    trained = Chat(AutoTokenizer.from_pretrained(Path(folder) / "qwen_tokenizer"), None, {"enable_thinking": False})
    trained.save(tmp_path)
    assert plain(tmp_path, X) == trained.decode(trained.prompt(X))


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_today_is_found_by_trying_not_by_a_name() -> None:
    with pytest.raises(DudiError, match="prints today's date"):
        Chat(base(), LLAMA32, {})
    other = LLAMA32.replace("date_string", "today")
    with pytest.raises(DudiError, match="prints today's date"):
        Chat(base(), other, {"date_string": "26 Jul 2024"})
    assert Chat(base(), other, {"today": "26 Jul 2024"}).prompt(X)
    never = "{% if messages|length > 100 %}{{ strftime_now('%Y') }}{% endif %}" + kit.CHATML
    assert Chat(base(), never, {}).prompt(X)
    with_system = "{% if messages[0].role == 'system' %}{{ strftime_now('%Y') }}{% endif %}" + kit.CHATML
    with pytest.raises(DudiError, match="prints today's date"):
        Chat(base(), with_system, {})


def test_what_cannot_be_written_into_the_template_is_refused() -> None:
    with pytest.raises(DudiError, match=r"'date-string' is no name in a chat template"):
        Chat(base(), kit.CHATML, {"date-string": "x"})
    asks = "{% if messages and tools %}{{ tools }}{% endif %}" + kit.CHATML
    with pytest.raises(DudiError, match=r"cannot be written into the chat template|refuses a conversation"):
        Chat(base(), asks, {"add_generation_prompt": True})


# ── a system turn where the template has none ────────────────────────────────────────────────────────────────────────
def test_a_system_turn_stands_at_the_head_of_the_first_user_turn(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match="System role not supported"):
        Chat(base(), GEMMA, {}).prompt(X)
    merged = Chat(base(), GEMMA, {}, merge_system=True)
    assert merged.decode(merged.prompt(X)) == (
        "<|endoftext|><|im_start|>user\nSopan.\n\nHalo<|im_end|>\n<|im_start|>assistant\nYa.<|im_end|>\n"
        "<|im_start|>user\nApa kabar?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert merged.prompt(X[1:]) == Chat(base(), GEMMA, {}).prompt(X[1:])
    ids, targets = merged.conversation(X, "Baik.")
    assert ids == merged.prompt(X) + merged.response(X, "Baik.")
    assert merged.decode([ids[t] for t in targets]) == "Ya.<|im_end|>Baik.<|im_end|>"
    merged.save(tmp_path)
    assert plain(tmp_path, X) == merged.decode(merged.prompt(X)) and MERGE_SYSTEM in merged.saved_template


def test_special_tokens_in_a_merged_system_turn_stay_text() -> None:
    merged = Chat(base(), GEMMA, {}, merge_system=True)
    x = kit.message("q", system="<|im_end|>")
    assert merged.prompt(x).count(2) == 1 and "<|im_end|>\n\nq" in merged.decode(merged.prompt(x))


# ── stops ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_stops_are_those_of_template_tokenizer_and_generation_configs(tmp_path: Path) -> None:
    tok = kit.tokenizer()
    tok.eos_token = "<|endoftext|>"
    assert Chat(tok, None, {}).stop_ids == (0, 2)
    assert Chat(tok, None, {}, (1, 7, 10_000, -1)).stop_ids == (0, 1, 2, 7)
    kit.save(tmp_path, kit.model(1, dtype=torch.float32), kit.tokenizer())
    config = load_config(str(tmp_path), "models.student", Models(student="x"))

    def stops() -> tuple[int, ...]:
        return eos_ids(config, str(tmp_path), "models.student", None, {2})

    assert stops() == (2,)
    for wanted in (5, [1, 5]):
        GenerationConfig(eos_token_id=wanted).save_pretrained(tmp_path)
        assert stops() == ((5,) if wanted == 5 else (1, 5))
    for text in ("[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [true]}'):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(DudiError, match=r"^models\.student: .*generation_config\.json"):
            stops()
    (tmp_path / "generation_config.json").unlink()
    assert stops() == (2,)  # config.json's, as the library has it


def test_a_stop_that_nobody_chose_is_none(tmp_path: Path) -> None:
    """Llama's config class says 2, also where the tokenizer's token 2 is ordinary text."""
    made = kit.model(1, kind="llama", dtype=torch.float32)
    assert type(made.config)().eos_token_id == 2
    kit.save(tmp_path, made, kit.tokenizer())
    models = Models(student="x")
    for wanted in (2, [2, 9]):
        GenerationConfig(eos_token_id=wanted).save_pretrained(tmp_path)
        kept = () if wanted == 2 else (9,)
        config = load_config(str(tmp_path), "models.student", models)
        assert eos_ids(config, str(tmp_path), "models.student", None, {0, 1}) == kept
        assert eos_ids(config, str(tmp_path), "models.student", None, {0, 1, 2}) == (2, *kept)
