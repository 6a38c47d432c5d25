"""What a step cannot do without: its five matrix products and nothing else, results preallocated.

In two layouts, for libraries are not equally fast in both: the floor is the faster one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def products(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor) -> list[Callable[[int], None]]:
    """Loops over the products, so many times, a loop for each layout.

    Args:
        x: Inputs, shape (N, D_in).
        y: What takes the place of the gradient by the predictions, shape (N, D_out).
        w1: Weights, shape (D_in, H).
        w2: Weights, shape (H, D_out).
    """
    return [_by_rows(x, y, w1, w2), _by_columns(x, y, w1, w2)]


def _by_rows(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor) -> Callable[[int], None]:
    h, y_pred = x.mm(w1), torch.empty_like(y)  # (N, H), (N, D_out)
    grad_h, grad_w1, grad_w2 = (torch.empty_like(t) for t in (h, w1, w2))
    x_t, h_t, w2_t, mm = x.t(), h.t(), w2.t(), torch.mm

    def loop(count: int) -> None:
        for _ in range(count):
            mm(x, w1, out=h)
            mm(h, w2, out=y_pred)
            mm(h_t, y, out=grad_w2)
            mm(y, w2_t, out=grad_h)
            mm(x_t, grad_h, out=grad_w1)

    return loop


def _by_columns(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor) -> Callable[[int], None]:
    """With the rows of the batch as columns, and the weights transposed."""
    w1_t, w2_t, y_t = (t.t().contiguous() for t in (w1, w2, y))
    x_t, mm = x.t(), torch.mm
    h, y_pred = w1_t.mm(x_t), torch.empty_like(y_t)  # (H, N), (D_out, N)
    grad_h, grad_w1, grad_w2 = (torch.empty_like(t) for t in (h, w1_t, w2_t))
    h_t = h.t()

    def loop(count: int) -> None:
        for _ in range(count):
            mm(w1_t, x_t, out=h)
            mm(w2_t, h, out=y_pred)
            mm(y_t, h_t, out=grad_w2)
            mm(w2, y_t, out=grad_h)
            mm(grad_h, x, out=grad_w1)

    return loop
