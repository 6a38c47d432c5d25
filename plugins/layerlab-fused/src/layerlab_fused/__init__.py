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


@dataclass(frozen=True)
class _Buffers:
    """Results of a step that the next one overwrites, for one batch size."""

    h: Tensor  # (N, H)
    grad_h: Tensor  # (N, H)
    diff: Tensor  # (N, D_out)


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
        self._w1, self._w2 = tensor(params.w1), tensor(params.w2)  # (D_in, H), (H, D_out)
        self._b1 = None if params.b1 is None else tensor(params.b1)  # (H,)
        self._b2 = None if params.b2 is None else tensor(params.b2)  # (D_out,)
        self._made: dict[int, _Buffers] = {}

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out)."""
        h = x.mm(self._w1) if self._b1 is None else torch.addmm(self._b1, x, self._w1)
        h.clamp_(min=0)  # (N, H)
        return h.mm(self._w2) if self._b2 is None else torch.addmm(self._b2, h, self._w2)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of gradient descent; the loss before the update, 0-d."""
        b = self._buffers(x)
        _linear(x, self._w1, self._b1, out=b.h)
        b.h.clamp_(min=0)  # (N, H)
        _linear(b.h, self._w2, self._b2, out=b.diff)
        b.diff.sub_(y)  # (N, D_out): half the gradient by y_pred
        loss: Tensor = torch.linalg.vecdot(b.diff.view(-1), b.diff.view(-1))
        torch.mm(b.diff, self._w2.t(), out=b.grad_h)
        # h is 0 exactly where the pre-activation was not positive: the sign of h is the mask.
        b.grad_h.mul_(b.h.sign())  # (N, H)
        self._w2.addmm_(b.h.t(), b.diff, alpha=self._rate)
        self._w1.addmm_(x.t(), b.grad_h, alpha=self._rate)
        if self._b1 is not None and self._b2 is not None:
            self._b1.add_(b.grad_h.sum(dim=0), alpha=self._rate)
            self._b2.add_(b.diff.sum(dim=0), alpha=self._rate)
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
        n = len(x)
        if n not in self._made:
            hidden, n_out = self._w2.shape
            self._made[n] = _Buffers(
                h=x.new_empty(n, hidden), grad_h=x.new_empty(n, hidden), diff=x.new_empty(n, n_out)
            )
        return self._made[n]


def _linear(x: Tensor, w: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, w, out=out)
    else:
        torch.addmm(bias, x, w, out=out)
