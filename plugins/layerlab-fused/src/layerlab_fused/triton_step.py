"""The step on CUDA in three kernels of ours: see `layerlab_fused.kernels`.

A GPU takes longer to begin a kernel than for what most of torch's operations do in a step of a small network.
What needs the whole batch separates the three: the first product, what follows of it row by row, and the
updates, which are sums over the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from layerlab_fused.kernels import hidden_parts, middle, update
from layerlab_fused.weights import Weights, misfit

if TYPE_CHECKING:
    from torch import Tensor

# The sizes of tiles, and how many warps have one: those of 48, 36 and 24 that were the fastest on an H200,
# with the default problem.
_HIDDEN = {"TN": 32, "TH": 16, "TD": 64, "num_warps": 1}
_MIDDLE = {"TN": 1, "TH": 128, "num_warps": 4}
_UPDATE = {"TN": 32, "TH": 16, "TD": 128, "num_warps": 4}
# Inputs that one block sums over: the default problem's 1000 are 16 parts, and its blocks 224.
_SPAN = 64


class TritonStep:
    """A step on batches of one size, with buffers that every step writes anew.

    Args:
        weights: The parameters, float32, on a CUDA device.
        rate: What a product with the difference of predictions and targets is multiplied by.
        n: Rows of a batch.
    """

    def __init__(self, weights: Weights, rate: float, n: int) -> None:
        self._w, self._rate, self._n = weights, rate, n
        hidden, d_in = weights.w1_t.shape
        d_out = weights.w2.shape[1]
        new = weights.w2.new_empty
        self._sizes = (n, d_in), (n, d_out)
        self._parts = new(_tiles(d_in, _SPAN), n, hidden)
        self._h, self._grad, self._diff = new(n, hidden), new(n, hidden), new(n, d_out)
        # a kernel takes a tensor, and does not look at one of biases that are not there
        self._biases = (
            (weights.w2 if weights.b1 is None else weights.b1),
            (weights.w2 if weights.b2 is None else weights.b2),
        )
        self._same = {"TO": _power_of_2(d_out), "BIAS": weights.b1 is not None}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of gradient descent; the loss before the update, 0-d, on the device.

        Raises:
            ValueError: The batch is not what it was said to be.
        """
        w, n = self._w, self._n
        fits = x.dtype == y.dtype == torch.float32 and x.device == y.device == w.w2.device
        if not fits or (x.shape, y.shape) != self._sizes:
            raise misfit(x, y, w.w2, self._sizes)
        x, y = x.contiguous(), y.contiguous()
        (hidden, d_in), d_out, parts = w.w1_t.shape, w.w2.shape[1], self._parts
        loss, between = w.w2.new_empty(()), (self._h, self._grad, self._diff)
        with torch.cuda.device(loss.device):  # Triton launches on the current one
            hidden_parts[_tiles(hidden, _HIDDEN["TH"]), _tiles(n, _HIDDEN["TN"]), len(parts)](
                x, w.w1_t, parts, n, d_in, hidden, **_HIDDEN, SPAN=_SPAN
            )
            middle[(_tiles(n, _MIDDLE["TN"]),)](
                *(parts, y, w.w2, *self._biases, *between, n, hidden, d_out),
                **_MIDDLE,
                **self._same,
                PARTS=len(parts),
            )
            update[_tiles(hidden, _UPDATE["TH"]), _tiles(d_in, _UPDATE["TD"]) + 1](
                *(x, w.w1_t, w.w2, *self._biases, *between, loss),
                *(n, d_in, hidden, d_out, self._rate),
                **_UPDATE,
                **self._same,
            )
        return loss


def try_out(device: torch.device) -> None:
    """Makes a step of nothing, which compiles and loads the kernels.

    Raises:
        Exception: They cannot be built or run here; whatever Triton says of it.
    """
    zeros = torch.zeros(1, 1, device=device)
    TritonStep(Weights(zeros, zeros.clone(), None, None), 0.0, 1)(zeros.clone(), zeros.clone())


def _tiles(size: int, of: int) -> int:
    """How many tiles cover a size."""
    return -(-size // of)


def _power_of_2(size: int) -> int:
    """What a size is padded to: a tile's are powers of 2, and those of a product at least 16."""
    return max(16, 1 << (size - 1).bit_length())
