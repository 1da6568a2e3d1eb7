"""What the processes of one run agree on and add up. Alone, each of these is the value itself.

A process that raised alone would leave the others waiting for it. So all of them call these functions, at the same
places in the same order, and leave together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from dudi.errors import DudiError

T = TypeVar("T")


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _reduced(values: Sequence[float], how: Any) -> list[float]:
    """float64, so that whole numbers stay exact."""
    found = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(found, how)
    return [float(value) for value in found.tolist()]


def summed(values: Sequence[float]) -> list[float]:
    """Each value added up over the processes, in one call."""
    return _reduced(values, dist.ReduceOp.SUM) if _several() else list(values)


def most(value: int) -> int:
    """The largest of the processes' values."""
    return int(_reduced([value], dist.ReduceOp.MAX)[0]) if _several() else value


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Each tensor becomes its mean over the processes, in place, in one call; all are of one dtype."""
    if _several():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def anywhere(flag: bool) -> bool:
    """Whether a flag is set on any process."""
    return bool(most(int(flag)))


def place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)


def is_first() -> bool:
    """Whether this is the process that writes and talks."""
    return place()[0] == 0


def gathered(value: T) -> list[T]:
    """Every process's value, in their order, on all of them."""
    if not _several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """A `DudiError` of one process is everyone's: all leave the block together, and all with an error or none."""
    mine: DudiError | None = None
    try:
        yield
    except DudiError as error:
        mine = error
    first = next((error for error in gathered(mine) if error is not None), None)
    if first is not None:
        raise mine or first


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all of them: one looks at the disk, nobody sees it otherwise."""
    found: list[Any] = [None]
    with together():
        if is_first():
            found[0] = make()
    if _several():
        dist.broadcast_object_list(found)
    result: T = found[0]
    return result


def is_broken_off(error: Exception) -> bool:
    """Whether an error only says that another process has gone, which says why itself. (Gloo's is a RuntimeError.)"""
    return (dist.is_available() and isinstance(error, dist.DistError)) or "/gloo/" in str(error)
