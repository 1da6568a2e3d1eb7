"""Dropout off: a student that is distilled is the distribution that it also samples from and is compared as.

With dropout, SPIN at the student = R is not ln 2, SDFT's student differs from its own average, and the loss depends on
the split into micro-batches.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.loss.scores import Reading, hidden_states
from dudi.models.parts import backbone
from dudi.models.sharding import plain_type, through

WORDS = ("drop", "jitter")
"""In the names of probabilities: attention_dropout, layerdrop, resid_pdrop; the noise of a router."""


def dropout_off(model: PreTrainedModel, what: str) -> None:
    """Make training mode compute what evaluation mode computes, whatever the config says; the config stays as it is.

    Raises `DudiError` for a model that has another source of noise.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _silence(module)
    if _same_in_training(model):
        return
    _own_configs(model)
    if not _same_in_training(model):
        raise DudiError(
            f"{what}: {plain_type(model).__name__} computes something else in training than in evaluation, also without"
            " dropout: it cannot be distilled; set the source of noise in its config.json to 0"
        )


def _silence(thing: Any) -> None:
    """Set the probabilities among an object's own attributes to 0."""
    for name, value in list(vars(thing).items()):
        if isinstance(value, float) and value and any(word in name for word in WORDS):
            setattr(thing, name, 0.0)


def _own_configs(model: PreTrainedModel) -> None:
    """Some layers (Falcon's, GPT-Neo's) look into the config at each call: they get a copy of it that says 0.

    The model's own one stays, since it is saved with the result.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        config = vars(module).get("config")
        if module is not model and config is not None:
            if id(config) not in copies:
                copies[id(config)] = copy.deepcopy(config)
                _silence(copies[id(config)])
            cast_module: Any = module
            cast_module.config = copies[id(config)]


@torch.no_grad()
def _same_in_training(model: PreTrainedModel) -> bool:
    """Whether a few tokens have the same hidden states in both modes."""
    weight = model.get_output_embeddings().weight
    ids = torch.arange(32, device=weight.device).reshape(2, 16) % weight.shape[0]
    reading = Reading(ids, torch.arange(ids.numel(), device=ids.device))
    training, found = model.training, []
    state = torch.random.get_rng_state()
    for mode in (False, True):
        model.train(mode)
        found.append(through(model, model, lambda: hidden_states(backbone(model), reading)))
    model.train(training)
    torch.random.set_rng_state(state)
    scale = found[0].abs().max()
    return bool((found[0] - found[1]).abs().max() <= 1e-5 * scale)
