"""Tiny real models of three classes, a byte-level tokenizer with ChatML, and folders of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kit.rows import builtin

VOCAB = 384
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLASSES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


@cache
def _backend(vocab: int) -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    texts = [text for e in builtin() for text in (*[m.content for m in e.x], e.y)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet)
    )
    return bpe.to_str()


def tokenizer(vocab: int = VOCAB, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `vocab` tokens, ChatML."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(vocab)), pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    made.chat_template = template
    assert len(made) == vocab
    return made


def model(
    seed: int,
    hidden: int = 32,
    layers: int = 2,
    rows: int = VOCAB,
    kind: str = "qwen2",
    dtype: torch.dtype = torch.float64,
    tied: bool = True,
    sharpness: float = 8.0,
) -> PreTrainedModel:
    """A random model. `rows`: embeddings, padding included. Embeddings are scaled up so that distributions are sharp
    enough for losses to be far from zero."""
    torch.manual_seed(seed)
    config_class, model_class = CLASSES[kind]
    config = config_class(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    made = model_class(config).to(dtype)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(sharpness)
    made.config._attn_implementation = "sdpa"
    return made


def save(folder: Path, made: PreTrainedModel, tok: PreTrainedTokenizerFast) -> str:
    """A model folder as `from_pretrained` reads it."""
    made.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def save_models(folder: Path) -> Path:
    """folder/student and folder/teacher: tiny models with padded embeddings of two sizes."""
    save(folder / "student", model(1, rows=VOCAB + 6, dtype=torch.float32), tokenizer())
    save(folder / "teacher", model(2, hidden=64, rows=VOCAB + 20, dtype=torch.float32), tokenizer())
    return folder
