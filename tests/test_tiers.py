"""Every built-in tier against the float64 oracle, and against the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers import BUILTINS, problem
from layerlab import registry
from layerlab.reference import Adam, forward, gradients, sgd
from layerlab.tier import Params, Tier, host_copy
from rounding import step_bounds

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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", BUILTINS)
def test_float32_stays_within_rounding_for_50_steps(name: str, bias: bool, shape: tuple[int, ...]) -> None:
    """Every step is within the rounding errors of that one step, as `rounding` bounds them.

    Before each step the oracle takes the tier's own parameters, so that nothing accumulates. The update of
    gradient descent adds one product and one sum: u (|p| + 2 lr |g|), and lr times the gradient's own error.
    Adam is given the tier's own gradients: then only its arithmetic is left. After t steps its running means
    carry at most a few t roundings of the gradients that went in, of which none is larger than sqrt(t) times
    the root of the second moment: 8 t sqrt(t) u of the step lr, and u |p| for the sum.
    """
    u = float(np.finfo(np.float32).eps) / 2
    start, x, y = problem(*shape, bias=bias, dtype=np.float32)
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    lr = rate(start, x64, y64)
    tier = make(name, start, lr=lr, dtype=torch.float32)
    adam = Adam(lr)
    for step in range(STEPS):
        before = tier.params().map(lambda p: p.astype(np.float64))
        loss, grads = stepwise(tier, x, y)
        expected_loss, expected = gradients(before, x64, y64)
        loss_bound, bounds = step_bounds(before, x64, y64, u)
        assert abs(loss - expected_loss) <= loss_bound, step
        own = Params(**{key: g.astype(np.float64) for key, g in grads.items()})
        after = adam.update(before, own) if name == "optim" else sgd(before, expected, lr=lr)
        for key, grad in present(expected).items():
            bound = getattr(bounds, key)
            assert (np.abs(grads[key] - grad) <= bound).all(), f"step {step}, gradient of {key}"
            p = np.abs(getattr(before, key))
            if name == "optim":
                allowed = 2 * u * p + 8 * (step + 1) ** 1.5 * u * lr
            else:
                allowed = lr * bound + u * (p + 2 * lr * (np.abs(grad) + bound))
            moved = np.abs(getattr(tier.params(), key) - getattr(after, key))
            assert (moved <= allowed + 2 * u * allowed).all(), f"step {step}, {key}"


def test_the_rounding_bound_would_see_a_thousandth() -> None:
    """The bound of the float32 test is tight: an error of 1/1000 in one gradient is outside of it."""
    u = float(np.finfo(np.float32).eps) / 2
    for shape in SHAPES:
        params, x, y = problem(*shape, bias=True)
        _, grads = gradients(params, x, y)
        _, bounds = step_bounds(params, x, y, u)
        for grad, bound in zip(grads, bounds, strict=True):
            largest = np.unravel_index(np.abs(grad).argmax(), grad.shape)
            assert grad[largest] == 0 or abs(grad[largest]) / 1000 > bound[largest]


@pytest.mark.parametrize("name", BUILTINS)
def test_gradients_change_with_the_batch(name: str) -> None:
    """Batches of different sizes in turn: nothing of the last one is left over."""
    params, x, y = problem(9, 6, 5, 3, bias=True)
    tier = make(name, params, lr=rate(params, x, y))
    for rows in (slice(0, 4), slice(4, 9), slice(0, 1), slice(0, 9)):
        before = tier.params()
        _, grads = stepwise(tier, x[rows], y[rows])
        _, expected = gradients(before, x[rows], y[rows])
        for key, grad in present(expected).items():
            close(grads[key], grad, key)


@pytest.mark.parametrize("name", BUILTINS)
def test_nothing_passes_through_relu_at_zero(name: str) -> None:
    """Where the pre-activation is exactly 0 the first layer gets no gradient, for every tier."""
    params = Params(np.zeros((3, 4)), np.ones((4, 2)), np.zeros(4), np.zeros(2))
    _, grads = stepwise(make(name, params, lr=0.1), np.ones((5, 3)), np.ones((5, 2)))
    assert not grads["w1"].any()
    assert not grads["b1"].any()


@pytest.mark.parametrize("name", BUILTINS)
def test_the_default_step_is_its_three_parts(name: str) -> None:
    """`step` does what `forward`, `backward` and `update` do in a row, to the bit."""
    params, x, y = problem(8, 6, 5, 3, bias=True)
    whole, parts = (make(name, params, lr=1e-3) for _ in range(2))
    for _ in range(3):
        loss, _ = stepwise(parts, x, y)
        assert float(whole.step(torch.from_numpy(x), torch.from_numpy(y))) == loss
    for p, q in zip(whole.params(), parts.params(), strict=True):
        assert (p == q).all()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", BUILTINS)
def test_state_goes_on_to_the_bit(name: str, bias: bool) -> None:
    """A fresh tier that loads a state makes the same steps as the one it came from."""
    params, x, y = problem(8, 6, 5, 3, bias=bias)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    first, second = make(name, params, lr=1e-3), make(name, params.map(np.zeros_like), lr=1e-3)
    for _ in range(3):
        first.step(x, y)
    second.load_state(first.state())
    assert [float(first.step(x, y)) for _ in range(5)] == [float(second.step(x, y)) for _ in range(5)]


@pytest.mark.parametrize("name", BUILTINS)
def test_what_goes_in_and_out_is_copied(name: str) -> None:
    """The caller's parameters, `params()` and `state()` are no windows into the tier."""
    params, x, y = problem(8, 6, 5, 3, bias=True)
    given = params.map(np.copy)
    tier = make(name, given, lr=1e-3)
    taken, state = tier.params(), tier.state()
    tier.step(torch.from_numpy(x), torch.from_numpy(y))
    for p, q, r in zip(params, given, taken, strict=True):
        assert (p == q).all()
        assert (p == r).all()
    other = make(name, params.map(np.zeros_like), lr=1e-3)
    other.load_state(state)
    assert all((p == q).all() for p, q in zip(params, other.params(), strict=True))


@pytest.mark.parametrize("name", BUILTINS)
def test_the_world_is_left_alone(name: str) -> None:
    """Nothing is drawn from global generators, no input is written to, grad mode and dtype stay."""
    params, x, y = problem(8, 6, 5, 3, bias=True)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    copies = [t.clone() for t in tensors]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    tier = make(name, params, lr=1e-3)
    before = forward(tier.params(), x)
    with torch.no_grad():
        np.testing.assert_allclose(host_copy(tier.forward(tensors[0])), before, rtol=1e-12)
    tier.step(*tensors)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies, strict=True))
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


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
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    params, x, y = problem(8, 6, 5, 3, bias=True)
    lr = rate(params, x, y)
    device = torch.device("cuda")
    tier = registry.load(registry.find(name))(params, lr=lr, device=device, dtype=torch.float64)
    tensors = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    adam = Adam(lr)
    for _ in range(STEPS):
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = tier.step(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected_loss, expected = gradients(params, x, y)
        assert float(loss) == pytest.approx(expected_loss, rel=1e-9)
        params = adam.update(params, expected) if name == "optim" else sgd(params, expected, lr=lr)
    for key, p in present(params).items():
        close(getattr(tier.params(), key), p, key)
