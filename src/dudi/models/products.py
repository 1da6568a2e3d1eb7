"""Linear layers on weights that lie as a product of few rows reads them.

A product of 32 rows with a weight of many outputs takes longer on a CPU than its operations and its bytes explain:
the weight is read in strides. Here it is copied once a rollout, transposed, and a wide one in panels of outputs.
Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

PANEL, WIDE = 256, 4096
"""Outputs that lie together, and from how many outputs on: with few panels the product is slower than the plain one."""


class Product:
    """One product of an input with a weight [O, I]: x [R, I] -> x @ weight.T + bias [R, O]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, self.bias = len(weight), bias
        if weight.device.type == "cpu" and self.outputs >= WIDE:
            filled = pad(weight, (0, 0, 0, -self.outputs % PANEL))
            self.panels = filled.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()  # [panels, I, PANEL]
        else:
            self.panels = weight.t().contiguous()[None]

    @classmethod
    def of(cls, *linears: nn.Linear) -> Product:
        """Linear layers of one input as one product, their outputs side by side."""
        biases = tuple(linear.bias for linear in linears if linear.bias is not None)
        assert len(biases) in (0, len(linears))
        weight = linears[0].weight if len(linears) == 1 else torch.cat(tuple(linear.weight for linear in linears))
        return cls(weight, torch.cat(biases) if biases else None)

    def __call__(self, x: Tensor) -> Tensor:
        """x [R, I] -> [R, O]."""
        if len(self.panels) == 1:
            weight = self.panels[0]
            return x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)
        found = torch.bmm(x.expand(len(self.panels), *x.shape), self.panels)
        whole = found.transpose(0, 1).reshape(len(x), -1)[:, : self.outputs]
        return whole if self.bias is None else whole + self.bias
