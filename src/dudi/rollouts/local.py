"""Sampling in the trainer's own process, on the trainer's own weights, with a cache.

Shapes: B requests, n rows that are still decoded, P longest prompt, T longest limit, V vocabulary. Prompts are padded
on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.models.decoding import Decoder, decoder
from dudi.models.fused import FusedDecoder, is_fusable
from dudi.models.parts import head_of
from dudi.models.probe import check_decoding
from dudi.rollouts import Request, Rollout, Sampling, check_graph
from dudi.rollouts.answers import Answers
from dudi.rollouts.graph import Replayed

LADDER = (1, *sorted(size << k for size in (2, 3) for k in range(20)))
"""Numbers of rows: a batch becomes as small as the next of them when so many answers have ended, so that a model is
called with few different shapes."""
GRAPH_LADDER = tuple(4**k for k in range(10))
"""The same where each shape has to be captured first, and fewer rows save little."""


class LocalEngine:
    """Temperature sampling by inverse CDF: one uniform number a token; top-k and top-p off.

    Entries past `vocab` (padding of the head) are never sampled. Temperature 0 is greedy decoding: the likeliest token,
    of equals the first. A model that cannot read padding on the left (RWKV) answers prompts of one length at a time.

    An answer is a function of the weights, the prompt and its key. Computed in floating point, its logits also depend,
    in their last bits, on the shapes of the products: on the number of requests, on the longest prompt and limit, and
    on how many other answers have ended, since the batch is made smaller as they do (`LADDER`). So the same requests
    have the same answers, and others beside a request can change its answer only where a token was within rounding of
    another.
    """

    def __init__(self, sampling: Sampling) -> None:
        check_graph(sampling.cuda_graph)
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
                rollouts = self._decode(model, [requests[place] for place in places])
                found |= dict(zip(places, rollouts, strict=True))
        finally:
            model.train(training)
        return [found[place] for place in range(len(requests))]

    def _decode(self, model: PreTrainedModel, requests: Sequence[Request]) -> list[Rollout]:
        head = head_of(model, self.sampling.vocab)
        answers = Answers(requests, self.sampling, head)
        ids, mask = self._left_pad(requests, answers.steps, head.weight.device)
        feed = self._decoder(model, mask)

        def step() -> None:
            answers.take(feed(answers.last))

        answers.take(feed(ids))
        ladder = GRAPH_LADDER if self.sampling.cuda_graph else LADDER
        run = self._stepper(step)
        while live := answers.live():
            size = next(size for size in ladder if size >= live)
            if size < len(answers.last) and feed.shrinks:
                feed.keep(answers.keep(size))
                run = self._stepper(step)
            run()
        return answers.rollouts()

    def _decoder(self, model: PreTrainedModel, mask: Tensor) -> Decoder:
        if not self.sampling.cuda_graph:
            return decoder(model, mask)
        if not is_fusable(model):
            raise DudiError(
                f"rollouts.cuda_graph: {type(model).__name__} cannot be decoded as a CUDA graph (only whole models of"
                ' the classes Llama, Qwen2 and Qwen3 with models.attention = "sdpa" can); set it to false'
            )
        return FusedDecoder(model, mask, fixed=True)

    def _stepper(self, step: Callable[[], None]) -> Callable[[], None]:
        """A step as it is, or one that is captured as a CUDA graph in its first calls."""
        return Replayed(step) if self.sampling.cuda_graph else step

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
