"""The output head: hidden states -> logits, and the way back.

Shapes: c rows of a chunk, H hidden size, V vocabulary entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """The output head: logits = softcap(scale (hidden @ weight.T + bias)), of the first `vocab` entries only.

    weight [>= vocab, H], bias [>= vocab] or None. Rows past `vocab` are padding: they never have mass in a label.
    """

    weight: Tensor
    bias: Tensor | None = None
    vocab: int = 0
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [c, H] -> logits [c, V], float32 (float64 for float64 weights). Under autocast the product is bf16."""
        head = self.cast()
        return head.finish(head.product(hidden))

    def cast(self) -> Head:
        """The first `vocab` entries in the dtype of products, to cast [V, H] once and not once a chunk."""
        weight, bias = self.weight[: self.vocab], None if self.bias is None else self.bias[: self.vocab]
        device = weight.device.type
        if torch.is_autocast_enabled(device) and weight.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return replace(self, weight=weight, bias=bias)

    def product(self, hidden: Tensor) -> Tensor:
        """hidden @ weight.T + bias, of a head that was `cast`."""
        return torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def finish(self, product: Tensor) -> Tensor:
        """Logits from products, in float32 (float64), and in the products' memory where that is their dtype."""
        out = product if product.dtype is torch.float64 else product.float()
        if self.scale != 1.0:
            out.mul_(self.scale)
        return out if self.softcap is None else torch.tanh(out / self.softcap) * self.softcap

    def through(self, grad: Tensor, logits: Tensor) -> Tensor:
        """d loss / d product, from d loss / d logits, in place."""
        if self.softcap is not None:
            grad.mul_(1 - (logits / self.softcap) ** 2)
        return grad.mul_(self.scale) if self.scale != 1.0 else grad
