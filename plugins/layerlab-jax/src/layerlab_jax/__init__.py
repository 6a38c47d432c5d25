"""The loss is by hand, as a function of the parameters; JAX derives its gradient and compiles the step.

`jax.value_and_grad` turns a function into another that returns its value and its gradient, and `jax.jit`
compiles what is traced, the update included, into one program for each shape and dtype
(https://docs.jax.dev/en/latest/automatic-differentiation.html). Nothing has a state: parameters go in and
new ones come out, in the memory of the old (`donate_argnums`).
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.dlpack
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from layerlab import Params, Recipe, Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["JaxTier"]

# Accelerators would else multiply in fewer bits than float32 has. A gradient inherits it.
_dot = partial(jnp.matmul, precision="highest")


def _y_pred(params: Params, x: Any) -> Any:
    h = _dot(x, params.w1)  # (N, H)
    h = jax.nn.relu(h if params.b1 is None else h + params.b1)  # its derivative at 0 is 0
    y_pred = _dot(h, params.w2)  # (N, D_out)
    return y_pred if params.b2 is None else y_pred + params.b2


def _loss(params: Params, x: Any, y: Any) -> Any:
    return jnp.square(_y_pred(params, x) - y).sum()


def _step(params: Params, x: Any, y: Any, lr: float) -> tuple[Any, Params]:
    loss, grads = jax.value_and_grad(_loss)(params, x, y)
    return loss, jax.tree.map(lambda p, g: p - lr * g, params, grads)


# Of the module, not of an instance: two tiers of the same shapes compile once.
_jit_y_pred = jax.jit(_y_pred)
_jit_step = jax.jit(_step, donate_argnums=0)


class JaxTier(Tier):
    """The two-layer network under gradient descent, in JAX; `step` only.

    Taken apart, the step would be other programs than the one that trains.

    On the CPU JAX reads the tensors of the run where they are. It also computes in the background, so that
    there `step` waits for the end: the caller may overwrite the batch at once. On a GPU nobody waits. The
    loss goes back as a tensor, and whatever torch does next on its stream comes after the whole step.

    Attributes:
        accelerators: "gpu" where a CUDA plugin of JAX is installed. Asked of the metadata of installed
            distributions: to ask JAX would start its backends.
    """

    contract_version: ClassVar[int] = 1
    accelerators = frozenset(
        {"cpu", *("gpu" for plugin in entry_points(group="jax_plugins") if "cuda" in plugin.name)}
    )
    precisions = frozenset({"32-true", "64-true"})
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=True)

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        self._lr = float(lr)
        self._dtype = np.float64 if dtype is torch.float64 else np.float32
        self._device = jax.local_devices(backend=device.type)[device.index or 0]
        self._params = self._placed(params)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out)."""
        with self._x64():
            return _returned(_jit_y_pred(self._params, _view(x)), on=x.device)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of gradient descent; the loss before the update, 0-d."""
        with self._x64():
            loss, self._params = _jit_step(self._params, _view(x), _view(y), self._lr)
            return _returned(loss, self._params, on=x.device)

    def params(self) -> Params:
        """A copy of the parameters as they are now."""
        return Params.copy_of(*self._params)

    def state(self) -> dict[str, Any]:
        """The parameters: plain gradient descent remembers nothing else."""
        return {name: torch.from_numpy(p) for name, p in self.params()._asdict().items() if p is not None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self._params = self._placed(Params.copy_of(**state))

    def _placed(self, params: Params) -> Params:
        with self._x64():
            # The copy is JAX's alone: on the CPU `device_put` may go on using the memory that it is given.
            return params.map(lambda p: jax.device_put(np.array(p, dtype=self._dtype), self._device))

    def _x64(self) -> Any:
        """JAX with or without 64 bits, in this thread and context only."""
        return jax.enable_x64(self._dtype is np.float64)


def _view(tensor: Tensor) -> Any:
    """The same memory for JAX; a copy only if rows are not contiguous, or start where XLA cannot read."""
    tensor = tensor.detach().contiguous()
    # jit takes a NumPy array as it is, several times faster than `from_dlpack` makes an array of JAX.
    return tensor.numpy() if tensor.device.type == "cpu" else jax.dlpack.from_dlpack(tensor)


def _returned(result: Any, *others: Any, on: torch.device) -> Tensor:
    """A result of JAX as a tensor in the same memory; on the CPU only once all has been computed."""
    if on.type == "cpu":
        jax.block_until_ready((result, others))  # type: ignore[no-untyped-call]
    return from_dlpack(result)
