"""Sampling in the trainer's own process, on the trainer's own weights, with a cache.

Shapes: B requests, P longest prompt, T longest limit, V vocabulary. Prompts are padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dudi.models.decoding import Decoder, positions_of
from dudi.models.parts import head_of
from dudi.models.probe import check_decoding
from dudi.rollouts import NotFinite, Request, Rollout, Sampling, uniforms


class LocalEngine:
    """Temperature sampling by inverse CDF: one uniform number a token; top-k and top-p off.

    `torch.multinomial` would draw one number for each vocabulary entry. Entries past `vocab` (padding of the head) are
    never sampled. Temperature 0 is greedy decoding: the likeliest token, of equals the first.

    A model that cannot read padding on the left (RWKV) answers prompts of one length at a time.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._reads_padding: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        """One rollout for each request, in order."""
        if not requests:
            return []
        if model not in self._reads_padding:
            self._reads_padding[model] = check_decoding(model, self.sampling.vocab, "rollouts")
        groups: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(0 if self._reads_padding[model] else len(request.prompt), []).append(place)
        found: dict[int, Rollout] = {}
        training = model.training
        model.eval()  # in training mode, gradient checkpointing would switch the cache off
        try:
            for places in groups.values():
                tokens, lengths, finished = self._decode(model, [requests[place] for place in places])
                rows = zip(places, tokens.tolist(), lengths.tolist(), finished.tolist(), strict=True)
                found |= {place: Rollout(tuple(ids[:length]), done) for place, ids, length, done in rows}
        finally:
            model.train(training)
        return [found[place] for place in range(len(requests))]

    def _decode(self, model: PreTrainedModel, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T], lengths [B], finished [B]."""
        head = head_of(model, self.sampling.vocab)
        device = head.weight.device
        limits = torch.tensor([r.limit for r in requests], device=device)
        steps = int(limits.max())
        u = torch.from_numpy(uniforms(requests, steps)).to(device)
        ids, mask = self._left_pad(requests, steps, device)
        width = ids.shape[1]
        positions = positions_of(mask[:, :width])
        stops = torch.tensor(self.sampling.stop_ids, device=device)
        tokens = torch.full((len(requests), steps), self.sampling.pad, device=device)
        lengths = torch.zeros(len(requests), dtype=torch.long, device=device)
        finished = torch.zeros(len(requests), dtype=torch.bool, device=device)
        active = ~finished
        decoder, temperature = Decoder(model), self.sampling.temperature
        for t in range(steps):
            logits = head.logits(decoder(ids, mask[:, : width + t], positions))
            broken = active & ~torch.isfinite(logits.amax(-1))  # NaN and infinity come through a maximum
            token = logits.argmax(-1) if temperature == 0 else inverse_cdf(logits / temperature, u[:, t])
            token = torch.where(active, token, self.sampling.pad)
            tokens[:, t] = token
            lengths += active
            finished |= active & torch.isin(token, stops)
            active = active & ~finished & (lengths < limits)
            is_broken, goes_on = torch.stack((broken.any(), active.any())).tolist()  # one wait for the device
            if is_broken:
                raise _not_finite(requests, broken, t)
            if not goes_on:
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


def _not_finite(requests: Sequence[Request], broken: Tensor, t: int) -> NotFinite:
    """The line for logits that are NaN or infinite: no token may be taken from them."""
    row = int(broken.nonzero()[0])
    key = " ".join(str(part) for part in requests[row].key)
    return NotFinite(
        f"rollouts: the model's logits are not finite at new token {t + 1} of prompt {row + 1} of {len(requests)}"
        f" (key {key!r}), {int(broken.sum())} such prompts: its weights have broken down, or its attention has (try"
        ' models.attention = "eager", or models.precision = "float32")'
    )


def inverse_cdf(logits: Tensor, u: Tensor) -> Tensor:
    """The token [B] at cumulative probability u [B] of softmax(logits [B, V]); one of probability 0 is never taken."""
    cdf = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
    target = u[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
