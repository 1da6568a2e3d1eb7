"""The answers of a batch while it is decoded: the draw of a token, who has ended, and which rows go on.

Shapes: B requests, n rows that are still decoded, T longest limit, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from dudi.loss.head import Head
from dudi.models.products import Product
from dudi.rollouts import NotFinite, Request, Rollout, Sampling, uniforms

BLOCK = 128
"""Entries of the vocabulary that are summed up at once: a running sum over all of them, in float64, would cost several
times the softmax."""


class Answers:
    """What has been said so far in each row. All that `take` touches lies where it is: it may be captured (CUDA)."""

    def __init__(self, requests: Sequence[Request], sampling: Sampling, head: Head) -> None:
        self.requests, self.sampling, self.head = requests, sampling, head.cast()
        self.product = Product(self.head.weight, self.head.bias)
        self.steps = max(request.limit for request in requests)
        device, rows = head.weight.device, len(requests)
        self.rows = torch.arange(rows, device=device)
        self.u = torch.from_numpy(uniforms(requests, self.steps)).to(device)
        self.limits = torch.tensor([request.limit for request in requests], device=device)
        self.stops = torch.zeros(1 + max(sampling.vocab, *sampling.stop_ids, sampling.pad), dtype=torch.bool)
        self.stops[list(sampling.stop_ids)] = True
        self.stops = self.stops.to(device)
        self.tokens = torch.full((rows, self.steps), sampling.pad, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.active, self.broken = ~self.finished, self.finished.clone()
        self.last = self.tokens[:, :1].clone()
        self.t = torch.zeros(1, dtype=torch.long, device=device)
        self.counts = torch.zeros(2, dtype=torch.long, device=device)
        self.ended: dict[int, Rollout] = {}

    @torch.inference_mode()
    def take(self, hidden: Tensor) -> None:
        """Draw each row's next token from its last hidden state [n, H]."""
        logits = self.head.finish(self.product(hidden.to(self.head.weight.dtype)))
        temperature = self.sampling.temperature
        # NaN and infinity come through a maximum
        self.broken.copy_(self.active & ~torch.isfinite(logits.amax(-1)))
        if temperature == 0:
            token = likeliest(logits)
        else:
            if temperature != 1:
                logits = logits / temperature
            token = inverse_cdf(logits, self.u.index_select(1, self.t)[:, 0])
        token = torch.where(self.active, token, self.sampling.pad)
        self.tokens.index_copy_(1, self.t, token[:, None])
        self.lengths += self.active
        self.finished |= self.active & self.stops[token]
        self.active &= ~self.finished & (self.lengths < self.limits)
        self.last.copy_(token[:, None])
        self.t += 1
        torch.stack((self.broken.sum(), self.active.sum()), out=self.counts)

    def live(self) -> int:
        """How many rows go on. Raises `NotFinite` where the last logits were no numbers. (One wait for the device.)"""
        broken, live = self.counts.tolist()
        if broken:
            raise _not_finite(self.requests, int(self.rows[self.broken][0]), broken, int(self.t))
        return int(live)

    def keep(self, size: int) -> Tensor:
        """Drop rows that have ended until so many are left; those that are [size]."""
        kept = torch.argsort(self.active, descending=True, stable=True)[:size].sort().values
        self._put_away()
        for name in ("rows", "u", "limits", "tokens", "lengths", "finished", "active", "broken", "last"):
            setattr(self, name, getattr(self, name)[kept])
        return kept

    def rollouts(self) -> list[Rollout]:
        """One rollout for each request, in order."""
        self._put_away()
        return [self.ended[place] for place in range(len(self.requests))]

    def _put_away(self) -> None:
        state = zip(
            self.rows.tolist(), self.tokens.tolist(), self.lengths.tolist(), self.finished.tolist(), strict=True
        )
        self.ended |= {place: Rollout(tuple(ids[:length]), done) for place, ids, length, done in state}


def likeliest(logits: Tensor) -> Tensor:
    """The first of the largest entries [B] of logits [B, V].

    On a CPU `argmax` goes from entry to entry, a maximum does not: the largest block is found first.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    size = logits.shape[-1]
    whole = size - size % BLOCK
    peaks = logits[:, :whole].unflatten(-1, (-1, BLOCK)).amax(-1)
    if whole < size:
        peaks = torch.cat((peaks, logits[:, whole:].amax(-1, keepdim=True)), -1)
    first = peaks.argmax(-1, keepdim=True) * BLOCK
    places = (first + torch.arange(BLOCK, device=logits.device)).clamp_(max=size - 1)
    return (first + logits.gather(-1, places).argmax(-1, keepdim=True)).squeeze(-1)


def inverse_cdf(logits: Tensor, u: Tensor) -> Tensor:
    """The token [B] at cumulative probability u [B] of softmax(logits [B, V]); one of probability 0 is never taken.

    `torch.multinomial` would draw one number for each entry. Sums are float64, in two levels: of blocks of the
    vocabulary, then inside the block that u falls into.
    """
    size = logits.shape[-1]
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()
    whole = size - size % BLOCK
    blocks = weight[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1, dtype=torch.float64)
    blocks = torch.cat((blocks, weight[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)), -1)
    block, rest = _interval(blocks, u[:, None] * blocks.sum(-1, keepdim=True))
    places = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    inside = weight.gather(-1, places.clamp(max=size - 1)).double().masked_fill_(places >= size, 0.0)
    token, _ = _interval(inside, rest)
    return (block * BLOCK + token).squeeze(-1).clamp_(max=size - 1)  # past it only where logits are no numbers


def _interval(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the weights [B, m] at which their running sum exceeds target [B, 1], and what target has left there.

    A target at or past the sum is taken as the last number below it, which lies in an entry that has weight.
    """
    sums = pad(_running(weights), (1, 0))
    last = sums[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    place = torch.searchsorted(sums, target, right=True) - 1
    place = place.clamp_(0, weights.shape[-1] - 1)  # out of it only where logits are no numbers
    return place, target - sums.gather(-1, place)


def _running(weights: Tensor) -> Tensor:
    """Running sums along a row. On a GPU torch has none that repeat; where others are forbidden
    (`training.deterministic`), they are a product, which does."""
    if not (weights.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return weights.cumsum(-1)
    return weights @ weights.new_ones(weights.shape[-1], weights.shape[-1]).triu_()


def _not_finite(requests: Sequence[Request], row: int, count: int, t: int) -> NotFinite:
    """The line for logits that are NaN or infinite: no token may be taken from them."""
    key = " ".join(str(part) for part in requests[row].key)
    return NotFinite(
        f"rollouts: the model's logits are not finite at new token {t} of prompt {row + 1} of {len(requests)}"
        f" (key {key!r}), {count} such prompts: its weights have broken down, or its attention has (try"
        ' models.attention = "eager", or models.precision = "float32")'
    )
