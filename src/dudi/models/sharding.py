"""Models whose weights are spread over the processes (FSDP2), and what has to be done otherwise for them.

They are sharded while they are loaded, by transformers (`DistributedConfig`). Each layer's weights are gathered when
it is called, through hooks on the modules' own calls: so every process has to call a sharded model equally often, in
the same order, and weights are whole only inside such a call. All functions also take models that are not sharded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

Result = TypeVar("Result")


def over(processes: int) -> DistributedConfig:
    """What `from_pretrained` needs to shard a model over so many processes."""
    return DistributedConfig(fsdp_size=processes)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are spread over the processes."""
    return isinstance(model, FSDPModule)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """A module's class as it was before sharding, which puts a subclass in its place."""
    return next(
        kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and not issubclass(kind, FSDPModule)
    )


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is spread over the processes; all of them have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def bytes_here(model: nn.Module) -> int:
    """Bytes of a model's weights that this process holds between calls."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() * p.element_size() for p in local)


def through(wrapper: nn.Module, model: PreTrainedModel, forward: Callable[[], Result]) -> Result:
    """Call `forward` as the model's own, through its wrapper (DDP, or the model itself): only there DDP reduces
    gradients and FSDP2 gathers weights; outside nothing would be reduced, unnoticed."""
    before = model.__dict__.get("forward")
    cast(Any, model).forward = forward
    try:
        return cast(Result, wrapper())
    finally:
        if before is None:
            del cast(Any, model).forward
        else:
            cast(Any, model).forward = before
        if not torch.is_grad_enabled():  # no backward pass frees what was gathered, and it would soon be out of date
            reshard(model)


def reshard(model: nn.Module) -> None:
    """Free what a call without a backward pass left gathered."""
    if is_sharded(model):
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@torch.no_grad()
def whole_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A frozen copy that is whole on this process."""
    if not is_sharded(model):
        return copy.deepcopy(model).requires_grad_(False).eval()
    made = shell(model, model.dtype)
    copy_weights(made, model)
    return made


def shell(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A frozen model like a sharded or quantised one, whole on this process and plain, its weights still to be set."""
    config = copy.deepcopy(model.config)
    for name in ("distributed_config", "quantization_config"):
        if name in vars(config):
            delattr(config, name)
    kind = cast(Any, plain_type(model))
    made = kind._from_config(config, dtype=dtype, attn_implementation=model.config._attn_implementation)
    made = cast(PreTrainedModel, made).to(cast(Any, model.device)).requires_grad_(False).eval()
    for mine, theirs in zip(made.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
    return made


@torch.no_grad()
def copy_weights(to: nn.Module, source: nn.Module) -> None:
    """Refresh a whole copy; one parameter at a time is gathered."""
    for mine, theirs in zip(to.parameters(), source.parameters(), strict=True):
        mine.copy_(whole(theirs))


@torch.no_grad()
def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put whole tensors, by name (tied weights once), into a sharded model."""
    for name, p in model.named_parameters():
        assert isinstance(p, DTensor)
        p.copy_(_like(p, state[name]))


def stored(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model, by name: tied weights once, and buffers only where they are in its state."""
    names = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in names}
    return dict[str, Tensor](model.named_parameters()) | buffers


@torch.no_grad()
def whole_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The same, gathered by all processes, one tensor at a time."""
    for name, tensor in stored(model).items():
        yield name, whole(tensor.detach())


def save_whole(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]], folder: str, first: bool) -> None:
    """Write a sharded model, of these tensors, as one process would: gathered by all, written by the `first`.

    By itself transformers writes a tied head a second time, under its other name.
    """
    state: dict[str, Tensor] = {}
    for name, full in tensors:
        if first:
            state[name] = full.cpu()
    if first:
        plan = model.config.distributed_config
        del model.config.distributed_config
        try:
            model.save_pretrained(folder, state_dict=state)
        finally:
            model.config.distributed_config = plan


def whole_optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state as one process would have it: readable on any number of processes, sharded or not."""
    state = optimizer.state_dict()  # its inner tables are the optimizer's own
    found = {
        place: {name: whole(value).cpu() if isinstance(value, DTensor) else value for name, value in values.items()}
        for place, values in state["state"].items()
    }
    return {**state, "state": found}


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore what `whole_optimizer_state` returned, or an ordinary state, also for sharded parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {
        place: {
            name: _like(parameters[place], value) if value.shape == parameters[place].shape else value
            for name, value in values.items()
        }
        for place, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": found})


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, spread as a parameter is, if it is."""
    if not isinstance(parameter, DTensor):
        return tensor.to(parameter.device, parameter.dtype)
    here = tensor.to(device=parameter.to_local().device, dtype=parameter.dtype)
    # every process has read the same file: nothing needs to be sent
    return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
