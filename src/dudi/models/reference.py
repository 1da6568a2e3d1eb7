"""R as the student is computed: SPIN's margin compares the two, so that any other rounding would be a margin.

What is left of it: where y~ answers x as well (`dudi.loss.prefix`), or y is kept in a cache, the two read sequences of
other lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dudi.loss.scores import Reading, hidden_states
from dudi.models.parts import backbone


def like_student(load: Callable[[], PreTrainedModel], autocast: bool) -> PreTrainedModel:
    """A frozen model in the student's dtype (`load`), that says under autocast exactly what the student would.

    Autocast rounds the weights of linear layers to bfloat16 at each call: R, which never changes, keeps them so, and
    takes half of the memory. Everything else (embeddings, norms, a head tied to the embedding) stays as it is. It is
    tried that this changes no bit; where it does, R keeps all of its weights.
    """
    model = load()
    if not autocast:
        return model
    wanted = _probed(model)
    round_linears(model)
    return model if torch.equal(_probed(model), wanted) else load()


def round_linears(model: nn.Module) -> None:
    """Keep the weights of plain linear layers in bfloat16, but not those that another kind of module shares."""
    linear = [module for module in model.modules() if type(module) is nn.Linear]
    others = {id(p) for m in model.modules() if type(m) is not nn.Linear for p in m.parameters(recurse=False)}
    for module in linear:
        for p in module.parameters(recurse=False):
            if p.dtype is torch.float32 and id(p) not in others:
                p.data = p.data.bfloat16()


@torch.no_grad()
def _probed(model: PreTrainedModel) -> Tensor:
    """[L, H] hidden states of a few tokens, under autocast."""
    weight = model.get_output_embeddings().weight
    ids = torch.arange(16, device=weight.device)[None] % len(weight)
    with _bfloat16(weight.device):
        return hidden_states(backbone(model), Reading(ids, torch.arange(ids.shape[1], device=ids.device)))


def _bfloat16(device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16)
