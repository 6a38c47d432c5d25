"""The step in C, one call for all of it: the CPU's.

Two of the five matrix products are nearly all of the arithmetic. What is left is small, and as operations of
torch's costs a quarter of those two: each is looked up, checked, and shared out between threads by itself.
Here all threads go through a whole step, and wait for each other once (see ``_kernel.h``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import torch

from layerlab_fused import _step
from layerlab_fused.weights import misfit

if TYPE_CHECKING:
    from torch import Tensor

    from layerlab_fused.weights import Weights

# Numbers of a buffer's row are whole vectors of the widest kernel.
_LANES = 16
# Which of a pair of kernels computes in what.
_KERNELS = {torch.float32: 0, torch.float64: 1}
# A thread that is woken should have this much to do, in additions and multiplications: some ten microseconds.
_OPERATIONS = 1_000_000


class CompiledStep:
    """A step on batches of one size.

    Args:
        weights: The parameters, on the CPU, in `torch.float32` or `torch.float64`.
        rate: What a product with the difference of predictions and targets is multiplied by.
        n: Rows of a batch.
        kernel: The pair of kernels: 0 runs everywhere, `_step.WIDEST` is the fastest on this processor.
    """

    def __init__(self, weights: Weights, rate: float, n: int, kernel: int = _step.WIDEST) -> None:
        hidden, d_in = weights.w1_t.shape
        d_out = weights.w2.shape[1]
        self._sizes, self._dtype = ((n, d_in), (n, d_out)), weights.w2.dtype
        self._weights, self._rate, self._kernel = weights, rate, kernel
        work = 2 * n * hidden * (2 * d_in + 3 * d_out) // _OPERATIONS
        self._most, self._threads = max(1, min(work, hidden)), 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy plans its own steps: the addresses are those of the tensors of this one."""
        return CompiledStep, (self._weights, self._rate, self._sizes[0][0], self._kernel)

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """One step of gradient descent; the loss before the update.

        Raises:
            ValueError: The batch is not what it was said to be.
        """
        fits = x.dtype == y.dtype == self._dtype and x.is_cpu and y.is_cpu
        if not fits or (x.shape, y.shape) != self._sizes:
            raise misfit(x, y, self._weights.w2, self._sizes)
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
            "ends": threads * _step.BATCH * _step.TILE,
        }
        # what no step writes must be finite: it is multiplied by 0
        self._buffers = [w.w2.new_zeros(size) for size in sizes.values()]
        kernel = self._kernel + _KERNELS[self._dtype]
        addresses = [0 if p is None else p.data_ptr() for p in (w.w1_t, w.w2, w.b1, w.b2, *self._buffers)]
        self._plan = struct.pack(
            f"@7nd{len(addresses)}P",
            d_in,
            hidden,
            d_out,
            n,
            ld,
            w.w1_t.stride(0),
            kernel,
            self._rate,
            *addresses,
        )
        self._threads = threads
