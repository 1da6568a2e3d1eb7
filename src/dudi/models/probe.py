"""What is taken for granted of a model, tried once on a few tokens: a model that is read wrongly shows no error.

Losses are evaluated from hidden states and the head, on rows padded on the right without a mask; rollouts are decoded
with a cache, on prompts padded on the left. Shapes: L tokens of the probe, H hidden size, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dudi import processes
from dudi.errors import DudiError
from dudi.loss.scores import Reading, hidden_states
from dudi.models.decoding import decoder
from dudi.models.parts import backbone, check_size, head_of
from dudi.models.quantised import is_quantised
from dudi.models.sharding import plain_type, through

Result = TypeVar("Result")
LENGTH = 8
"""Tokens of the probe, and of its padding."""
UNLIKE, UNLIKE_ROUNDED = 1e-3, 0.25
"""Relative distance from which two ways to the same hidden states differ by more than rounding, and the same in
bfloat16, where rounding adds up to a few percent over the layers. A state that is lost, or padding that is seen, makes
it about 1. (In float64 too: many norms are computed in float32.)"""


def check_head(model: PreTrainedModel, vocab: int, what: str) -> None:
    """Refuse, with `DudiError`, a model whose logits `head_of` cannot give.

    The head must be linear, up to a scale and a softcap.
    """
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or plain_type(linear) is not nn.Linear:
        raise DudiError(f"{what}: the output head is a {type(linear).__name__}, expected a plain linear layer")
    check_size(linear.weight.shape[0], vocab, what)
    ids = _tokens(model, vocab)[None, :LENGTH]

    def probe() -> tuple[Tensor, Tensor]:
        logits = type(model).forward(model, input_ids=ids, use_cache=False).logits[0, :, :vocab]
        hidden = _hidden(model, ids)  # first: a sharded model's head is whole only after its backbone was called
        return logits, head_of(model, vocab).logits(hidden)

    wanted, got = _evaluated(model, what, probe)
    if not bool(torch.isfinite(wanted).all()):
        raise DudiError(f"{what}: the model's logits are not finite: its weights are broken (NaN or infinite)")
    tolerance = 2e-2 if _rounded(model) else 1e-4
    if not torch.allclose(got, wanted.to(got.dtype), rtol=tolerance, atol=tolerance * float(wanted.abs().max())):
        raise DudiError(
            f"{what}: {_kind(model)}: the model's logits are not its last hidden states times its output head;"
            " unsupported"
        )


def check_reading(model: PreTrainedModel, vocab: int, what: str) -> None:
    """Refuse, with `DudiError`, a model whose hidden states depend on what follows them."""
    ids = _tokens(model, vocab)
    alone, first, second = ids[None, :LENGTH], ids[None, : 2 * LENGTH], torch.cat((ids[:LENGTH], ids[:LENGTH]))[None]

    def probe() -> list[Tensor]:
        return [_hidden(model, one)[:LENGTH] for one in (alone, first, second)]

    wanted, *padded = _evaluated(model, what, probe)
    if any(_unlike(model, one, wanted) for one in padded):
        raise DudiError(
            f"{what}: {_kind(model)} sees tokens that come later, so that padding changes what it says: only models"
            " that read from left to right can be trained or distilled from"
        )


def check_decoding(model: PreTrainedModel, vocab: int, what: str) -> bool:
    """Refuse, with `DudiError`, a model that says something else with its cache than without.

    Returns whether it may read prompts that are padded on the left; where it may not (its layers see the padding, or
    make NaN of it), prompts of unequal lengths have to be decoded one length at a time.
    """
    ids = _tokens(model, vocab)
    prompt, steps = ids[:LENGTH], ids[LENGTH : 2 * LENGTH]
    plain, other = torch.cat((ids[LENGTH:], prompt)), torch.cat((ids[LENGTH:].flip(0), prompt))

    def probe() -> tuple[Tensor, Tensor, list[Tensor]]:
        uncached = _hidden(model, torch.cat((prompt, steps))[None])[LENGTH - 1 :]
        return uncached, _decoded(model, prompt, steps, 0), [_decoded(model, p, steps, LENGTH) for p in (plain, other)]

    uncached, cached, padded = _evaluated(model, what, probe)
    if not bool(torch.isfinite(uncached).all()):
        raise DudiError(f"{what}: the model's hidden states are not finite: its weights are broken (NaN or infinite)")
    if _unlike(model, cached, uncached):
        raise DudiError(
            f"{what}: {_kind(model)} says something else with its cache than without: no answers can be sampled from it"
        )
    return not any(_unlike(model, one, cached) for one in padded)


def _decoded(model: PreTrainedModel, prompt: Tensor, steps: Tensor, padding: int) -> Tensor:
    """[1 + steps, H]: hidden states at the prompt's end and at each token after it, with the cache."""
    mask = torch.ones(1, len(prompt) + len(steps), dtype=torch.long, device=prompt.device)
    mask[:, :padding] = 0
    feed = decoder(model, mask)
    return torch.cat([feed(prompt[None]), *(feed(step) for step in steps[:, None, None])])


def _hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[L, H] as the losses read them: no mask, no cache."""
    return hidden_states(backbone(model), Reading(ids, torch.arange(ids.shape[1], device=ids.device)))


def _tokens(model: PreTrainedModel, vocab: int) -> Tensor:
    """[2 L] token ids, all different where the vocabulary has so many."""
    return torch.arange(2 * LENGTH, device=model.get_output_embeddings().weight.device) % vocab


@torch.no_grad()
def _evaluated(model: PreTrainedModel, what: str, probe: Callable[[], Result]) -> Result:
    """A probe inside one call of the model, in evaluation mode. An error of the model's own is one line, and so are
    weights that it changes (RWKV divides some while it is in evaluation mode: a copy of them would be another model).
    """
    training, before = model.training, [p._version for p in model.parameters()]
    model.eval()
    try:
        found = through(model, model, probe)
        if before != [p._version for p in model.parameters()]:
            raise DudiError(
                f"{what}: {_kind(model)} changes its own weights when it is called in evaluation mode; unsupported"
                " (with RWKV, set rescale_every to 0 in its config.json)"
            )
        return found
    except (DudiError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a class that needs other arguments, a cache of its own, images
        if processes.is_broken_off(error):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise DudiError(f"{what}: {_kind(model)} cannot be read as a language model: {text:.300}") from None
    finally:
        model.train(training)


def _unlike(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> bool:
    """Whether hidden states differ by more than rounding, at any position (or are not numbers)."""
    limit = UNLIKE_ROUNDED if _rounded(model) else UNLIKE
    found, wanted = found.double(), wanted.double()
    close = (found - wanted).norm(dim=-1) <= limit * wanted.norm(dim=-1)  # a padding token's embedding may be zero
    return not bool(close.all())


def _rounded(model: PreTrainedModel) -> bool:
    """Whether products are taken in half precision (the sums between layers may be float32 all the same)."""
    weight = model.get_output_embeddings().weight
    whole = weight.dtype in (torch.float32, torch.float64)
    return not whole or is_quantised(model) or torch.is_autocast_enabled(weight.device.type)


def _kind(model: PreTrainedModel) -> str:
    return plain_type(model).__name__
