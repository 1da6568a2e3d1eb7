"""Tiny random models of the architectures that a user may bring, by the name of their `model_type`, and what is checked
of each: greedy decoding against plain reading and `generate`, losses against the full logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dudi.errors import DudiError
from dudi.loss.chunked import Positions, Term, score
from dudi.loss.losses import nll, reverse_kl
from dudi.loss.scores import Reading
from dudi.models.dropout import dropout_off
from dudi.models.probe import check_decoding
from dudi.models.reader import Reader
from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine

VOCAB = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # a random model with a tied head repeats its last token
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA = {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_conv": 4}
_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}

_GEMMA4 = {
    **_SLIDING, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB,
    "final_logit_softcapping": 5.0, "global_head_dim": 8,
}  # fmt: skip
_OUTER = {"vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                            "num_attention_heads": 4, "image_size": 28, "patch_size": 14}}  # fmt: skip
"""Beside the text model's config in one that also sees images."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": _EXPERTS,
    "qwen3_next": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "mistral": {"sliding_window": 8},
    "ministral": _SLIDING,
    "ministral3": {},
    "gemma3": {**_OUTER, "text_config": COMMON | _SLIDING | {"query_pre_attn_scalar": 8}, "mm_tokens_per_image": 4},
    "gemma4": {**_OUTER, "text_config": COMMON | _GEMMA4, "audio_config": None},
    "qwen3_5": {**_OUTER, "text_config": COMMON | _LINEAR},
    "mixtral": _EXPERTS,
    "llama4_text": {**_EXPERTS, "interleave_moe_layer_step": 2, "attention_chunk_size": 8, "intermediate_size_mlp": 48},
    "gemma": {},
    "gemma2": {**_SLIDING, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**_SLIDING, "query_pre_attn_scalar": 8},
    "gemma3n_text": {
        **_SLIDING, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB,
        "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0], "final_logit_softcapping": 5.0,
        "intermediate_size": [48, 48],
    },
    "gemma4_text": _GEMMA4,
    "vaultgemma": {**_SLIDING, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    "phi": {"resid_pdrop": 0.1},
    "phi3": {},
    "phimoe": {**_EXPERTS},
    "olmo": {},
    "olmo2": {},
    "olmo3": _SLIDING,
    "olmoe": _EXPERTS,
    "olmo_hybrid": _LINEAR,
    "stablelm": {},
    "gpt2": {"n_inner": 48, "resid_pdrop": 0.1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 8},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "gpt_bigcode": {"multi_query": True},
    "codegen": {"rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "alibi": False, "head_dim": None},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48},
    "biogpt": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {**_SLIDING, "logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "granitemoe": {**_EXPERTS, "logits_scaling": 4.0},
    "granitemoehybrid": {
        **_MAMBA2, **_EXPERTS, "logits_scaling": 4.0, "layer_types": ["mamba", "attention"],
        "layers_block_type": ["mamba", "attention"], "shared_intermediate_size": 24,
    },
    "smollm3": {},
    "seed_oss": {"attention_dropout": 0.1, "residual_dropout": 0.1},
    "gpt_oss": {**_SLIDING, **_EXPERTS},
    "glm": {},
    "glm4": {},
    "glm4_moe": {**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1},
    "exaone4": _SLIDING,
    "ernie4_5": {},
    "ernie4_5_moe": {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": [2, 2]},
    "nemotron": {},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16,
                   "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "starcoder2": {},
    "deepseek_v2": {**_MLA, **_EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1},
    "deepseek_v3": {**_MLA, **_EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1,
                    "topk_group": 1},
    "minicpm3": _MLA,
    "minimax": {**_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 4},
    "minimax_m2": _EXPERTS,
    "dots1": {**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1},
    "apertus": {},
    "arcee": {},
    "helium": {},
    "bitnet": {},
    "nanochat": {"final_logit_softcapping": 5.0},
    "persimmon": {},
    "jetmoe": {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, **_EXPERTS, "num_dense_layers": 1},
    "falcon_h1": {"mamba_d_ssm": 64, **_MAMBA2},
    "jamba": {**_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
              "use_mamba_kernels": False},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
               "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_d_state": 8, "mamba_ngroups": 1, "num_mem_blocks": 1,
               "adapter_rank": 4, "hybrid_layer_ids": [2], "use_mamba_kernels": False, "chunk_size": 8},
    "mamba": _MAMBA,
    "mamba2": {**_MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": _MAMBA,
    "rwkv": {"attention_hidden_size": 32, "rescale_every": 0},
    "xlstm": {"num_heads": 4, "num_blocks": 2, "chunkwise_kernel": "chunkwise--native_autograd",
              "sequence_kernel": "native_sequence__native", "step_kernel": "native"},
}  # fmt: skip


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random model of that architecture; larger embeddings, so that greedy choices are no ties."""
    torch.manual_seed(seed)
    given = COMMON | ARCHITECTURES[name] | changes
    config = AutoConfig.for_model(name, **{key: value for key, value in given.items() if value is not None})
    made = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    head = made.get_output_embeddings().weight
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1 and p is not head:
                p.mul_(6.0)
        head.mul_(8.0)
    made.generation_config.eos_token_id = None
    return made


REFUSED = {"xlstm": "cannot be read as a language model"}
"""What does not work, with the words of its refusal."""
PROMPTS = ((5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17), (20, 21, 22, 23, 24), (30, 31, 32, 33, 34, 35, 36, 37, 38))
NEW = 10
"""Tokens that each prompt is continued by: past the sliding windows of these models."""
ENDS = (3, 6, NEW)
"""The same where answers end at different lengths, and the first are dropped from the batch."""


IN_FLOAT64 = ("mamba",)
"""Whose losses are compared in float64: its scan rounds by 3e-5 in float32 with AVX-512, and 6e-8 are left here."""


@dataclass(frozen=True)
class Checked:
    """What came of a check. refused: the line; greedy: cached = uncached; generate: = the model's own `generate`;
    loss: largest relative error of loss and gradient; padding: prompts may be padded on the left."""

    name: str
    refused: str | None = None
    greedy: bool = False
    generate: bool = False
    loss: float | None = None
    padding: bool = False


def check(name: str) -> Checked:
    """Build the model and try it."""
    model = build(name)
    try:
        dropout_off(model, "model")
        reader = Reader(model, VOCAB, "model")
    except DudiError as error:
        return Checked(name, refused=str(error))
    engine = LocalEngine(Sampling(stop_ids=(), pad=0, vocab=VOCAB, temperature=0.0))
    found = [r.ids for r in engine(model, [Request(p, ("k", row), NEW) for row, p in enumerate(PROMPTS)])]
    short = [r.ids for r in engine(model, [Request(p, ("k",), n) for p, n in zip(PROMPTS, ENDS, strict=True)])]
    plain = [_uncached(model, p) for p in PROMPTS]
    assert len({token for ids in plain for token in ids}) >= 6, f"{name} repeats itself: it would show nothing"
    return Checked(
        name,
        greedy=found == plain and short == [ids[:n] for ids, n in zip(plain, ENDS, strict=True)],
        generate=found == [_generated(model, p) for p in PROMPTS],
        loss=_loss_error(*_for_losses(name, reader)),
        padding=check_decoding(model, VOCAB, "model"),
    )


@torch.no_grad()
def _uncached(model: PreTrainedModel, prompt: Sequence[int]) -> tuple[int, ...]:
    """Greedy decoding that reads everything again for each token."""
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@torch.no_grad()
def _generated(model: PreTrainedModel, prompt: Sequence[int]) -> tuple[int, ...]:
    """What the library writes."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    return tuple(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist())


def _for_losses(name: str, reader: Reader) -> tuple[Reader, PreTrainedModel]:
    """The student to take losses of, and its teacher."""
    teacher = build(name, seed=1)
    if name not in IN_FLOAT64:
        return reader, teacher
    return Reader(build(name).double(), VOCAB, "model"), teacher.double()


def _loss_error(student: Reader, teacher_model: PreTrainedModel) -> float:
    """Cross-entropy and reverse KL, and their gradients, in training mode and on rows padded on the right, against one
    row at a time and the model's own logits: the largest error, relative to the largest value."""
    teacher, model = Reader(teacher_model.requires_grad_(False), VOCAB, "teacher"), student.model
    rows = [torch.tensor(p) for p in PROMPTS]
    width = max(map(len, rows))
    table = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    places = torch.cat([k * width + torch.arange(len(row) - 1) for k, row in enumerate(rows)])
    labels = torch.cat([row[1:] for row in rows])
    weight = torch.full((len(labels),), 1 / len(labels), dtype=torch.float64)
    model.train()
    reading = {"x": Reading(table, places)}
    theirs = teacher.hidden(reading, 1)["x"]
    view = Positions(labels, (Term(nll, weight), Term(reverse_kl, weight)), theirs)
    loss = student.reading(
        model, reading, 1, lambda hidden, head, zero: score(hidden["x"], head, teacher.head(), [view], chunk=7).loss
    )
    model.zero_grad()
    loss.backward()
    gradients = _gradients(model)
    log_p = torch.cat([_log_probs(model, row) for row in rows])
    with torch.no_grad():
        log_q = torch.cat([_log_probs(teacher_model, row) for row in rows])
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1).mean() - log_p.gather(-1, labels[:, None]).mean()
    model.zero_grad()
    wanted.backward()
    model.eval()
    error = float(((gradients - _gradients(model)).norm() / _gradients(model).norm()).detach())
    return max(abs(float(loss.detach()) / float(wanted.detach()) - 1), error)


def _log_probs(model: PreTrainedModel, row: Tensor) -> Tensor:
    return torch.log_softmax(model(input_ids=row[None], use_cache=False).logits[0, :-1].double(), -1)


def _gradients(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
