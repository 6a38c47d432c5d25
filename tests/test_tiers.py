"""Every built-in tier against the float64 oracle, each going its own way, and as a lesson.

What the conformance kit looks at, it looks at in test_conformance.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers import BUILTINS, problem
from layerlab import registry
from layerlab.reference import Adam, gradients, sgd
from layerlab.replay import nothing_waits
from layerlab.tier import Params, Tier, host_copy

STEPS = 50
# N, D_in, H, D_out
SHAPES = [(8, 6, 5, 3), (1, 4, 3, 2), (1, 1, 1, 1), (32, 17, 9, 1)]


def make(name: str, params: Params, *, lr: float, dtype: torch.dtype = torch.float64) -> Tier:
    tier_class = registry.load(registry.find(name))
    return tier_class(params, lr=lr, device=torch.device("cpu"), dtype=dtype)


def rate(params: Params, x: Any, y: Any) -> float:
    """A rate at which the first update moves the largest weight by about 1 %, so that 50 steps stay tame."""
    _, grads = gradients(params, x, y)
    return 0.01 / max(np.abs(g).max() for g in grads if g is not None)


def present(params: Params) -> dict[str, Any]:
    return {name: p for name, p in params._asdict().items() if p is not None}


def stepwise(tier: Tier, x: Any, y: Any) -> tuple[float, dict[str, Any]]:
    """One step in its three parts: the loss, and the gradients before the update."""
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    loss = tier.backward(x, tier.forward(x), y)
    names = present(tier.params())
    grads = {name: host_copy(g) for name, g in zip(names, tier.gradients(), strict=True)}
    tier.update()
    return float(loss), grads


def close(actual: Any, expected: Any, what: str) -> None:
    """Agreement to 1e-9 of the largest entry: a difference of large numbers has no more digits."""
    scale = max(np.abs(expected).max(), 1e-300)
    worst = np.abs(actual - expected).max() / scale
    assert worst <= 1e-9, f"{what} is off by {worst:.3g} of its largest entry"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", BUILTINS)
def test_float64_follows_the_oracle_for_50_steps(name: str, bias: bool, shape: tuple[int, ...]) -> None:
    """Loss, gradients and parameters agree to 1e-9 at every step, each going its own way from the start."""
    params, x, y = problem(*shape, bias=bias)
    lr = rate(params, x, y)
    tier = make(name, params, lr=lr)
    adam = Adam(lr)
    for step in range(STEPS):
        loss, grads = stepwise(tier, x, y)
        expected_loss, expected = gradients(params, x, y)
        assert loss == pytest.approx(expected_loss, rel=1e-9), step
        for key, grad in present(expected).items():
            close(grads[key], grad, f"step {step}, gradient of {key}")
        params = adam.update(params, expected) if name == "optim" else sgd(params, expected, lr=lr)
        for key, p in present(params).items():
            close(getattr(tier.params(), key), p, f"step {step}, {key}")


@pytest.mark.parametrize("name", BUILTINS)
def test_a_tier_is_a_lesson(name: str) -> None:
    """One file of at most 120 lines, whose first sentence says what is by hand."""
    import inspect

    module = inspect.getmodule(registry.load(registry.find(name)))
    assert len(inspect.getsource(module).splitlines()) <= 120
    assert "by hand" in module.__doc__.partition("\n")[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", BUILTINS[1:])
def test_cuda_follows_the_oracle(name: str) -> None:
    """On CUDA, in float64, 50 steps agree with the oracle to 1e-9, and nothing waits for the device."""
    params, x, y = problem(8, 6, 5, 3, bias=True)
    lr = rate(params, x, y)
    device = torch.device("cuda")
    tier = registry.load(registry.find(name))(params, lr=lr, device=device, dtype=torch.float64)
    tensors = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    adam = Adam(lr)
    for _ in range(STEPS):
        with nothing_waits():
            loss = tier.step(*tensors)
        expected_loss, expected = gradients(params, x, y)
        assert float(loss) == pytest.approx(expected_loss, rel=1e-9)
        params = adam.update(params, expected) if name == "optim" else sgd(params, expected, lr=lr)
    for key, p in present(params).items():
        close(getattr(tier.params(), key), p, key)
