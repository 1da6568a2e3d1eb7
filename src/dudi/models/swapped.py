"""An adapted student as another model, while it is asked: without its adapter, or with other weights in it.

So a second model costs its adapter at most, whatever the layers beneath are: sharded over processes, or quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from dudi.models.adapter import is_adapted, layers
from dudi.models.quantised import is_quantised

As = Callable[[], AbstractContextManager[None]]
"""What a model is asked within."""


@contextmanager
def without(student: PreTrainedModel) -> Iterator[None]:
    """The student is what it was before it had an adapter. Not while a loss of its own waits for its backward pass."""
    for _, layer in layers(student):
        layer._disable_adapters = True  # peft's own switch would also set what learns
    try:
        yield
    finally:
        for _, layer in layers(student):
            layer._disable_adapters = False


@contextmanager
def with_weights(student: PreTrainedModel, state: Mapping[str, Tensor]) -> Iterator[None]:
    """The student has `state`, by the names of its parameters, in the place of its adapter's weights. As above."""
    own = {name: p.data for name, p in student.named_parameters() if name in state}
    assert own.keys() == state.keys()
    try:
        for name, tensor in state.items():
            student.get_parameter(name).data = tensor
        yield
    finally:
        for name, tensor in own.items():
            student.get_parameter(name).data = tensor


def read(student: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """All that a model says depends on, under the names that a model without an adapter has for it; of any model."""
    off = any(layer.disable_adapters for _, layer in layers(student)) if is_adapted(student) else False
    named: Iterable[tuple[str, Tensor]] = (*student.named_parameters(), *student.named_buffers())
    for name, tensor in student.state_dict().items() if is_quantised(student) else named:  # with the scales
        if not (off and ".lora_" in name):
            yield name.replace(".base_layer.", "."), tensor


def adapter_of(student: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of its adapter's weights, by the names of its parameters."""
    return {name: p.detach().clone() for name, p in student.named_parameters() if p.requires_grad}
