"""An adapter: small matrices beside a student's own weights, which stay as they are (LoRA, rsLoRA, DoRA; by peft).

The student stays the class that it is, with peft's layers in the place of its linear ones. What it was before is still
there: `without_adapter` gives that model on the very same weights, and so R costs no memory. `merged` gives the model
that others load, and that decodes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor.experimental import implicit_replication
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dudi.errors import DudiError
from dudi.models.quantised import dense, is_quantised
from dudi.models.sharding import is_sharded, shell, stored
from dudi.recipe.schema import Adapter

NAME = "default"
"""What peft calls an adapter that has no name."""
LINEAR = (nn.Linear, Conv1D)
"""What can have an adapter."""
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""Of the names in that file: a model within peft's two wrappers."""


def with_adapter(model: PreTrainedModel, settings: Adapter, seed: int) -> PreTrainedModel:
    """A frozen model with a new adapter that learns, in place. At first the model says what it said before.

    Its weights are in float32 (float64 in a model of float64), whatever the frozen ones are in; A is drawn from `seed`.
    They are whole on each process, also where the frozen ones are spread over several.
    Raises `DudiError` for modules that are not there, or that cannot be adapted.
    """
    from peft import LoraConfig, inject_adapter_in_model

    modules = settings.target_modules
    _check_targets(model, modules)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=cast(Any, settings.lora_alpha),
        target_modules=modules if isinstance(modules, str) else [*modules],
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )
    wide = torch.float64 if model.dtype is torch.float64 else torch.float32
    # DoRA looks at the frozen weights
    with torch.random.fork_rng(devices=[]), implicit_replication() if is_sharded(model) else nullcontext():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, NAME)
        except ValueError as error:  # layers that are read in a way of their own, such as Mamba's
            line = " ".join(str(error).split())
            raise DudiError(f"adapter: {type(model).__name__} cannot have one on these modules: {line:.300}") from None
    if any(not isinstance(layer.get_base_layer(), LINEAR) for _, layer in layers(model)):
        raise DudiError(
            f"adapter: {type(model).__name__} keeps its experts in one tensor, and peft takes them for linear layers:"
            ' name others in adapter.target_modules, such as ["q_proj", "k_proj", "v_proj", "o_proj"]'
        )
    for p in model.parameters():
        if p.requires_grad:  # peft makes them in the dtype of the layer that they stand beside
            p.data = p.data.to(wide)
    for _, layer in layers(model):
        for name, magnitude in layer.lora_magnitude_vector.items():  # DoRA's: of weights as they are rounded
            zero = torch.zeros((), dtype=wide, device=layer.lora_B[name].weight.device)
            length = magnitude.get_weight_norm(_frozen_weight(layer).to(wide), zero, layer.scaling[name])
            magnitude.weight = nn.Parameter(length)
    if is_quantised(model):
        cast(Any, model)._hf_peft_config_loaded = True  # else the Trainer would refuse to train it
    return model.train()


def _check_targets(model: PreTrainedModel, modules: str | tuple[str, ...]) -> None:
    """Raises `DudiError` for names that no linear layer of the model has, and for the head, whose weight is read as it
    is (`dudi.models.parts.head_of`) and may be the embedding's too."""
    if isinstance(modules, str):
        return
    head = model.get_output_embeddings()
    linear = {name: one for name, one in model.named_modules() if isinstance(one, LINEAR) and one is not head}
    known = sorted({name.rpartition(".")[2] for name in linear})
    for wanted in modules:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            raise DudiError(
                f"adapter.target_modules: {wanted!r} is no linear layer within {type(model).__name__} (its head and its"
                f" embedding stay as they are): expected some of {', '.join(known)}, or 'all-linear'"
            )


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has an adapter."""
    return "peft_config" in vars(model)


def layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


# ── the same weights, without it or with it in them ──────────────────────────────────────────────────────────────────
def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The frozen model that an adapter stands beside, on the very same weights: nothing is copied but modules."""
    return _plain(model, {id(p): p for p in model.parameters()})


