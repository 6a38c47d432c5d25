"""Everything by hand on NumPy arrays: the forward pass, the loss, backpropagation and the update.

There is no framework here. What torch hands in is viewed as arrays, without a copy. The gradients are the
chain rule read from right to left: start at the loss, multiply by one local derivative at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.tier import Params, Recipe, Tier, host_copy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from layerlab.tier import Array


class NumpyTier(Tier):
    """The network on NumPy arrays. NumPy knows neither GPUs nor torch's autocast."""

    contract_version = 1
    accelerators = frozenset({"cpu"})
    precisions = frozenset({"32-true", "64-true"})
    recipe = Recipe(optimizer="sgd", lr=1e-6, init="normal", bias=False)

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:  # noqa: ARG002 -- NumPy has one device, and the arrays say their dtype
        self.lr = lr
        self._p = Params.copy_of(*params)
        self._grads: list[Array] = []

    def forward(self, x: torch.Tensor) -> Array:
        """Predictions, shape (N, D_out)."""
        w1, w2, b1, b2 = self._p
        self._h = x.numpy() @ w1  # (N, H)
        if b1 is not None:
            self._h += b1
        self._h_relu = np.maximum(self._h, 0)  # (N, H)
        y_pred = self._h_relu @ w2  # (N, D_out)
        if b2 is not None:
            y_pred += b2
        return y_pred

    def backward(self, x: torch.Tensor, y_pred: Array, y: torch.Tensor) -> np.floating[Any]:
        """The loss; leaves the gradients behind."""
        diff = y_pred - y.numpy()  # (N, D_out)
        loss: np.floating[Any] = np.square(diff).sum()
        grad_y = 2 * diff  # (N, D_out): d loss / d y_pred
        grad_w2 = self._h_relu.T @ grad_y  # (H, D_out)
        grad_h = grad_y @ self._p.w2.T  # (N, H)
        grad_h *= self._h > 0  # relu lets through what was positive, and nothing else
        grad_w1 = x.numpy().T @ grad_h  # (D_in, H)
        self._grads = [grad_w1, grad_w2]
        if self._p.b1 is not None:
            self._grads += [grad_h.sum(axis=0), grad_y.sum(axis=0)]  # (H,), (D_out,)
        return loss

    def update(self) -> None:
        """Gradient descent, in place."""
        for p, grad in zip((p for p in self._p if p is not None), self._grads, strict=True):
            np.subtract(p, self.lr * grad, out=p)

    def params(self) -> Params:
        """A copy of the parameters as they are now."""
        return Params.copy_of(*self._p)

    def gradients(self) -> Sequence[Array]:
        """The gradients that `backward` left."""
        return self._grads

    def state(self) -> dict[str, Any]:
        """The parameters: plain gradient descent remembers nothing else."""
        return {name: p for name, p in self.params()._asdict().items() if p is not None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        for name, value in state.items():
            getattr(self._p, name)[...] = host_copy(value)
