"""Qwen2, Qwen3 and Llama class pairs from folders on disk, with the habits of those models' chat templates.

The templates are our own, short, in the style of the real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from safetensors.torch import load_file
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback

from dudi.errors import DudiError
from dudi.example import Message
from dudi.recipe.read import parse_recipe
from dudi.run.pipeline import run
from dudi.run.prepare import load_chat
from dudi.text.chat import Chat
from dudi.training.trainer import DistillationTrainer

QWEN2 = (  # a system prompt of its own where the conversation has none
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if not (loop.first and m['role'] == 'system') %}"
    "{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (  # thinking: an empty block with enable_thinking = false; earlier turns lose theirs
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m['role'] == 'assistant' %}"
    "{%- set content = m['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{%- set thought = m['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in m['content'] else '' %}"
    "{%- if loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA = (  # a BOS, today's date, contents trimmed
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set rest = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}"
    "{%- for m in rest %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Family:
    """A student and a teacher class with a template's habits.

    end: the turn's end; tied: the student's head; base_eos: the base student's own end of text; kwargs: chat.kwargs.
    """

    template: str
    end: str
    tied: bool
    base_eos: str = "<|endoftext|>"
    kwargs: Mapping[str, Any] = None  # type: ignore[assignment]


FAMILIES = {
    "qwen2": Family(QWEN2, "<|im_end|>", True, kwargs={}),
    "qwen3": Family(QWEN3, "<|im_end|>", False, kwargs={"enable_thinking": False}),
    "llama": Family(LLAMA, "<|eot_id|>", True, "<|end_of_text|>", {"date_string": DATE}),
}
SPECIAL = {
    "qwen2": [],
    "qwen3": [],
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


def tokenizer(family: str, base: bool) -> PreTrainedTokenizerFast:
    """The family's tokenizer: of the base student (no template, ends with its own end of text), or of the teacher."""
    f = FAMILIES[family]
    tok = kit.tokenizer(template=None if base else f.template)
    tok.add_special_tokens({"additional_special_tokens": SPECIAL[family]})
    if family == "qwen3":
        tok.add_tokens(["<think>", "</think>"])  # no special tokens there either
    tok.eos_token = f.base_eos if base else f.end
    tok.pad_token = "<|endoftext|>"
    if family == "llama":
        tok.bos_token = "<|begin_of_text|>"
        bos = tok.bos_token_id
        tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
        )
        assert tok("a")["input_ids"][0] == bos, "as Llama's: a BOS by itself, so that two are easily made"
    return tok


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """student and teacher folders of each family. The students are stored in bfloat16, as base checkpoints are."""
    made = {}
    for name, f in FAMILIES.items():
        folder = made[name] = tmp_path_factory.mktemp(name)
        base, chat = tokenizer(name, base=True), tokenizer(name, base=False)
        student = kit.model(1, kind=name, rows=len(base) + 6, dtype=torch.bfloat16, tied=f.tied)
        teacher = kit.model(2, kind=name, hidden=64, rows=len(chat) + 20, dtype=torch.bfloat16, tied=not f.tied)
        for made_of, tok in ((student, base), (teacher, chat)):
            made_of.config.eos_token_id = made_of.generation_config.eos_token_id = tok.eos_token_id
        kit.save(folder / "student", student, base)
        kit.save(folder / "teacher", teacher, chat)
        assert not (folder / "student" / "chat_template.jinja").exists()
        kit.write_rows(folder / "rows.jsonl", kit.short_rows(5))
    return made


