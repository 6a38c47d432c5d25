"""The oracle itself is judged: by finite differences, by torch's Adam, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers import problem
from layerlab.reference import Adam, forward, gradients, initial_params, loss, sgd
from layerlab.tier import Params


def test_a_network_small_enough_to_check_by_hand() -> None:
    """relu(2*3 + 1) * 4 + 5 = 33; against 30 the loss is 9 and the gradients follow by the chain rule."""
    params = Params(*(np.array(a, float) for a in ([[3]], [[4]], [1], [5])))
    x, y = np.array([[2.0]]), np.array([[30.0]])
    assert forward(params, x) == [[33.0]]
    value, grads = gradients(params, x, y)
    assert value == loss(forward(params, x), y) == 9.0
    assert [g.item() for g in grads] == [2 * 3 * 4 * 2, 2 * 3 * 7, 2 * 3 * 4, 2 * 3]


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_the_slopes_of_the_loss(bias: bool) -> None:
    """Central differences of the loss agree with every entry of every gradient."""
    params, x, y = problem(6, 5, 4, 3, bias=bias)
    _, grads = gradients(params, x, y)
    step = 1e-6
    for name in Params._fields:
        p = getattr(params, name)
        if p is None:
            assert getattr(grads, name) is None
            continue
        slopes = np.empty_like(p)
        for index in np.ndindex(p.shape):
            ends = []
            for sign in (1, -1):
                moved = p.copy()
                moved[index] += sign * step
                ends.append(loss(forward(params._replace(**{name: moved}), x), y))
            slopes[index] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(getattr(grads, name), slopes, rtol=1e-5, atol=1e-5, err_msg=name)


def test_relu_has_no_slope_at_zero() -> None:
    """A pre-activation of exactly 0 lets no gradient through."""
    params = Params(np.zeros((2, 3)), np.ones((3, 1)))
    _, grads = gradients(params, np.ones((4, 2)), np.ones((4, 1)))
    assert not grads.w1.any()


def test_adam_is_torchs_adam() -> None:
    """Twenty updates in float64 agree with `torch.optim.Adam` to rounding."""
    params, x, y = problem(6, 5, 4, 3, bias=True)
    tensors = [torch.tensor(p, requires_grad=True) for p in params]
    theirs, ours = torch.optim.Adam(tensors, lr=0.01), Adam(lr=0.01)
    for _ in range(20):
        _, grads = gradients(params, x, y)
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
        params = ours.update(params, grads)
        for tensor, p in zip(tensors, params, strict=True):
            np.testing.assert_allclose(tensor.detach().numpy(), p, rtol=1e-12, atol=1e-14)


def test_gradient_descent_subtracts() -> None:
    """p - lr * g, and what is not there stays so."""
    params, grads = Params(np.ones((1, 1)), np.ones((1, 1))), Params(np.full((1, 1), 2.0), np.ones((1, 1)))
    assert sgd(params, grads, lr=0.25) == Params(np.array([[0.5]]), np.array([[0.75]]), None, None)


def test_first_weights_follow_their_rule() -> None:
    """ "normal" is standard normal with biases 0; "linear" fills ±1/sqrt(fan_in), biases too."""
    normal = initial_params(400, 300, 200, init="normal", bias=True, seed=1)
    assert abs(normal.w1.mean()) < 0.02
    assert abs(normal.w1.std() - 1) < 0.02
    assert not normal.b1.any()
    assert not normal.b2.any()
    linear = initial_params(400, 300, 200, init="linear", bias=True, seed=1)
    for p, fan_in in ((linear.w1, 400), (linear.b1, 400), (linear.w2, 300), (linear.b2, 300)):
        assert 0.95 * fan_in**-0.5 < np.abs(p).max() <= fan_in**-0.5


@pytest.mark.parametrize("init", ["normal", "linear"])
def test_first_weights_depend_on_the_seed_and_not_on_the_bias(init: str) -> None:
    """The weights are the same with and without biases; another seed gives others."""
    with_bias, without, other = (
        initial_params(5, 4, 3, init=init, bias=bias, seed=seed)
        for bias, seed in ((True, 7), (False, 7), (True, 8))
    )
    assert (with_bias.w1 == without.w1).all()
    assert (with_bias.w2 == without.w2).all()
    assert without.b1 is without.b2 is None
    assert (with_bias.w1 != other.w1).all()
