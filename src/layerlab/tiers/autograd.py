"""The forward pass and the update are by hand; the gradients come from autograd.

``requires_grad=True`` makes torch write down every operation on the parameters; ``loss.backward()`` reads
that record from right to left, which is what the tiers below spell out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from layerlab.tier import Recipe
from layerlab.tiers._plumbing import LooseTensors

if TYPE_CHECKING:
    from torch import Tensor


class AutogradTier(LooseTensors):
    """The network on torch tensors, gradients from autograd."""

    capturable = True
    recipe = Recipe(optimizer="sgd", lr=1e-6, init="normal", bias=False)
    requires_grad = True

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out)."""
        h = x.mm(self.w1)  # (N, H)
        if self.b1 is not None:
            h = h + self.b1
        y_pred = self.relu(h).mm(self.w2)  # (N, D_out)
        return y_pred if self.b2 is None else y_pred + self.b2

    def relu(self, h: Tensor) -> Tensor:
        """``max(h, 0)`` with derivative 0 at 0; `clamp` would let the gradient through there."""
        return h.relu()

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 -- autograd remembers x
        """The loss; autograd leaves the gradients in ``.grad``."""
        for p in self.parameters():
            p.grad = None  # autograd adds to what is there
        loss = (y_pred - y).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self) -> None:
        """Gradient descent, in place; the update itself must not be recorded."""
        with torch.no_grad():
            for p in self.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=self.lr)
