"""Make and train the lab's models: one tokenizer, a teacher, three student bases, from nothing, by one small loop.

Weights and optimizer are saved as they go: a build that was stopped continues where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dudi.draws import draw
from dudi.lab.documents import Document, Documents, texts
from dudi.lab.muon import Muon
from dudi.lab.plans import Build, Plan

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS_AND_SPACES = r" ?[\p{L}\p{M}\p{N}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
"""Marks stay with their letters: Thai, Tamil and Burmese words are not torn apart before merges are learned."""


def make_tokenizer(build: Build, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of plain text and lessons, with the ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS_AND_SPACES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=build.vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=30,  # of bytes: Burmese and Thai write without spaces, and whole sentences must not become one
        show_progress=False,
    )
    bpe.train_from_iterator(texts(build.documents, seed), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    tokenizer.chat_template = CHATML
    return tokenizer


def make_model(plan: Plan, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """Random weights with tied embeddings; the vocabulary is padded to a multiple of 64, as in the real ones."""
    torch.manual_seed(seed)
    size = -(-len(tokenizer) // 64) * 64
    values = dict(
        vocab_size=size,
        hidden_size=plan.hidden,
        intermediate_size=plan.hidden * 3,
        num_hidden_layers=plan.layers,
        num_attention_heads=max(plan.hidden // 32, 1),
        num_key_value_heads=max(plan.hidden // 32, 1),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    if plan.family == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**values, head_dim=32, query_pre_attn_scalar=32))
    return Qwen3ForCausalLM(Qwen3Config(**values, head_dim=32))


def train(
    name: str,
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    seed: int,
    say: Callable[[str], None],
    save_every: float = 120.0,
) -> None:
    """Train one model into `folder`, from where an earlier call stopped; `folder/model.safetensors` when it is done."""
    torch.set_num_threads(1)  # so small models gain little from more, and sums would change with their number
    state = folder.with_name(f"{folder.name}.part")
    model = make_model(plan, tokenizer, draw("weights", name, seed) % 2**31)
    optimizers = make_optimizers(model, plan)
    done = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        done = saved["step"]
    documents = Documents(plan, tokenizer, (seed, name))
    model.train()
    began = saved_at = time.monotonic()
    losses: list[float] = []
    tokens = 0
    for step in range(done, plan.total):
        if step == plan.steps:
            optimizers = begin_again(model, plan)
        loss, read = loss_of(model, documents.step(step), tokenizer.pad_token_id)
        loss.backward()
        for optimizer, lr in zip(optimizers, (plan.muon[0], plan.lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * share_of_rate(step, plan)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
        tokens += read
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            left = seconds / (step + 1 - done) * (plan.total - step - 1) / 60
            mean = sum(losses[-100:]) / len(losses[-100:])
            say(
                f"  {name}: step {step + 1}/{plan.total}, loss {mean:.3f}, {tokens / seconds:.0f} tokens/s,"
                f" {left:.1f} min left"
            )
        if time.monotonic() - saved_at > save_every:
            saved_at = time.monotonic()
            part = state.with_name(f"{state.name}.new")
            values = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": values, "step": step + 1}, part)
            os.replace(part, state)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    staged = folder.with_name(f"{folder.name}.staged")
    model.bfloat16().save_pretrained(staged)
    os.replace(staged, folder)
    state.unlink(missing_ok=True)


def make_optimizers(model: PreTrainedModel, plan: Plan) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms and biases.

    Muon took less than half of AdamW's steps to the same loss here (docs/log.md), and minutes are what a build costs.
    Its decay holds the matrices' norms down: without it, attention looked at one token only after some thousand steps.
    """
    embeddings = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not embeddings]
    others = [p for p in model.parameters() if p.dim() != 2 or p is embeddings]
    muon = Muon(matrices, lr=plan.muon[0], weight_decay=plan.muon[1])
    return muon, torch.optim.AdamW(others, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


@torch.no_grad()
def begin_again(model: PreTrainedModel, plan: Plan) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """As if the model were saved and read: its weights rounded, optimizers that know nothing of the steps before."""
    for weights in model.parameters():
        weights.copy_(weights.bfloat16())
    return make_optimizers(model, plan)


def share_of_rate(step: int, plan: Plan) -> float:
    """What a step takes of the plan's rates: up and down once, and once more, lower, for the tuning."""
    if step < plan.steps:
        return schedule(step, plan.steps)
    return plan.tuning_rate * schedule(step - plan.steps, plan.tuning)


def schedule(step: int, steps: int) -> float:
    """Warm-up over 2 % of the steps, and a straight way down to nothing."""
    return min((step + 1) / max(0.02 * steps, 1), 1 - step / steps)


def loss_of(model: PreTrainedModel, batch: list[Document], pad: int) -> tuple[torch.Tensor, int]:
    """Weighted mean cross-entropy of next tokens, and how many tokens were read."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
    weight = torch.tensor([w[1:] + [0.0] * (width - len(w)) for _, w in batch])
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]  # padding is on the right: nothing looks at it
    chosen = weight > 0
    logits = model.get_output_embeddings()(hidden[chosen])
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][chosen], reduction="none")
    return (loss * weight[chosen]).sum() / weight.sum(), sum(len(ids) for ids, _ in batch)