def recipe(folder: Path, family: str, method: Mapping[str, Any], output: Path, **tables: Any) -> Any:
    training = {"lr": 1e-3, "batch": 4, "micro_batch": 2, "max_steps": 1, "log_every": 1, "overlap_every": 1}
    table: dict[str, Any] = {
        "name": "real",
        "output": str(output),
        "method": dict(method),
        "cold_start": {"method": {"name": "none"}},
        "models": {"student": str(folder / "student"), "teacher": str(folder / "teacher")},
        "chat": {"kwargs": dict(FAMILIES[family].kwargs)},
        "data": {"source": str(folder / "rows.jsonl")},
        "limits": {"prompt": 500, "verbalizer": 400, "total": 700, "rollout": 6, "teacher_prompt": 2500},
        "training": training,
    }
    for name, value in tables.items():
        table[name] = {**table.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_recipe(table, "test")


def the_chat(folders: Mapping[str, Path], family: str, **kwargs: Any) -> Chat:
    r = recipe(folders[family], family, {"name": "dudi"}, Path("unused"), **kwargs)
    return load_chat(r)[0]


# ── one step of every method ─────────────────────────────────────────────────────────────────────────────────────────
class Spy(TrainerCallback):
    """What the student is while it trains."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer, self.seen = trainer, {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        self.seen = {
            "dtypes": {p.dtype for p in model.parameters()},
            "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
            "class": type(model).__name__,
            "frozen": [
                any(p.requires_grad for p in m.parameters())
                for m in (self.trainer.teacher and self.trainer.teacher.model, self.trainer.job.reference)
                if m is not None
            ],
        }


METHODS = {
    "sft": {"name": "sft"},
    "dft": {"name": "dft"},
    "spin": {"name": "spin", "iterations": 1},
    "sdft": {"name": "sdft"},
    "seqkd": {"name": "seqkd"},
    "gkd": {"name": "gkd"},
    "dudi": {"name": "dudi"},
}
CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, marks=() if method == "dudi" else pytest.mark.slow)
        for family in FAMILIES
        for method in METHODS
    ],
)
def test_one_step_of_every_method(family: str, method: str, folders: dict[str, Path], tmp_path: Path) -> None:
    f, folder = FAMILIES[family], folders[family]
    spies: list[Spy] = []

    def watch(trainer: DistillationTrainer, title: str) -> Spy:
        spies.append(Spy(trainer))
        return spies[-1]

    out = kit.watched(recipe(folder, family, METHODS[method], tmp_path / "run"), watch)
    seen = spies[-1].seen
    assert seen["dtypes"] == {torch.float32}, "float32 masters, whatever the checkpoint was stored in"
    assert seen["tied"] is f.tied and seen["class"] == CLASSES[family] and not any(seen["frozen"])

    stage = runs.stages(out)[-1]
    [line] = runs.metrics(stage)
    assert line["step"] == 1 and line["grad_norm"] > 0
    if method != "sdft":  # its teacher is the student itself until the first step
        assert line["loss"] > 1e-3
    start, end = load_file(folder / "student" / "model.safetensors"), runs.weights(stage)
    assert start.keys() == end.keys() and {t.dtype for t in end.values()} == {torch.float32}
    # Adam moves by the learning rate; in bfloat16 most weights would not move at all
    share = [float((end[k] != start[k].float()).float().mean()) for k in end if "layers" in k]
    assert min(share) > (0.0 if method == "sdft" else 0.5)

    assert not list(out.rglob("training_args.bin"))
    result = stage / "model"
    model = AutoModelForCausalLM.from_pretrained(result)
    tok = AutoTokenizer.from_pretrained(result)
    assert type(model).__name__ == CLASSES[family] and model.dtype is torch.float32
    assert runs.moved(model, end) == 0
    assert tok.chat_template.endswith(f.template), "the base student went out with another template"
    chat, _ = load_chat(recipe(folder, family, METHODS[method], tmp_path))
    config = json.loads((result / "generation_config.json").read_text())
    assert config["eos_token_id"] == list(chat.stop_ids) and len(chat.stop_ids) == 2
    assert config["pad_token_id"] == chat.pad and config["max_new_tokens"] == 512
    assert not config.get("do_sample") and "temperature" not in config and "top_k" not in config
    x = [{"role": "user", "content": "Apa kabar?"}]
    ids = tok.apply_chat_template(x, add_generation_prompt=True, return_dict=False, **f.kwargs)
    assert list(ids) == chat.prompt((Message("user", "Apa kabar?"),))
    model.generate(torch.tensor([list(ids)]), max_new_tokens=2)


# ── the templates' habits ────────────────────────────────────────────────────────────────────────────────────────────
CONVERSATIONS = {
    "one turn": (kit.message("Apa kabar?"), "Baik."),
    "system": (kit.message("สวัสดี", system="Jawab singkat."), "สวัสดีครับ"),
    "several turns": (kit.message("1+1?", "2", "မင်္ဂလာပါ", "ဟုတ်ကဲ့", "x"), "y z"),
    "spaces": (kit.message("tanya"), "  jawab \n"),
}


def rendered(chat: Chat, x: tuple[Message, ...], y: str | None = None) -> str:
    """The template's own words, by the tokenizer alone."""
    messages = [m.as_dict() for m in x] + ([] if y is None else [{"role": "assistant", "content": y}])
    return str(
        chat.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=y is None, chat_template=chat.template, **chat.kwargs
        )
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_response_are_the_templates_own_rendering(family: str, name: str, folders: dict[str, Path]) -> None:
    f, chat, (x, y) = FAMILIES[family], the_chat(folders, family), CONVERSATIONS[name]
    prompt, response = chat.prompt(x), chat.response(x, y)
    tok = AutoTokenizer.from_pretrained(folders[family] / "teacher")
    assert prompt == tok(rendered(chat, x), add_special_tokens=False)["input_ids"]
    assert chat.decode(prompt) == rendered(chat, x)
    end = tok.convert_tokens_to_ids(f.end)
    assert response[-1] == end == chat.turn_end and end not in response[:-1]
    whole = rendered(chat, x, y)
    assert whole.startswith(chat.decode(prompt + response))
    assert whole[len(chat.decode(prompt + response)) :].strip() == ""
    assert prompt + response == tok(whole, add_special_tokens=False)["input_ids"][: len(prompt + response)]
    text = chat.decode(response[:-1])
    assert text == (y.strip() if family == "llama" else y)
    assert set(chat.stop_ids) == {end, tok.convert_tokens_to_ids(f.base_eos)}


def test_qwen2_default_system_prompt_is_there_once(folders: dict[str, Path]) -> None:
    chat = the_chat(folders, "qwen2")
    x, y = CONVERSATIONS["one turn"]
    text = chat.decode(chat.prompt(x) + chat.response(x, y))
    assert text.count("You are a helpful assistant.") == 1 and text.count("<|im_start|>system") == 1
    text = chat.decode(chat.prompt(CONVERSATIONS["system"][0]))
    assert "helpful" not in text and text.count("<|im_start|>system") == 1
    ids, _ = chat.conversation(*CONVERSATIONS["several turns"])
    assert chat.decode(ids).count("You are a helpful assistant.") == 1


def test_qwen3_think_block(folders: dict[str, Path]) -> None:
    """With thinking off the empty block is prompt; with the template's default it is part of the answer."""
    x, y = CONVERSATIONS["one turn"]
    off = the_chat(folders, "qwen3")
    assert chat_text(off, x, y) == ("<|im_start|>assistant\n<think>\n\n</think>\n\n", y + "<|im_end|>")
    on = the_chat(folders, "qwen3", chat={"kwargs": {}})
    assert chat_text(on, x, y) == ("<|im_start|>assistant\n", f"<think>\n\n</think>\n\n{y}<|im_end|>")
    assert off.prompt(x) + off.response(x, y) == on.prompt(x) + on.response(x, y)


def chat_text(chat: Chat, x: tuple[Message, ...], y: str) -> tuple[str, str]:
    """How the prompt ends after the user's turn, and the response."""
    prompt = chat.decode(chat.prompt(x))
    return prompt[prompt.rindex("<|im_start|>") :], chat.decode(chat.response(x, y))


def test_qwen3_earlier_thoughts_are_stripped(folders: dict[str, Path]) -> None:
    """As the model sees them when it is used: in a prompt, earlier turns have no think block."""
    chat = the_chat(folders, "qwen3")
    x = kit.message("a", "<think>\nsecret\n</think>\n\nb", "c")
    text = chat.decode(chat.prompt(x))
    assert "secret" not in text and text.count("<think>") == 1
    assert "<|im_start|>assistant\nb<|im_end|>" in text
    assert chat.decode(chat.response(x, "d")) == "d<|im_end|>"


def test_llama_date_is_refused_until_it_is_fixed(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DudiError, match=r"date.*date_string"):
        the_chat(folders, "llama", chat={"kwargs": {}})
    r = recipe(folders["llama"], "llama", {"name": "sft"}, tmp_path / "run", chat={"kwargs": {}})
    with pytest.raises(DudiError, match="date_string"):
        run(r, say=lambda *_: None)
    assert not (tmp_path / "run").exists()
    chat = the_chat(folders, "llama")
    assert f"Today Date: {DATE}" in chat.decode(chat.prompt(CONVERSATIONS["one turn"][0]))


def test_llama_one_bos(folders: dict[str, Path]) -> None:
    chat = the_chat(folders, "llama")
    bos = chat.tokenizer.bos_token_id
    for x, y in CONVERSATIONS.values():
        ids = chat.prompt(x) + chat.response(x, y)
        assert ids[0] == bos and ids.count(bos) == 1
        assert chat.conversation(x, y)[0].count(bos) == 1


# ── every assistant turn ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_mask_is_exactly_the_assistant_contents_and_turn_ends(family: str, name: str, folders: dict[str, Path]) -> None:
    chat, (x, y) = the_chat(folders, family), CONVERSATIONS[name]
    ids, targets = chat.conversation(x, y)
    whole = rendered(chat, x, y)
    assert ids == chat.tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)]
    runs: list[list[int]] = []
    for k, t in enumerate(targets):
        if k and t == targets[k - 1] + 1:
            runs[-1].append(t)
        else:
            runs.append([t])
    contents = [m.content for m in (*x, Message("assistant", y)) if m.role == "assistant"]
    contents = [c.strip() for c in contents] if family == "llama" else contents
    assert [chat.decode([ids[t] for t in run]) for run in runs] == [c + FAMILIES[family].end for c in contents]
    assert targets[-1] == len(ids) - 1
    assert [ids[t] for t in runs[-1]] == chat.response(x, y)


