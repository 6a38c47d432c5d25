"""The forward pass, the update and the derivative of ReLU are by hand; autograd does the rest.

A `torch.autograd.Function` teaches autograd an operation that it does not know: ``forward`` computes it and
keeps what the derivative needs, ``backward`` multiplies the incoming gradient by the local derivative
(https://docs.pytorch.org/docs/stable/notes/extending.html).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from layerlab.tiers.autograd import AutogradTier

if TYPE_CHECKING:
    from torch import Tensor


class ReLU(torch.autograd.Function):
    """``max(h, 0)``, with derivative 0 at 0."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        """``max(h, 0)``, same shape as ``h``."""
        ctx.save_for_backward(h)
        return h.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """The gradient by ``h``: what came in, where ``h`` was positive."""
        h: Tensor
        (h,) = ctx.saved_tensors
        return grad_output * (h > 0)


class CustomFunctionTier(AutogradTier):
    """As `AutogradTier`, with a ReLU of its own."""

    capturable = True

    def relu(self, h: Tensor) -> Tensor:
        """Calls the Function; ``apply`` is what puts it into autograd's record."""
        out: Tensor = ReLU.apply(h)  # type: ignore[no-untyped-call]
        return out
