"""Devices that a run can be planned for: what their vendor says of them, and this machine's own processors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from dudi.errors import DudiError, unknown

UTILISATION = 0.4
"""Share of the device's arithmetic that training reaches: an assumption."""
BANDWIDTH = 0.75
"""Share of the device's bandwidth that decoding and the optimizer reach: an assumption."""
USABLE = 0.92
"""Share of a GPU's memory that tensors can have: the rest is for CUDA, cuBLAS and fragments. An assumption."""
CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """A device. memory, bandwidth: bytes, bytes a second; bf16, float32: FLOP/s, dense, with sums in float32."""

    name: str
    title: str
    memory: float
    bf16: float
    float32: float
    bandwidth: float

    @property
    def usable(self) -> float:
        """Bytes that tensors can have."""
        return self.memory if self.is_cpu else USABLE * self.memory

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's own processors."""
        return self.name == CPU

    def rate(self, bf16: bool) -> float:
        """FLOP/s that a training is assumed to reach."""
        return UTILISATION * (self.bf16 if bf16 else self.float32)

    @property
    def reach(self) -> float:
        """Bytes a second that are assumed to be reached."""
        return BANDWIDTH * self.bandwidth


DEVICES = {
    device.name: device
    for device in (
        Device("h200", "NVIDIA H200 SXM", 141e9, 989e12, 67e12, 4.8e12),
        Device("h100", "NVIDIA H100 SXM", 80e9, 989e12, 67e12, 3.35e12),
        Device("a100-80", "NVIDIA A100 80GB SXM", 80e9, 312e12, 19.5e12, 2.039e12),
        Device("a100-40", "NVIDIA A100 40GB SXM", 40e9, 312e12, 19.5e12, 1.555e12),
        Device("l40s", "NVIDIA L40S", 48e9, 362e12, 91.6e12, 0.864e12),
        Device("l4", "NVIDIA L4", 24e9, 121e12, 30.3e12, 0.3e12),
        Device("rtx4090", "NVIDIA GeForce RTX 4090", 24e9, 165.2e12, 82.6e12, 1.008e12),
    )
}
"""By the name that `--device` takes. Figures of the vendor's data sheets, without sparsity."""


def choose(name: str | None) -> Device:
    """The device of that name; without one, this machine's. Raises `DudiError` with the choices."""
    if name is None:
        name = of_this_machine()
    if name is None:
        raise DudiError(
            f"--device: {_present()[0]!r} is not among the devices that are known: choose the likest of"
            f" {', '.join(DEVICES)}"
        )
    if name == CPU:
        return _measured()
    if name not in DEVICES:
        raise DudiError(f"--device: {unknown(name, [*DEVICES, CPU], 'device')}")
    return DEVICES[name]


def of_this_machine() -> str | None:
    """The name of this machine's device; None for a GPU that is not in the table."""
    return _like(*_present()) if torch.cuda.is_available() else CPU


def _present() -> tuple[str, int]:
    """Name and memory of the first GPU of this machine."""
    about = torch.cuda.get_device_properties(0)
    return about.name, about.total_memory


def _like(title: str, memory: int) -> str | None:
    """The device of the table with that title: by its name, and of several by their memory."""
    words = title.upper().replace("-", " ").split()
    found = [one for one in DEVICES.values() if one.name.split("-")[0].upper().removeprefix("RTX") in words]
    return min(found, key=lambda one: abs(one.memory - memory)).name if found else None


def _measured() -> Device:
    """This machine's processors: its memory as the system says, its speed as a product and a copy have it."""
    threads = torch.get_num_threads()

    def flops(dtype: torch.dtype) -> float:
        a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        return 2 * 256 * 1024 * 1024 / _best(lambda: a @ b)

    block = torch.ones(2**24)
    speed = 2 * block.numel() * block.element_size() / _best(lambda: block.clone())
    title = f"this CPU, {threads} thread{'s' if threads > 1 else ''} (its speed is measured now)"
    return Device(CPU, title, psutil.virtual_memory().total, flops(torch.bfloat16), flops(torch.float32), speed)


def _best(work: Callable[[], object]) -> float:
    """Seconds of a piece of work at its best."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
