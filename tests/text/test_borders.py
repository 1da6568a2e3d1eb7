"""One rendering, tokenized once: what each kind of template and tokenizer makes of prompts, answers and whole
conversations, against the template's own text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import kit
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.text.chat import Chat

# ── templates, in the style of the real ones ─────────────────────────────────────────────────────────────────────────
GLM = (
    "{% for m in messages %}{% if m.role=='user' %}<|user|>\n{{m.content}}{% elif m.role=='system' %}<|system|>\n"
    "{{m.content}}{% else %}<|assistant|>\n{{m.content}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATQA = (
    "{% for m in messages %}{% if m.role=='system' %}System: {{m.content}}\n\n{% elif m.role=='user' %}"
    "User: {{m.content}}\n\n{% else %}Assistant: {{m.content}}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
AMBER = (
    "{% for m in messages %}{% if m.role=='system' %}{{m.content}}{% elif m.role=='user' %}### Human: {{m.content}}"
    "{% else %}### Assistant: {{m.content}}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n### Assistant:' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role=='user' %}<s>[INST] {{m.content}} [/INST]"
    "{% elif m.role=='assistant' %} {{m.content}} </s>{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|{{m.role}}|>\n{{m.content}}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}"
)
GEMMA = (
    "<s>{% if messages[0]['role']=='system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m.role=='assistant' else m.role }}\n{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
TEMPLATES = {
    "chatml": kit.CHATML, "glm": GLM, "chatqa": CHATQA, "amber": AMBER, "llama2": LLAMA2, "phi3": PHI3, "gemma": GEMMA,
}  # fmt: skip
ENDS = {"chatml": "<|im_end|>", "llama2": " </s>", "phi3": "<|end|>", "gemma": "<|im_end|>"}
"""What stands after each answer; the others write nothing of their own, and the last answer gets the EOS."""
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]

# ── tokenizers, in the style of the real ones ────────────────────────────────────────────────────────────────────────
CORPUS = [text for e in kit.builtin() for text in (*[m.content for m in e.x], e.y)] + ["\n\n", ".\n\n", "a.\n"] * 40


def made(backend: Tokenizer, **swallowing: bool) -> PreTrainedTokenizerFast:
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", bos_token="<s>")
    tok.add_special_tokens({"additional_special_tokens": [AddedToken(t, **swallowing) for t in SPECIAL[3:]]})
    return tok


def byte_level(normalizer: Any = None, **swallowing: bool) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    if normalizer is not None:
        bpe.normalizer = normalizer
    split = pre_tokenizers.Split(
        Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL[:3], initial_alphabet=alphabet)
    )
    return made(bpe, **swallowing)


BYTES = [f"<0x{b:02X}>" for b in range(256)]


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """Llama's in its old form (a space before each text), its new form, and Gemma's (none)."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    if kind == "legacy":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif kind == "gemma":
        bpe.normalizer = replace
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=kind, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence(steps if kind == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    lines = [line for text in CORPUS for line in text.split(" ")]
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=900, special_tokens=[*SPECIAL[:3], *BYTES, "▁"]))
    return made(bpe)


def unigram() -> PreTrainedTokenizerFast:
    """T5's and XGLM's kind: NFKC, a space before the text, the likeliest cut of the whole."""
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    model.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    alphabet = sorted(
        {c for text in [*CORPUS, *TEXTS, *TEMPLATES.values()] for c in unicodedata.normalize("NFKC", text)}
    )
    model.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=900, special_tokens=SPECIAL[:3], unk_token="<unk>", initial_alphabet=alphabet
        ),
    )
    return made(model)


