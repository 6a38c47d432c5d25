"""Everything by hand on torch tensors: the same lines as on NumPy arrays, and they run on a GPU.

A tensor is an array that knows its device. Nothing else changes: autograd is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerlab.tier import Recipe
from layerlab.tiers._plumbing import LooseTensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class TensorsTier(LooseTensors):
    """The network on torch tensors, gradients by hand."""

    capturable = True
    recipe = Recipe(optimizer="sgd", lr=1e-6, init="normal", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out)."""
        self._h = x.mm(self.w1)  # (N, H)
        if self.b1 is not None:
            self._h += self.b1
        self._h_relu = self._h.clamp(min=0)  # (N, H)
        y_pred = self._h_relu.mm(self.w2)  # (N, D_out)
        if self.b2 is not None:
            y_pred += self.b2
        return y_pred

    def backward(self, x: Tensor, y_pred: Tensor, y: Tensor) -> Tensor:
        """The loss; leaves the gradients behind."""
        diff = y_pred - y  # (N, D_out)
        loss = diff.square().sum()
        grad_y = 2 * diff  # (N, D_out): d loss / d y_pred
        grad_w2 = self._h_relu.t().mm(grad_y)  # (H, D_out)
        grad_h = grad_y.mm(self.w2.t())  # (N, H)
        # A product with the mask: an assignment to the masked places would first have to find them.
        grad_h = grad_h * (self._h > 0)
        grad_w1 = x.t().mm(grad_h)  # (D_in, H)
        self._grads = [grad_w1, grad_w2]
        if self.b1 is not None:
            self._grads += [grad_h.sum(dim=0), grad_y.sum(dim=0)]  # (H,), (D_out,)
        return loss

    def update(self) -> None:
        """Gradient descent, in place."""
        for p, grad in zip(self.parameters(), self._grads, strict=True):
            p.sub_(grad, alpha=self.lr)

    def gradients(self) -> Sequence[Tensor]:
        """The gradients that `backward` left."""
        return self._grads
