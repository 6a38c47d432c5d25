"""The step in C, one call for all of it: the CPU's.

Two of the five matrix products are nearly all of the arithmetic. What is left is small, and as operations of
torch's costs a quarter of those two: each is looked up, checked, and shared out between threads by itself.
Here all threads go through a whole step, and wait for each other once (see ``_kernel.h``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import torch

from layerlab_fused import _step

if TYPE_CHECKING:
    from torch import Tensor

    from layerlab_fused.weights import Weights

# Numbers of a buffer's row are whole vectors of the widest kernel.
_LANES = 8
# A thread that is woken should have this much to do, in additions and multiplications: some ten microseconds.
_OPERATIONS = 1_000_000


class CompiledStep:
    """A step on batches of one size.

    Args:
        weights: The parameters, on the CPU, in `torch.float32` or `torch.float64`.
        rate: What a product with the difference of predictions and targets is multiplied by.
        n: Rows of a batch.
        kernel: The kernel: 0 runs everywhere, `_step.WIDEST` is the fastest that this processor has.
    """

    def __init__(self, weights: Weights, rate: float, n: int, kernel: int = _step.WIDEST) -> None:
        hidden, d_in = weights.w1_t.shape
        d_out = weights.w2.shape[1]
        self._sizes, self._dtype = ((n, d_in), (n, d_out)), weights.w2.dtype
        self._most = max(1, 2 * n * hidden * (2 * d_in + 3 * d_out) // _OPERATIONS)
        self._weights, self._rate, self._kernel = weights, rate, kernel
        self._planned(threads=1)

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """One step of gradient descent; the loss before the update.

        Raises:
            ValueError: The batch is not what it was said to be.
        """
        if (x.shape, y.shape) != self._sizes or not x.dtype == y.dtype == self._dtype:
            raise ValueError(
                f"{self._dtype} of shapes {self._sizes} expected, got {x.dtype} and {y.dtype}, "
                f"{tuple(x.shape)} and {tuple(y.shape)}"
            )
        threads = min(torch.get_num_threads(), self._most)
        if threads > self._threads:
            self._planned(threads)
        x, y = x.contiguous(), y.contiguous()
        return _step.step(self._plan, x.data_ptr(), y.data_ptr(), threads)

    def _planned(self, threads: int) -> None:
        """Makes buffers for so many threads."""
        (n, d_in), (_, d_out) = self._sizes
        w, hidden, ld = self._weights, len(self._weights.w2), -(-n // _LANES) * _LANES
        sizes = {
            "h": hidden * ld,
            "grad": hidden * ld,
            "shares": threads * d_out * ld,
            "diffs": threads * d_out * ld,
            "tiles": threads * _step.BATCH * _step.COLUMNS,
        }
        # what no step writes must be finite: it is multiplied by 0
        self._buffers = [w.w2.new_zeros(size) for size in sizes.values()]
        kernel = self._kernel + (self._dtype is torch.float64)
        addresses = [0 if p is None else p.data_ptr() for p in (w.w1_t, w.w2, w.b1, w.b2, *self._buffers)]
        self._plan = struct.pack(
            f"@6nd{len(addresses)}P", d_in, hidden, d_out, n, ld, kernel, self._rate, *addresses
        )
        self._threads = threads
