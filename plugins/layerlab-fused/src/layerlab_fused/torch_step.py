"""The step in torch's operations: where there is no compiled one, for the CPU or for CUDA.

The gradient of a weight matrix is a product, and plain gradient descent subtracts a multiple of it:
``w -= lr * a.T @ b``. `torch.Tensor.addmm_` does just that, in place
(https://docs.pytorch.org/docs/stable/generated/torch.addmm.html). All that is computed on the way is kept
with the rows of the batch as columns: on a CPU a product with ten columns costs twice one with ten rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from layerlab_fused.weights import Weights

# The derivative of relu times what came in, in place: one operation, where a mask would be two.
_relu_backward = torch.ops.aten.threshold_backward.grad_input


class TorchStep:
    """A step on batches of one size, with buffers that every step writes anew.

    Args:
        weights: The parameters.
        rate: What a product with the difference of predictions and targets is multiplied by.
        n: Rows of a batch.
    """

    def __init__(self, weights: Weights, rate: float, n: int) -> None:
        hidden, d_out = weights.w2.shape
        self._rate, self._w = rate, weights
        self._w2_t = weights.w2.t()  # (D_out, H), a view
        self._h, self._grad = (weights.w2.new_empty(hidden, n) for _ in range(2))  # (H, N)
        self._diff = weights.w2.new_empty(d_out, n)  # (D_out, N)
        self._diff_t, self._diff_flat = self._diff.t(), self._diff.view(-1)  # views
        self._ones = weights.w2.new_ones(n)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of gradient descent; the loss before the update, 0-d."""
        w, h, grad, diff, rate = self._w, self._h, self._grad, self._diff, self._rate
        _linear(w.w1_t, x.t(), w.b1, out=h)
        h.relu_()  # (H, N)
        _linear(self._w2_t, h, w.b2, out=diff)
        diff.sub_(y.t())  # (D_out, N): half the gradient by y_pred
        loss: Tensor = self._diff_flat.dot(self._diff_flat)
        torch.mm(w.w2, diff, out=grad)
        # h is 0 exactly where the pre-activation was not positive: what relu lets through is seen in it.
        _relu_backward(grad, h, 0, grad_input=grad)  # (H, N)
        w.w2.addmm_(h, self._diff_t, alpha=rate)
        w.w1_t.addmm_(grad, x, alpha=rate)
        # sums over the batch, as products with ones: one operation with the update
        if w.b1 is not None:
            w.b1.addmv_(grad, self._ones, alpha=rate)
        if w.b2 is not None:
            w.b2.addmv_(diff, self._ones, alpha=rate)
        return loss


def _linear(w_t: Tensor, columns: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    if bias is None:
        torch.mm(w_t, columns, out=out)
    else:
        torch.addmm(bias.unsqueeze(1), w_t, columns, out=out)
