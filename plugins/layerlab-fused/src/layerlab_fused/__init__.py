"""Everything by hand in one step: gradient and update are one operation, and no weight gradient is stored.

On the CPU the whole step is one call of compiled C (`layerlab_fused.compiled`), on CUDA it is three kernels
(`layerlab_fused.triton_step`). Where these cannot be built, on other devices, and where a problem is so large
that libraries are faster, it is a handful of torch's operations in place (`layerlab_fused.torch_step`).
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch

from layerlab import Params, Recipe, Tier
from layerlab_fused.torch_step import TorchStep
from layerlab_fused.weights import Weights

try:
    from layerlab_fused.compiled import CompiledStep
except ImportError:  # the wheel was built where there is no compiler
    CompiledStep = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["FusedTier"]

# N, D_in, H, D_out, and multiplications in the first product: beyond any of these the step on CUDA is
# torch's.
_MOST = (512, 4096, 1024, 32, 2**25)


class FusedTier(Tier):
    """The two-layer network under gradient descent, updated in place; `step` only."""

    contract_version = 1
    precisions = frozenset({"32-true", "64-true"})
    capturable = True
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=True)

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        self._w = Weights.of(params, device, dtype)
        # The loss is a sum of squares: the factor 2 of its derivative goes into the rate.
        self._rate = -2 * lr
        self._kind = make_step
        self._steps: dict[int, Callable[[Tensor, Tensor], Any]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out)."""
        w = self._w
        h = x.mm(w.w1_t.t()) if w.b1 is None else torch.addmm(w.b1, x, w.w1_t.t())
        h.relu_()  # (N, H)
        return h.mm(w.w2) if w.b2 is None else torch.addmm(w.b2, h, w.w2)

    def step(self, x: Tensor, y: Tensor) -> Any:
        """One step of gradient descent; the loss before it, 0-d: a number, or a tensor on the device."""
        n = len(x)
        step = self._steps.get(n)
        if step is None:
            step = self._steps[n] = self._kind(self._w, self._rate, n)
        return step(x, y)

    def params(self) -> Params:
        """A copy of the parameters as they are now."""
        return Params.copy_of(**self._w.views())

    def state(self) -> dict[str, Any]:
        """The parameters: plain gradient descent remembers nothing else."""
        return {name: p for name, p in self.params()._asdict().items() if p is not None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        views = self._w.views()
        for name, value in state.items():
            views[name].copy_(torch.as_tensor(value))


def make_step(weights: Weights, rate: float, n: int) -> Callable[[Tensor, Tensor], Any]:
    """The fastest step that there is for these parameters and so many rows.

    Args:
        weights: The parameters.
        rate: What a product with the difference of predictions and targets is multiplied by.
        n: Rows of a batch.
    """
    device, dtype = weights.w2.device, weights.w2.dtype
    compiles = CompiledStep is not None and dtype in (torch.float32, torch.float64)
    if device.type == "cpu" and compiles:
        return CompiledStep(weights, rate, n)
    if device.type == "cuda" and dtype == torch.float32 and _is_small(weights, n):
        kind = kernels_for(device)
        if kind is not None:
            return kind(weights, rate, n)  # type: ignore[no-any-return]  # it is not known before it is tried
    return TorchStep(weights, rate, n)


def _is_small(weights: Weights, n: int) -> bool:
    """Whether our kernels are faster than cuBLAS's: a large product it does better, and a long sum."""
    (hidden, d_in), d_out = weights.w1_t.shape, weights.w2.shape[1]
    most = zip((n, d_in, hidden, d_out, n * d_in * hidden), _MOST, strict=True)
    whole = hidden > 0 and (weights.b1 is None) == (weights.b2 is None)
    return whole and all(size <= limit for size, limit in most)


@functools.cache
def kernels_for(device: torch.device) -> Any:
    """`TritonStep` where its kernels can be built, else None.

    Triton comes with torch where torch comes with CUDA. It needs a C compiler, Python's headers and a folder
    to write to, each found in ways of its own: to try is what tells.

    Args:
        device: A CUDA device.
    """
    try:
        # Only here: whoever does not need it need not wait for it.
        from layerlab_fused.triton_step import TritonStep, try_out

        try_out(device)
    except ModuleNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 -- whatever it is, torch's operations compute the same
        said = f"fused: its kernels cannot be built, torch's operations take their place: {error}"
        warnings.warn(said, stacklevel=2)
        return None
    return TritonStep
