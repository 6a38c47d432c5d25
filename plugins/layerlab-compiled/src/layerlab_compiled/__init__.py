"""The step by hand, compiled by `torch.compile`: what a compiler makes of lines that say only what is meant.

The lines are those of the built-in tier `tensors`. TorchInductor fuses what lies between the matrix products,
plans the memory, and on the CPU writes C++ for it
(https://docs.pytorch.org/docs/stable/generated/torch.compile.html).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
import warnings
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch

from layerlab import Params, Recipe, Tier, TierError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["CompiledTier"]


def _forward(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations (N, H), their relu (N, H), and predictions (N, D_out)."""
    h = x.mm(w1) if b1 is None else torch.addmm(b1, x, w1)
    h_relu = h.clamp(min=0)
    return h, h_relu, h_relu.mm(w2) if b2 is None else torch.addmm(b2, h_relu, w2)


def _step(
    x: Tensor, y: Tensor, rate: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None
) -> Tensor:
    """One step of gradient descent, in place; the loss before the update, 0-d.

    Args:
        x: Inputs, shape (N, D_in).
        y: Targets, shape (N, D_out).
        rate: Learning rate, 0-d.
        w1: Weights, shape (D_in, H).
        w2: Weights, shape (H, D_out).
        b1: Biases, shape (H,), or None.
        b2: Biases, shape (D_out,), or None.

    Raises:
        TierError: It is run as it stands here.
    """
    # While torch compiles, this is a constant, and nothing of it is in the compiled step. Where torch does
    # not compile, because somebody switched it off or it gave up, it runs these lines without a word.
    if not torch.compiler.is_compiling():
        raise TierError(
            "torch.compile did not compile the step: it is switched off (TORCHDYNAMO_DISABLE, "
            "TORCH_COMPILE_DISABLE, torch.compiler.set_stance), or gave up"
        )
    with torch.no_grad():
        h, h_relu, y_pred = _forward(x, w1, w2, b1, b2)
        diff = y_pred - y  # (N, D_out)
        loss = diff.square().sum()
        grad_y = 2 * diff  # (N, D_out)
        grad_h = grad_y.mm(w2.t()) * (h > 0)  # (N, H)
        w2.sub_(rate * h_relu.t().mm(grad_y))
        w1.sub_(rate * x.t().mm(grad_h))
        if b1 is not None and b2 is not None:
            b1.sub_(rate * grad_h.sum(dim=0))
            b2.sub_(rate * grad_y.sum(dim=0))
        return loss


@functools.cache
def _compiled_step(*case: Any) -> Callable[..., Tensor]:
    """The step for tensors of one layout, dtype and device: compiled when it is first called.

    Torch counts how often it compiled a code object, and at 8 gives up on it. Nor is what it makes of a shape
    the same after others as it is alone: from the second on it compiles for any size. A code object for each
    layout has neither: what is measured does not depend on what ran before it.

    Args:
        *case: What sets this step apart from others; its name in profiles and in torch's logs.
    """
    name = "_".join(("step", *map(str, case)))
    own = FunctionType(_step.__code__.replace(co_name=name), _step.__globals__, name)
    # fullgraph: what cannot be compiled is an error, not a part that runs uncompiled.
    return torch.compile(own, fullgraph=True, dynamic=False)


class CompiledTier(Tier):
    """The two-layer network under gradient descent, compiled; `step` only.

    The first step of every layout of a batch compiles, which takes seconds.

    Raises:
        TierError: There is no compiler for what torch would write.
    """

    contract_version = 1
    precisions = frozenset({"32-true", "64-true"})
    capturable = True
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=True)

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        _need_compiler(device)

        def tensor(array: Any) -> Tensor:
            return torch.tensor(array, device=device, dtype=dtype)

        self._rate = tensor(lr)  # a number would be compiled in, and compiled anew for every other rate
        # Tensors, in the places of the arrays that a `Params` holds.
        self._p: Any = Params(*(None if p is None else tensor(p) for p in params))  # type: ignore[arg-type]
        self._kind = (device, dtype, params.b1 is not None, *self._p.w2.shape)
        self._steps: dict[tuple[int, ...], Callable[..., Tensor]] = {}

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (N, D_out); not compiled, for it is not what is trained."""
        return _forward(x, *self._p)[2]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of gradient descent; the loss before the update, 0-d."""
        layout = (*x.shape, *x.stride(), *y.stride())
        step = self._steps.get(layout)
        if step is None:
            step = self._steps[layout] = _compiled_step(*self._kind, *layout)
            with warnings.catch_warnings():
                # Torch's advice on CUDA, while it compiles. Whether products are TF32 is what a run says, and
                # where warnings are errors it ended the run.
                warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
                return step(x, y, self._rate, *self._p)  # which compiles
        return step(x, y, self._rate, *self._p)

    def params(self) -> Params:
        """A copy of the parameters as they are now."""
        return Params.copy_of(*self._p)

    def state(self) -> dict[str, Any]:
        """The parameters: plain gradient descent remembers nothing else."""
        return {name: p for name, p in self.params()._asdict().items() if p is not None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        for name, value in state.items():
            getattr(self._p, name).copy_(torch.as_tensor(value))


def _cpp_compiler() -> str:
    """What torch will call to compile C++: the same variable and the same defaults as torch's own."""
    return os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))


def _need_compiler(device: torch.device) -> None:
    """Looks for what torch will call; without it torch would end in a traceback of its own, a step later."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise TierError("compiling for CUDA needs Triton, and it is not installed", hint="pip install triton")
    if device.type == "cuda" and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        # what Triton looks for, to build what launches a kernel
        raise TierError(
            "compiling for CUDA needs a C compiler, and there is no gcc or clang on the PATH",
            hint="install one (Debian, Ubuntu: apt install gcc), or name one in the environment variable CC",
        )
    if device.type == "cpu" and shutil.which(_cpp_compiler()) is None:
        raise TierError(
            f"compiling for the CPU needs a C++ compiler, and there is no '{_cpp_compiler()}' on the PATH",
            hint="install one (Debian, Ubuntu: apt install g++), or name one in the environment variable CXX",
        )
