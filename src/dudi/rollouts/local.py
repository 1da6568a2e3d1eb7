"""Sampling in the trainer's own process, on the trainer's own weights, with a KV cache.

Shapes: B requests, P longest prompt, T longest limit, V vocabulary. Prompts are padded on the left.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from dudi.models.reader import backbone, head_of
from dudi.rollouts import Request, Rollout, Sampling, uniforms


class LocalEngine:
    """Temperature sampling by inverse CDF: one uniform number a token; top-k and top-p off.

    `torch.multinomial` would draw one number for each vocabulary entry. Entries past `vocab` (padding of the head) are
    never sampled. Temperature 0 is greedy decoding: the likeliest token, of equals the first.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        """One rollout for each request, in order."""
        if not requests:
            return []
        training = model.training
        model.eval()  # in training mode, gradient checkpointing would switch the cache off
        try:
            tokens, lengths, finished = self._decode(model, requests)
        finally:
            model.train(training)
        rows = zip(tokens.tolist(), lengths.tolist(), finished.tolist(), strict=True)
        return [Rollout(tuple(ids[:length]), done) for ids, length, done in rows]

    def _decode(self, model: PreTrainedModel, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T], lengths [B], finished [B]."""
        head = head_of(model, self.sampling.vocab)
        device = head.weight.device
        limits = torch.tensor([r.limit for r in requests], device=device)
        steps = int(limits.max())
        u = torch.from_numpy(uniforms(requests, steps)).to(device)
        ids, mask = self._left_pad(requests, steps, device)
        width = ids.shape[1]
        positions = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)
        stops = torch.tensor(self.sampling.stop_ids, device=device)
        tokens = torch.full((len(requests), steps), self.sampling.pad, device=device)
        lengths = torch.zeros(len(requests), dtype=torch.long, device=device)
        finished = torch.zeros(len(requests), dtype=torch.bool, device=device)
        active = ~finished
        reads, temperature = backbone(model), self.sampling.temperature
        cache, named = DynamicCache(), _cache_argument(type(reads))
        for t in range(steps):
            out = reads(
                input_ids=ids,
                attention_mask=mask[:, : width + t],
                position_ids=positions,
                use_cache=True,
                **{named: cache},
            )
            logits = head.logits(out.last_hidden_state[:, -1])
            token = logits.argmax(-1) if temperature == 0 else inverse_cdf(logits / temperature, u[:, t])
            token = torch.where(active, token, self.sampling.pad)
            tokens[:, t] = token
            lengths += active
            finished |= active & torch.isin(token, stops)
            active = active & ~finished & (lengths < limits)
            if not bool(active.any()):
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
        return tokens, lengths, finished

    def _left_pad(self, requests: Sequence[Request], steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Prompt ids [B, P] and the attention mask of prompts and all steps [B, P + T]."""
        width = max(len(r.prompt) for r in requests)
        ids = torch.tensor(
            [[self.sampling.pad] * (width - len(r.prompt)) + list(r.prompt) for r in requests], device=device
        )
        mask = torch.ones(len(requests), width + steps, dtype=torch.long, device=device)
        for row, request in enumerate(requests):
            mask[row, : width - len(request.prompt)] = 0
        return ids, mask


def _cache_argument(backbone: type[nn.Module]) -> str:
    """What a model calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(backbone.forward).parameters else "past_key_values"


def inverse_cdf(logits: Tensor, u: Tensor) -> Tensor:
    """The token [B] at cumulative probability u [B] of softmax(logits [B, V]); one of probability 0 is never taken."""
    cdf = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
    target = u[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
