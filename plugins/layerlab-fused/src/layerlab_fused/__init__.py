"""Everything by hand in one step: gradient and update are one operation, and no weight gradient is stored.

The gradient of a weight matrix is a product, and plain gradient descent subtracts a multiple of it:
``w -= lr * a.T @ b``. `torch.Tensor.addmm_` does just that, in place
(https://docs.pytorch.org/docs/stable/generated/torch.addmm.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from layerlab import Params, Recipe, Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["FusedTier"]

# The derivative of relu times what came in, in place: one operation, where a mask would be two.
_relu_backward = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True)
class _Buffers:
    """What a step writes and the next one overwrites, and every view of it that a step needs."""

    h: Tensor  # (N, H)
    h_t: Tensor  # (H, N), a view
    grad_h: Tensor  # (N, H)
    grad_h_t: Tensor  # (H, N), a view
    diff: Tensor  # (N, D_out)
    diff_t: Tensor  # (D_out, N), a view
    diff_flat: Tensor  # (N * D_out,), a view
    ones: Tensor  # (N,)

    @classmethod
    def like(cls, x: Tensor, hidden: int, n_out: int) -> _Buffers:
        """Buffers for batches of the size, dtype and device of ``x``."""
        n = len(x)
        h, grad_h, diff = (x.new_empty(n, width) for width in (hidden, hidden, n_out))
        return cls(h, h.t(), grad_h, grad_h.t(), diff, diff.t(), diff.view(-1), x.new_ones(n))


class FusedTier(Tier):
    """The two-layer network under gradient descent, with in-place `addmm_` updates; `step` only."""

    contract_version = 1
    precisions = frozenset({"32-true", "64-true"})
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=True)

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        def tensor(array: Any) -> Tensor:
            return torch.tensor(array, device=device, dtype=dtype)

        # The loss is a sum of squares: the factor 2 of its derivative goes into the rate.
        self._rate = -2 * lr
        # The first layer is kept transposed: its update is then a product that is written row by row.
        self._w1_t = tensor(params.w1.T.copy())  # (H, D_in)
        self._w1 = self._w1_t.t()  # (D_in, H), a view
        self._w2 = tensor(params.w2)  # (H, D_out)
        self._w2_t = self._w2.t()  # (D_out, H), a view
        self._b1 = None if params.b1 is None else tensor(params.b1)  # (H,)
        self._b2 = None if params.b2 is None else tensor(params.b2)  # (D_out,)
        self._made: dict[int, _Buffers] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out)."""
        h = x.mm(self._w1) if self._b1 is None else torch.addmm(self._b1, x, self._w1)
        h.relu_()  # (N, H)
        return h.mm(self._w2) if self._b2 is None else torch.addmm(self._b2, h, self._w2)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of gradient descent; the loss before the update, 0-d."""
        b = self._made.get(len(x)) or self._buffers(x)
        h, grad_h, diff = b.h, b.grad_h, b.diff
        _linear(x, self._w1, self._b1, out=h)
        h.relu_()  # (N, H)
        _linear(h, self._w2, self._b2, out=diff)
        diff.sub_(y)  # (N, D_out): half the gradient by y_pred
        loss: Tensor = b.diff_flat.dot(b.diff_flat)
        torch.mm(diff, self._w2_t, out=grad_h)
        # h is 0 exactly where the pre-activation was not positive: what relu lets through is seen in it.
        _relu_backward(grad_h, h, 0, grad_input=grad_h)  # (N, H)
        self._w2.addmm_(b.h_t, diff, alpha=self._rate)
        self._w1_t.addmm_(b.grad_h_t, x, alpha=self._rate)
        if self._b1 is not None and self._b2 is not None:
            # sums over the batch, as products with ones: one operation with the update
            self._b1.addmv_(b.grad_h_t, b.ones, alpha=self._rate)
            self._b2.addmv_(b.diff_t, b.ones, alpha=self._rate)
        return loss

    def params(self) -> Params:
        """A copy of the parameters as they are now."""
        return Params.copy_of(self._w1, self._w2, self._b1, self._b2)

    def state(self) -> dict[str, Any]:
        """The parameters: plain gradient descent remembers nothing else."""
        return {name: p for name, p in self.params()._asdict().items() if p is not None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        for name, value in state.items():
            getattr(self, f"_{name}").copy_(torch.as_tensor(value))

    def _buffers(self, x: Tensor) -> _Buffers:
        self._made[len(x)] = made = _Buffers.like(x, *self._w2.shape)
        return made


def _linear(x: Tensor, w: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, w, out=out)
    else:
        torch.addmm(bias, x, w, out=out)
