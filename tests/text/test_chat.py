"""Messages <-> token ids: the template alone decides; prompt + response is what it renders; refusals in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kit
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dudi.errors import DudiError
from dudi.example import Message
from dudi.text.chat import Chat, read_template
from dudi.text.vocabulary import check_same_tokenizer

# Shapes of real templates: a default system turn (Qwen2.5), an empty thinking block (Qwen3), a date (Llama 3).
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + kit.CHATML
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "<|im_start|>system\nToday: {% if date_string is defined %}{{ date_string }}{% else %}"
    "{{ strftime_now('%d %b %Y') }}{% endif %}<|im_end|>"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
TEMPLATES: dict[str, tuple[str, dict[str, Any]]] = {
    "chatml": (kit.CHATML, {}),
    "default system": (DEFAULT_SYSTEM, {}),
    "thinking off": (THINKING, {"enable_thinking": False}),
    "date": (HEADERS, {"date_string": "26 Jul 2024"}),
}
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SWITCHED = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ 'A' if add_generation_prompt }}"
BURMESE = "မြန်မာနိုင်ငံ၏ မြို့တော်မှာ နေပြည်တော် ဖြစ်ပါသည်။"
THAI = "กรุงเทพฯ เป็นเมืองหลวงของประเทศไทย น้ำ ผู้ใหญ่"
TAMIL = "தமிழ்நாட்டின் தலைநகரம் சென்னை. ஸ்ரீ க்ஷ"
VIETNAMESE = "Hà Nội là thủ đô của Việt Nam."
TEXTS = [BURMESE, THAI, TAMIL, VIETNAMESE, "Ya.", "🌏 nasi goreng 🍚", " two  spaces ", "a\n\nb", "1", "{{ x }}"]


def chat(template: str | None = kit.CHATML, kwargs: dict[str, Any] | None = None, tok: Any = None) -> Chat:
    return Chat(tok or kit.tokenizer(), template, kwargs or {})


def rendered(c: Chat, messages: Sequence[Message], **kwargs: Any) -> str:
    """The template's own words, without `Chat`."""
    text = c.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        tokenize=False,
        chat_template=c.template,
        **c.kwargs,
        **kwargs,
    )
    return str(text)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", TEXTS)
def test_prompt_and_response_are_what_the_template_renders(name: str, text: str) -> None:
    c = chat(*TEMPLATES[name])
    for x in (kit.message(f"Q {text}"), kit.message("q", text, "r", system=f"S {text}")):
        prompt, response = c.prompt(x), c.response(x, text)
        assert c.decode(prompt) == rendered(c, x, add_generation_prompt=True)
        whole = rendered(c, (*x, Message("assistant", text)))
        after = c.decode([c.turn_end])  # what the template writes after the turn's end belongs to nobody
        assert c.decode(prompt + response) == whole[: whole.rindex(after) + len(after)]
        assert response[-1] == c.turn_end and response.count(c.turn_end) == 1


def test_chatml_by_hand() -> None:
    c = chat()
    x = kit.message("Halo", system="S")
    assert c.decode(c.prompt(x)) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHalo<|im_end|>\n<|im_start|>assistant\n"
    )
    assert c.decode(c.response(x, "Ya.")) == "Ya.<|im_end|>"
    assert c.prompt(x).count(1) == 3 and c.prompt(x).count(2) == 2  # special tokens are one id each


def test_a_default_system_turn_is_part_of_the_prompt_only_without_one() -> None:
    c = chat(DEFAULT_SYSTEM)
    assert "You are helpful." in c.decode(c.prompt(kit.message("Halo")))
    assert "You are helpful." not in c.decode(c.prompt(kit.message("Halo", system="S")))


def test_an_empty_thinking_block_belongs_to_the_prompt() -> None:
    c = chat(THINKING, {"enable_thinking": False})
    x = kit.message("Halo")
    assert c.decode(c.prompt(x)).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert c.decode(c.response(x, "Ya.")) == "Ya.<|im_end|>"


# ── turn end, stop ids, padding ──────────────────────────────────────────────────────────────────────────────────────
def test_the_turn_end_is_the_first_special_token_after_the_answer() -> None:
    c = chat()
    assert (c.turn_end, c.stop_ids, c.pad, c.vocab) == (2, (2,), 0, kit.VOCAB)
    c = chat(kit.CHATML.replace("<|im_end|>\n{% endfor %}", "<|im_end|><|endoftext|>\n{% endfor %}"))
    assert c.turn_end == 2 and c.decode(c.response(kit.message("q"), "a")) == "a<|im_end|>"


