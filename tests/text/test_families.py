"""Chat templates in the habits of their families: what goes into the prompt and the answer, and what they drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kit
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from dudi.errors import DudiError
from dudi.example import Message
from dudi.text.chat import Chat

LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set head = messages[0].content %}{% else %}"
    "{% set rest = messages %}{% set head = false %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{% set text = '<<SYS>>\\n' + head + '\\n<</SYS>>\\n\\n' + m.content if loop.first and head else m.content %}"
    "{{ '<s>[INST] ' + text.strip() + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' </s>' }}{% endif %}"
    "{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ ('<s>' if loop.first else '') + '<|h|>' + m.role + '<|/h|>\n\n' + m.content | trim +"
    " '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
MISTRAL1 = (
    "<s>{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation"
    " roles must alternate') }}{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)
MISTRAL3 = (  # the system turn goes to the last user's, and is lost once an answer is there
    '{%- if messages[0]["role"] == "system" %}\n    {%- set system = messages[0]["content"] %}\n'
    "    {%- set rest = messages[1:] %}\n{%- else %}\n    {%- set rest = messages %}\n{%- endif %}\n{{- '<s>' }}\n"
    '{%- for m in rest %}\n    {%- if m.role == "user" %}\n        {%- if loop.last and system is defined %}\n'
    '            {{- "[INST] " + system + "\\n\\n" + m.content + "[/INST]" }}\n        {%- else %}\n'
    '            {{- "[INST] " + m.content + "[/INST]" }}\n        {%- endif %}\n    {%- else %}\n'
    '        {{- " " + m.content | trim + "</s>" }}\n    {%- endif %}\n{%- endfor %}\n'
)
MISTRAL7 = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}{% elif m.role =="
    " 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{% else %}{{ m.content + '</s>' }}{% endif %}"
    "{% endfor %}"
)
GEMMA3 = (
    "<s>{%- if messages[0].role == 'system' -%}{%- set head = messages[0].content + '\n\n' -%}{%- set rest ="
    " messages[1:] -%}{%- else -%}{%- set head = '' -%}{%- set rest = messages -%}{%- endif -%}{%- for m in rest -%}"
    "{{ '<|h|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (head if loop.first else '') }}"
    "{{ m.content | trim }}{{ '<|end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|h|>model\n' }}"
    "{%- endif -%}"
)
PHI3_MINI = (  # knows no system turn
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|h|>user\n' + m.content + '<|end|>\n<|h|>assistant\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
DEEPSEEK = (  # takes reasoning out of every answer, the last among them
    "{% set ns = namespace(head='') %}{% for m in messages if m.role == 'system' %}{% set ns.head = m.content %}"
    "{% endfor %}<s>{{ ns.head }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|h|>' + m.content }}{% elif"
    " m.role == 'assistant' %}{{ '<|/h|>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|/h|>' }}{% endif %}"
)
SAILOR = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|h|>system\nYou are helpful<|end|>\n{% endif %}"
    "<|h|>{{ {'user': 'question', 'assistant': 'answer'}.get(m.role, m.role) }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|h|>answer\n{% endif %}"
)
SEALLM = (
    "<s>{% for m in messages %}<|h|>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant\n{% endif %}"
)
VICUNA = (
    "<s>{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}A chat.{% endif %} {% for m in messages"
    " if m.role != 'system' %}{{ 'USER: ' + m.content + ' ' if m.role == 'user' else 'ASSISTANT: ' + m.content +"
    " '</s>' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
OLMO2 = (
    "<s>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% if m.role != 'assistant' %}{{ '\n' }}{% elif"
    " loop.last %}</s>{% else %}{{ '</s>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
    "{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|h|>{{ m.role }}{{ '<|c|>final' if m.role == 'assistant' }}<|/h|>{{ m.content }}{{"
    " '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|h|>assistant\n{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}\n{% else %}<|h|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant\n{% endif %}"
)
THINKING = (  # SmolLM3's switch; GLM 4.5's is like it
    "{% for m in messages %}<|h|>{{ m.role }}\n{% if m.role == 'assistant' and not enable_thinking %}<think>\n\n"
    "</think>\n{% endif %}{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|h|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
FAMILIES: dict[str, tuple[str, str]] = {
    "Llama 2": (LLAMA2, " @ </s>"), "Llama 3": (LLAMA3, "@<|end|>"), "Mistral v7": (MISTRAL7, "@</s>"),
    "Gemma 3": (GEMMA3, "@<|end|>"), "Sailor": (SAILOR, "@<|end|>"), "SeaLLM": (SEALLM, "@</s>"),
    "Vicuna": (VICUNA, " @</s>"), "OLMo 2": (OLMO2, "@</s>"), "harmony": (HARMONY, "<|c|>final<|/h|>@<|return|>"),
    "generation tags": (GENERATION, "@<|end|>"), "a thinking switch": (THINKING, "@<|end|>"),
    "DeepSeek": (DEEPSEEK, "@</s>"),
}  # fmt: skip
"""Templates that write a system turn and all of an answer, and what they write for an answer."""
SPECIAL = ["<s>", "</s>", "<|h|>", "<|/h|>", "<|end|>", "<|c|>", "<|return|>"]
X = kit.message("Apa kabar?", "Baik.", "Kamu siapa?", system="Sopan.")
TEXTS = ["4 saja", "Ya.\n\nTidak.", "\nRất đẹp", "မြန်မာ", "ไทย 2"]


def made(template: str, **values: Any) -> Chat:
    tok = kit.tokenizer()
    tok.add_special_tokens({"additional_special_tokens": [AddedToken(t, normalized=False) for t in SPECIAL]})
    tok.bos_token, tok.eos_token = "<s>", "</s>"
    return Chat(tok, template, {}, **values)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_habits_of_a_family(name: str, tmp_path: Path) -> None:
    """The prompt is the template's own, also from the saved folder; the answer is what it writes for one; nothing of
    the messages is missing."""
    template, written = FAMILIES[name]
    chat = made(template)
    chat.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        for x in (X, X[1:], X[:2], X[1:2]):
            prompt, answer = chat.row(x, text)
            turns = [m.as_dict() for m in x]
            said = saved.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert chat.decode(prompt) == said and all(m.content in said for m in x)
            trimmed = text.strip() if name in ("Llama 2", "Llama 3", "Gemma 3") else text
            assert chat.decode(answer) == written.replace("@", trimmed)
            assert prompt == saved.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


DROPPED: dict[str, tuple[str, tuple[Message, ...], str, str]] = {
    "no system turn": (PHI3_MINI, X, "a", r"leaves out or rewrites the text of a turn \(system\); chat.merge_system"),
    "lost in the end": (MISTRAL3, X, "a", "does not continue its own generation prompt for this .*; chat.merge_system"),
    "refused": (MISTRAL1, X, "a", "Conversation roles must alternate; chat.merge_system"),
    "reasoning": (DEEPSEEK, X, "<think>hm</think>a", "leaves out or rewrites a part of the answer$"),
    "an answer that stands in the question": (
        kit.CHATML.replace("m['content']", "m['content'][:6]"), kit.message("4 + 3?"), "4 + 3?!", "a part of the answer"
    ),
    "a question cut": (kit.CHATML.replace("m['content']", "m['content'][:4]"), X[1:2], "a", r"of a turn \(user\)$"),
    "small letters": (kit.CHATML.replace("m['content']", "m['content'] | lower"), X[1:2], "a", r"of a turn \(user\)$"),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPPED)
def test_what_a_template_drops_is_refused(name: str) -> None:
    template, x, y, said = DROPPED[name]
    chat = made(template)
    with pytest.raises(DudiError, match=said) as error:
        chat.row(x, y)
    assert "\n" not in str(error.value)
    if "merge_system" in str(error.value):
        merged = made(template, merge_system=True)
        assert all(m.content in merged.decode(merged.row(x, y)[0]) for m in x)


def test_templates_may_move_white_space_and_take_old_reasoning_out() -> None:
    chat = made(
        kit.CHATML.replace("m['content']", "m['content'].replace('\\n\\n', '\\n').split('</think>')[-1] | trim")
    )
    x = kit.message("a\n\nb", "<think>hm</think>\n\nc", "d ")
    assert (
        "hm" not in chat.decode(chat.row(x, "e\n\nf")[0]) and chat.decode(chat.row(x, "e\n\nf")[1]) == "e\nf<|im_end|>"
    )


def test_a_date_that_no_value_fixes_and_an_opening_that_no_answer_has() -> None:
    with pytest.raises(DudiError, match=r"prints today's date.*set chat.template to a copy of it with a date"):
        made("{{ strftime_now('%d %B') }}" + kit.CHATML)
    opened = kit.CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert opened != kit.CHATML
    with pytest.raises(DudiError, match=r"which ends with '.*<think>\\n': it cannot be .* enable_thinking = false"):
        made(opened)