TEXTS = [
    "2",
    "4 saja",
    "Ya.\n",
    "\nRất đẹp",
    "\n\nகொ",
    " two  spaces ",
    "\u0301ya",
    "Å",
    "ไทย\n\nก",
    "မြန်မာ",
    "{{ x }}",
]
TOKENIZERS: dict[str, Any] = {
    "byte level": byte_level,
    "nfc": lambda: byte_level(normalizers.NFC()),
    "lowercase": lambda: byte_level(normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "swallowing": lambda: byte_level(rstrip=True),
    "swallowing on the left": lambda: byte_level(lstrip=True),
    **{
        f"sentencepiece {kind}": (lambda kind=kind: sentencepiece(kind))
        for kind in ("legacy", "first", "always", "gemma")
    },
    "unigram": unigram,
}
_made: dict[str, PreTrainedTokenizerFast] = {}


def chat(template: str, tokenizer: str) -> Chat:
    if tokenizer not in _made:
        _made[tokenizer] = TOKENIZERS[tokenizer]()
    return Chat(_made[tokenizer], TEMPLATES[template], {})


def rendered(c: Chat, messages: Sequence[Message], prompt: bool = False) -> str:
    """The template's own words, without `Chat`."""
    turns = [m.as_dict() for m in messages]
    return str(
        c.tokenizer.apply_chat_template(turns, tokenize=False, chat_template=c.template, add_generation_prompt=prompt)
    )


def runs(c: Chat, ids: Sequence[int], targets: Sequence[int]) -> list[list[int]]:
    """The targets' ids, one list for each stretch of them."""
    found: list[list[int]] = []
    for k, t in enumerate(targets):
        if k == 0 or t != targets[k - 1] + 1:
            found.append([])
        found[-1].append(ids[t])
    return found


def normal(c: Chat, text: str) -> str:
    normalizer = c.tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def answers(template: str, texts: Sequence[str]) -> list[str]:
    """What the template writes for each answer, with its end; by hand."""
    written = [
        {"gemma": text.strip(), "chatqa": f" {text}", "amber": f" {text}", "llama2": f" {text}"}.get(template, text)
        for text in texts
    ]
    end = ENDS.get(template, "")
    return [f"{text}{end}" for text in written[:-1]] + [f"{written[-1]}{end or '</s>'}"]


TAILS = {"chatml": "\n", "chatqa": "\n\n", "phi3": "\n</s>", "gemma": "\n"}
"""What stands after the last answer and its end: nobody's."""
EXACT = ["byte level", "nfc", "lowercase"]
"""Tokenizers whose decoding gives every character back, up to their normalizer."""


def expected(c: Chat, template: str, messages: Sequence[Message]) -> str:
    """The template's text up to the end of the last answer."""
    return rendered(c, messages).removesuffix(TAILS.get(template, "")) + ("" if template in ENDS else "</s>")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_the_templates_own_text(template: str, tokenizer: str) -> None:
    """Ids: those of the whole text, where no token spans a border; elsewhere, others that say the same."""
    c, as_a_whole = chat(template, tokenizer), 0
    for text in TEXTS:
        x = kit.message(f"q {text}", text, f"r {text}?")
        ids, targets = c.conversation(x, text)
        natural = c.tokenizer(expected(c, template, (*x, Message("assistant", text))), add_special_tokens=False)[
            "input_ids"
        ]
        starts = [c.tokenizer(rendered(c, x[:k], True), add_special_tokens=False)["input_ids"] for k in (1, 3)]
        if ids == natural:
            as_a_whole += 1
            assert [natural[: len(start)] for start in starts] == starts
            assert ids == c.prompt(x) + c.response(x, text)
        elif "swallowing" not in tokenizer:
            assert normal(c, c.decode(ids)) == normal(c, c.decode(natural))
        if tokenizer in EXACT:
            assert normal(c, c.decode(ids)) == normal(c, expected(c, template, (*x, Message("assistant", text))))
        if tokenizer in EXACT or "swallowing" in tokenizer:
            said = [c.decode(run) for run in runs(c, ids, targets)]
            assert said == [normal(c, answer) for answer in answers(template, [text, text])]
    assert as_a_whole > len(TEXTS) / 2


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_and_response_are_the_templates_own_text(template: str, tokenizer: str) -> None:
    c = chat(template, tokenizer)
    for text in TEXTS:
        x = kit.message(f"q {text}")
        prompt, response = c.row(x, text)
        assert prompt == c.tokenizer(rendered(c, x, True), add_special_tokens=False)["input_ids"] == c.prompt(x)
        assert response == c.response(x, text) and response[-1] == c.turn_end
        assert c.conversation(x, text) == ([*prompt, *response], [*range(len(prompt), len(prompt + response))])
        natural = c.tokenizer(expected(c, template, (*x, Message("assistant", text))), add_special_tokens=False)[
            "input_ids"
        ]
        if (
            natural[: len(prompt)] == prompt
            and "swallowing" not in tokenizer
            and (template in ENDS or not text.endswith("\n"))
        ):
            assert prompt + response == natural
        elif "swallowing" not in tokenizer:
            assert normal(c, c.decode(prompt + response)) == normal(c, c.decode(natural))
        if tokenizer in EXACT or "swallowing" in tokenizer:
            assert c.decode(response) == normal(c, answers(template, [text])[0])


def test_the_token_that_opens_the_next_turn_ends_one_where_rollouts_stop_at_it() -> None:
    """GLM: no turn has an end of its own; models of this kind are stopped by what opens the user's."""
    c = chat("glm", "byte level")
    x = kit.message("1+1?", "2", "dan 2+2?")
    ids, targets = c.conversation(x, "4 saja")
    assert [c.decode(run) for run in runs(c, ids, targets)] == ["2", "4 saja</s>"]
    c.stop_ids = (*c.stop_ids, c.tokenizer.convert_tokens_to_ids("<|user|>"))
    assert [c.decode(run) for run in runs(c, *c.conversation(x, "4 saja"))] == ["2<|user|>", "4 saja</s>"]


@pytest.mark.parametrize("template", ["chatqa", "amber"])
def test_no_token_is_half_an_answer_and_half_the_templates(template: str) -> None:
    """`.\n\n` is one token of the whole text."""
    c = chat(template, "byte level")
    x = kit.message("q", "Ya.\n" if template == "amber" else "Ya.", "r")
    ids, targets = c.conversation(x, "b")
    assert ids[:-1] != c.tokenizer(c.decode(ids[:-1]), add_special_tokens=False)["input_ids"], "nothing spans here"
    assert c.decode(ids) == expected(c, template, (*x, Message("assistant", "b")))
    assert c.decode(runs(c, ids, targets)[0]) == f" {x[1].content}"


def test_earlier_turns_that_are_written_in_another_way_are_refused_truly() -> None:
    block = "{% if loop.last and m.role == 'assistant' %}<t>\n{% endif %}"
    thinking = kit.CHATML.replace("{{ m['content'] }}", block + "{{ m['content'] }}")
    c = Chat(byte_level(), thinking, {})
    x = kit.message("q", "a", "r")
    prompt, response = c.row(x, "b")
    assert c.decode(prompt + response).endswith("<|im_start|>assistant\n<t>\nb<|im_end|>")
    with pytest.raises(DudiError, match="writes earlier turns in another way"):
        c.conversation(x, "b")
    assert c.conversation(kit.message("q"), "b")[0] == c.prompt(kit.message("q")) + c.response(kit.message("q"), "b")


def test_what_cannot_be_tokenized_in_parts_is_refused() -> None:
    """A vocabulary of whole words: `Aa` is one, `a` is none."""
    words = {token: k for k, token in enumerate(["<unk>", "</s>", "q", "A", "Aa", "Ab", "b"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    turns = "{% for m in messages %}{{ 'A' if m.role == 'assistant' }}{{ m.content }} {% endfor %}"
    c = Chat(tok, turns + "{{ 'A' if add_generation_prompt }}", {})
    with pytest.raises(DudiError, match="token borders do not line up"):
        c.response(kit.message("q"), "a")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_many_rows_at_a_time_are_each_as_by_itself(template: str, tokenizer: str) -> None:
    """Also where some are refused, are there twice, or hold special tokens as text."""
    c = chat(template, tokenizer)
    texts = [*TEXTS, *TEXTS[:3], "a <|im_end|> b", "<|end|>"]
    made = [
        Example(kit.message(f"q {text}", text, "r", system=None if k % 5 else "s"), text, "id", "r")
        for k, text in enumerate(texts)
    ]

    def by_itself(example: Example) -> object:
        try:
            return c.row(example.x, example.y)
        except DudiError as error:
            return str(error)

    together = [str(one) if isinstance(one, DudiError) else one for one in c.rows(made)]
    assert together == [by_itself(example) for example in made]
    assert sum(isinstance(one, tuple) for one in together) > len(made) / 2