@pytest.mark.parametrize(
    "eos, stops", [("<|endoftext|>", (0, 2)), ("<|im_start|>", (1, 2)), ("<|im_end|>", (2,)), (None, (2,))]
)
def test_rollouts_stop_at_the_turn_end_and_at_eos(eos: str | None, stops: tuple[int, ...]) -> None:
    tok = kit.tokenizer()
    tok.eos_token = eos
    assert chat(tok=tok).stop_ids == stops  # id 0 is an id


def test_without_a_special_token_in_the_template_the_turn_ends_with_eos() -> None:
    c = chat(PLAIN)
    assert c.turn_end == 2
    assert c.response(kit.message("Halo"), "Ya.") == [*c.tokenizer("Ya.")["input_ids"], 2]


def test_without_a_padding_token_the_turn_end_pads() -> None:
    tok = kit.tokenizer()
    tok.pad_token = None
    assert chat(tok=tok).pad == 2


def test_the_vocabulary_ends_at_the_highest_id() -> None:
    tok = kit.tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    assert chat(tok=tok).vocab == kit.VOCAB + 1


# ── the border between prompt and response ───────────────────────────────────────────────────────────────────────────
def newlines() -> PreTrainedTokenizerFast:
    """A tokenizer that has a token of two line ends, and merges them wherever they meet."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=260, special_tokens=special, initial_alphabet=alphabet)
    bpe.train_from_iterator(["\n\n"] * 50, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=special[0], eos_token=special[2])
    made.chat_template = kit.CHATML
    return made


def test_an_answer_that_begins_with_a_line_end_keeps_the_border() -> None:
    tok = newlines()
    two = tok.convert_tokens_to_ids("ĊĊ")
    assert isinstance(two, int) and two == tok("\n\n")["input_ids"][0]
    c, x, y = chat(tok=tok), kit.message("Halo"), "\nYa."
    prompt, response = c.prompt(x), c.response(x, y)
    merged = tok(rendered(c, x, add_generation_prompt=True) + y)["input_ids"]
    assert two in merged and merged[: len(prompt)] != prompt, "this case has no token over the border"
    assert two not in response and response == [*tok("\nYa.")["input_ids"], 2]
    assert c.decode(prompt + response) == "<|im_start|>user\nHalo<|im_end|>\n<|im_start|>assistant\n\nYa.<|im_end|>"


def test_a_line_end_within_the_answer_is_merged_as_usual() -> None:
    tok = newlines()
    assert tok.convert_tokens_to_ids("ĊĊ") in chat(tok=tok).response(kit.message("Halo"), "a\n\nb")


# ── whole conversations ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["chatml", "default system", "date"])
@pytest.mark.parametrize("texts", [("a",), (BURMESE, TAMIL), ("Ya.\n", "b", THAI)])
def test_all_assistant_turns_are_targets(name: str, texts: tuple[str, ...]) -> None:
    c = chat(*TEMPLATES[name])
    turns = [t for k, text in enumerate(texts) for t in (f"q{k}", text)]
    x, y = kit.message(*turns[:-1], system="S"), turns[-1]
    ids, targets = c.conversation(x, y)
    whole = rendered(c, (*x, Message("assistant", y)))
    assert c.decode(ids) == whole[: whole.rindex("<|im_end|>") + len("<|im_end|>")]
    # independently: runs of consecutive targets are the answers, each with its turn end
    runs: list[list[int]] = []
    for t in targets:
        if runs and t == runs[-1][-1] + 1:
            runs[-1].append(t)
        else:
            runs.append([t])
    strip = str.strip if name == "date" else str  # that template trims
    assert [c.decode([ids[t] for t in run]) for run in runs] == [f"{strip(text)}<|im_end|>" for text in texts]


def test_one_answer_is_the_same_by_turn_and_by_conversation() -> None:
    c, x = chat(), kit.message("Halo", system="S")
    ids, targets = c.conversation(x, THAI)
    assert ids == c.prompt(x) + c.response(x, THAI)
    assert targets == list(range(len(c.prompt(x)), len(ids)))


def test_a_template_that_rewrites_earlier_turns_is_refused_for_all_turns_only() -> None:
    c = chat(THINKING, {"enable_thinking": False})  # an earlier answer loses its thinking block
    x = kit.message("q", "a", "r")
    assert c.decode(c.response(x, "b")) == "b<|im_end|>"
    with pytest.raises(DudiError, match=r'writes earlier turns in another way.*loss_on = "last"'):
        c.conversation(x, "b")
    assert c.conversation(kit.message("q"), "a")[1]


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + kit.CHATML
REFUSED: list[tuple[str | None, dict[str, Any], str]] = [
    (None, {}, "the tokenizer has no chat template"),
    (SWITCHED, {}, "does not continue its own generation prompt"),
    ("{% if add_generation_prompt %}x{% endif %}", {}, "does not continue its own generation prompt"),
    (THINKING.replace(" and loop.last", " and false"), {}, "does not continue its own generation prompt"),
    (HEADERS, {}, "prints today's date"),
    ("{% for m in", {}, "refuses a conversation of turns (user)"),
    ("{{ messages + 3 }}", {}, "refuses a conversation of turns (user)"),
    ("{{ messages[7]['role']['x'] }}", {}, "refuses a conversation of turns (user)"),
    ("{{ 1 / 0 }}", {}, "refuses a conversation of turns (user)"),
    ("{{ raise_exception('two\nlines') }}", {}, "refuses a conversation of turns (user): two"),
    (kit.CHATML, {"tokenize": True}, "refuses a conversation of turns (user)"),
]  # fmt: skip


@pytest.mark.parametrize("template, kwargs, said", REFUSED, ids=lambda case: str(case)[:40])
def test_a_template_that_cannot_be_used(template: str | None, kwargs: dict[str, Any], said: str) -> None:
    tok = kit.tokenizer(template=None)
    with pytest.raises(DudiError) as error:
        Chat(tok, template, kwargs)
    assert said in str(error.value)


def test_a_template_that_refuses_turns_says_which() -> None:
    c = chat(STRICT)
    assert c.prompt(kit.message("q"))
    with pytest.raises(DudiError, match=r"refuses a conversation of turns \(system, user\): no system turn"):
        c.prompt(kit.message("q", system="S"))


def test_no_end_at_all() -> None:
    tok = kit.tokenizer()
    tok.eos_token = None
    with pytest.raises(DudiError, match="has a token that ends an answer"):
        chat(PLAIN, tok=tok)


def test_a_fixed_date_is_in_the_prompt() -> None:
    c = chat(HEADERS, {"date_string": "26 Jul 2024"})
    assert "Today: 26 Jul 2024" in c.decode(c.prompt(kit.message("q")))


# ── which template, which tokenizer ──────────────────────────────────────────────────────────────────────────────────
def test_read_template(tmp_path: Any) -> None:
    student, teacher = kit.tokenizer(template="S"), kit.tokenizer(template="T")
    file = tmp_path / "t.jinja"
    file.write_text("F ไทย", encoding="utf-8")
    assert read_template("teacher", student, teacher) == "T"
    assert read_template("student", student, teacher) == "S"
    assert read_template("teacher", student, None) == "S"
    assert read_template(str(file), student, teacher) == "F ไทย"
    (tmp_path / "latin1").write_bytes(b"\xff")
    for bad in (str(tmp_path / "none"), str(tmp_path), "teachr", str(tmp_path / "latin1")):
        with pytest.raises(DudiError, match=r'chat.template: expected "teacher", "student" or a readable file, found'):
            read_template(bad, student, teacher)


def test_the_same_tokenizer() -> None:
    assert check_same_tokenizer(kit.tokenizer(), kit.tokenizer()) == kit.VOCAB


def test_different_tokenizers_are_refused_and_a_difference_named() -> None:
    student, teacher = kit.tokenizer(), kit.tokenizer(300)
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    with pytest.raises(DudiError) as error:
        check_same_tokenizer(student, teacher)
    text = str(error.value)
    assert f"different tokenizers ({len(ours)} and {len(theirs)} tokens; " in text
    token = text.split("tokens; '")[1].split("' is ")[0]
    assert f"is {ours.get(token)} and {theirs.get(token)})" in text and ours.get(token) != theirs.get(token)


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(text: str) -> None:
    c = chat()
    ids = c.response(kit.message("q"), text)
    assert c.decode(ids) == f"{text}<|im_end|>"
    assert c.decode(c.prompt(kit.message(text))).count(text) == 1


def test_a_saved_tokenizer_carries_the_template_it_was_trained_with(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    c = Chat(kit.tokenizer(template="{{ 'S' }}"), DEFAULT_SYSTEM, {})
    c.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == DEFAULT_SYSTEM
    assert Chat(again, None, {}).prompt(kit.message(BURMESE)) == c.prompt(kit.message(BURMESE))
