"""A decoding step as a CUDA graph: all its kernels launched at once."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replayed:
    """A step that is run once, then captured, then replayed.

    It has to touch the same memory with the same shapes in each call, to wait for nothing and to take no number from a
    generator: what changes (tokens, positions, the place in the cache, the uniform numbers) lies in tensors that the
    step itself moves on. The first call is a real one, on a side stream: libraries set themselves up in it, which must
    not be captured. Capturing runs no kernel, so that each call is exactly one step.
    """

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step
        self.warm = False
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """One step."""
        if not self.warm:
            side, main = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                self.step()
            main.wait_stream(side)
            self.warm = True
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()
        self.graph.replay()