def test_template_that_rewrites_earlier_turns_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    chat = the_chat(folders, "qwen3")
    with pytest.raises(DudiError, match=r"earlier turns.*loss_on"):
        chat.conversation(*CONVERSATIONS["several turns"])
    ids, targets = chat.conversation(*CONVERSATIONS["one turn"])
    assert chat.decode([ids[t] for t in targets]) == "Baik.<|im_end|>"
    folder = folders["qwen3"]
    rows = [e for e in kit.builtin() if len(e.x) > 2][:2]
    source = kit.write_rows(tmp_path / "rows.jsonl", rows)
    method = {"name": "sft", "loss_on": "all_assistant"}
    with pytest.raises(DudiError, match="loss_on"):
        run(recipe(folder, "qwen3", method, tmp_path / "run", data={"source": source}), say=lambda *_: None)


@pytest.mark.parametrize("family", ["qwen2", pytest.param("llama", marks=pytest.mark.slow)])
def test_all_assistant_turns_train(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """More tokens carry loss than with the last turn alone, by the earlier answers."""
    rows = [e for e in kit.builtin() if len(e.x) > 2][:2]
    source = kit.write_rows(tmp_path / "rows.jsonl", rows)
    chat = the_chat(folders, family)
    counts = {}
    for loss_on in ("last", "all_assistant"):
        method = {"name": "sft", "loss_on": loss_on}
        out = run(
            recipe(folders[family], family, method, tmp_path / loss_on, data={"source": source}), say=lambda *_: None
        )
        counts[loss_on] = runs.metrics(runs.stages(out)[-1])[0]["signal"]["off_policy"]["count"]
    assert counts["last"] == sum(len(chat.response(e.x, e.y)) for e in rows)
    assert counts["all_assistant"] == sum(len(chat.conversation(e.x, e.y)[1]) for e in rows) > counts["last"]