@torch.no_grad()
def merged(model: PreTrainedModel, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """The model as one without an adapter, whose linear layers have what it adds: W + s B A, or DoRA's. Weights that
    are already as they are wanted, and that no adapter changes, are shared; but not those of a quantised model, nor of
    a sharded one, which all processes gather."""
    if is_sharded(model) or is_quantised(model):
        plain = cast(Any, shell(model, dtype).to(cast(Any, device)))
        for name, tensor in merged_tensors(model):
            plain.get_parameter_or_buffer(name).copy_(tensor)
        return cast(PreTrainedModel, plain)
    plain = _plain(model, {id(p): _like(p, dtype, device) for p in model.parameters()})
    for name, layer in layers(model):
        weight = _merged_weight(layer).to(device, dtype)
        cast(Any, plain.get_submodule(name)).weight = nn.Parameter(weight, requires_grad=False)
    return plain


@torch.no_grad()
def merged_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What the model is as one without an adapter, tensor by tensor under that model's names; whole, one at a time."""
    with_adapter = {f"{name}.base_layer.weight": layer for name, layer in layers(model)}
    for name, tensor in stored(model).items():
        if ".lora_" not in name:
            found = _merged_weight(with_adapter[name]) if name in with_adapter else dense(tensor)
            yield name.replace(".base_layer.", "."), found


@torch.no_grad()
def merge_again(plain: PreTrainedModel, model: PreTrainedModel) -> None:
    """Bring what `merged` returned up to the adapter's present weights."""
    for name, layer in layers(model):
        cast(Any, plain.get_submodule(name)).weight.copy_(_merged_weight(layer))


def _plain(model: PreTrainedModel, weights: dict[int, Any]) -> PreTrainedModel:
    """A copy without the adapter, that has `weights` in the place of the model's own, by their ids."""
    plain = copy.deepcopy(model, weights)
    for name, layer in [*layers(plain)]:
        plain.set_submodule(name, layer.get_base_layer())
    del vars(plain)["peft_config"]
    return plain.requires_grad_(False).eval()


def _like(p: nn.Parameter, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    """The weight itself, or a copy in this dtype and place."""
    found = p.detach().to(device, dtype)
    return p if found.data_ptr() == p.data_ptr() else nn.Parameter(found, requires_grad=False)


def _merged_weight(layer: Any) -> Tensor:
    """A layer's weight with its adapter in it, in the adapter's precision: W + s B A; DoRA's, each row (of outputs) of
    its own length. A new tensor: merging in place and taking back would change the weights a little each time."""
    delta = layer.get_delta_weight(NAME)
    weight = _frozen_weight(layer).to(delta.dtype) + delta
    for magnitude in layer.lora_magnitude_vector.values():
        inputs = 0 if layer.fan_in_fan_out else 1
        weight = weight * (magnitude.weight / weight.norm(dim=inputs)).unsqueeze(inputs)
    return cast(Tensor, weight)


def _frozen_weight(layer: Any) -> Tensor:
    """The weight that an adapter stands beside, whole, and not in 4 bits."""
    return dense(layer.get_base_layer().weight)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapter's weights themselves, under the names of peft's files."""
    from peft import get_peft_model_state_dict

    own: dict[str, Any] = {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name}
    # by itself peft would gather all of a sharded model, and only the process that writes is here
    found = get_peft_model_state_dict(model, state_dict=own, adapter_name=NAME, save_embedding_layers=False)
    return {f"{_PREFIX}{name}": tensor for name, tensor in found.items()}


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter alone, as `peft.PeftModel.from_pretrained` reads it."""
    config = copy.deepcopy(cast(Any, model).peft_config[NAME])
    config.target_modules, config.inference_mode = sorted(config.target_modules), True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    state = {name: tensor.contiguous() for name, tensor in _state(model).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Restore what `save_adapter` wrote. Raises `ValueError` for weights of another adapter."""
    found, wanted = load_file(folder / WEIGHTS), _state(model)
    if {name: one.shape for name, one in found.items()} != {name: one.shape for name, one in wanted.items()}:
        raise ValueError("tensors of another adapter")
    for name, tensor in wanted.items():
        tensor.copy_(found[name])
