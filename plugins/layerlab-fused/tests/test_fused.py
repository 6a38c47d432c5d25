"""The fused step against layerlab's float64 oracle, and against the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerlab
from layerlab import Params
from layerlab.reference import forward, gradients, sgd
from layerlab_fused import FusedTier

STEPS = 50
# N, D_in, H, D_out
SHAPES = [(8, 6, 5, 3), (1, 4, 3, 2), (1, 1, 1, 1), (32, 17, 9, 1)]


def problem(n: int, d_in: int, hidden: int, d_out: int, *, bias: bool) -> tuple[Params, Any, Any, float]:
    """Parameters, inputs, targets, and a rate whose first step moves the largest weight by about 1 %."""
    rng = np.random.default_rng(0)
    biases = (rng.standard_normal(hidden), rng.standard_normal(d_out)) if bias else (None, None)
    params = Params(rng.standard_normal((d_in, hidden)), rng.standard_normal((hidden, d_out)), *biases)
    x, y = rng.standard_normal((n, d_in)), rng.standard_normal((n, d_out))
    _, grads = gradients(params, x, y)
    return params, x, y, 0.01 / max(np.abs(g).max() for g in grads if g is not None)


def make(params: Params, lr: float, dtype: torch.dtype = torch.float64) -> FusedTier:
    host = np.float64 if dtype is torch.float64 else np.float32
    return FusedTier(params.map(lambda p: p.astype(host)), lr=lr, device=torch.device("cpu"), dtype=dtype)


def pairs(actual: Params, expected: Params) -> list[tuple[str, Any, Any]]:
    both = zip(Params._fields, actual, expected, strict=True)
    return [(name, p, q) for name, p, q in both if q is not None]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_float64_follows_the_oracle_for_50_steps(bias: bool, shape: tuple[int, ...]) -> None:
    """Loss and parameters agree to 1e-9 at every step, each going its own way from the start."""
    params, x, y, lr = problem(*shape, bias=bias)
    tier = make(params, lr)
    for step in range(STEPS):
        loss = float(tier.step(torch.from_numpy(x), torch.from_numpy(y)))
        expected, grads = gradients(params, x, y)
        params = sgd(params, grads, lr=lr)
        assert loss == pytest.approx(expected, rel=1e-9), step
        for name, p, q in pairs(tier.params(), params):
            assert np.abs(p - q).max() <= 1e-9 * np.abs(q).max(), (step, name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_float32_stays_within_the_rounding_of_one_step(bias: bool, shape: tuple[int, ...]) -> None:
    """Each step is off by no more than its roundings, to first order in the unit roundoff u.

    Before every step the oracle takes the tier's own parameters. What a step computes is sums of products,
    over D_in, H, D_out and N terms in turn, so that its error is at most ``k u S``: k is the number of
    roundings on the longest path, ``D_in + H + D_out + N + 10``, and S the same sums with every factor
    replaced by its absolute value. The loss squares N D_out such terms and adds them up, so that its error is
    at most ``(2 k + N D_out) u`` times the sum of their squares.
    """
    u = float(np.finfo(np.float32).eps) / 2
    params, x, y, lr = problem(*shape, bias=bias)
    tier = make(params, lr, torch.float32)
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    x, y = x32.astype(np.float64), y32.astype(np.float64)
    roundings = sum(shape) + 10
    for step in range(STEPS):
        before = tier.params().map(lambda p: p.astype(np.float64))
        loss = float(tier.step(torch.from_numpy(x32), torch.from_numpy(y32)))
        expected, grads = gradients(before, x, y)
        size = before.map(np.abs)
        # |relu(h)| <= |x| |w1| + |b1|, and |y_pred - y| <= that through |w2| and |b2|, plus |y|
        h = np.abs(x) @ size.w1 + (0 if size.b1 is None else size.b1)
        diff = 2 * (h @ size.w2 + (0 if size.b2 is None else size.b2) + np.abs(y))
        most = (2 * roundings + y.size) * u * np.square(diff / 2).sum()
        assert abs(loss - expected) <= most, (step, "loss")
        back = diff @ size.w2.T
        sums = Params(np.abs(x).T @ back, h.T @ diff, back.sum(axis=0), diff.sum(axis=0))
        for name, p, q in pairs(tier.params(), sgd(before, grads, lr=lr)):
            bound = roundings * u * (np.abs(getattr(before, name)) + lr * getattr(sums, name))
            assert (np.abs(p - q) <= bound).all(), (step, name)


def test_batches_of_different_sizes_in_turn() -> None:
    """Nothing of the last batch is left in the buffers."""
    params, x, y, lr = problem(9, 6, 5, 3, bias=True)
    tier = make(params, lr)
    for rows in (slice(0, 4), slice(4, 9), slice(0, 1), slice(0, 4)):
        _, grads = gradients(params, x[rows], y[rows])
        params = sgd(params, grads, lr=lr)
        tier.step(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
        for name, p, q in pairs(tier.params(), params):
            np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("pre_activation", [0.0, -1.0])
def test_nothing_passes_through_relu_where_it_is_flat(pre_activation: float) -> None:
    """Pre-activations of exactly 0, and dead units, leave both weight matrices as they are, to the bit."""
    params = Params(np.zeros((3, 4)), np.ones((4, 2)), np.full(4, pre_activation), np.zeros(2))
    tier = make(params, 0.1)
    tier.step(torch.ones(5, 3, dtype=torch.float64), torch.ones(5, 2, dtype=torch.float64))
    after = tier.params()
    for name in ("w1", "w2", "b1"):
        assert (getattr(after, name) == getattr(params, name)).all(), name
    assert after.b2 is not None
    assert after.b2.all(), "the last bias has no ReLU behind it"


def test_the_contract() -> None:
    """Copies in and out, inputs untouched, `forward` changes nothing, a state goes on to the bit."""
    params, x, y, lr = problem(8, 6, 5, 3, bias=True)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    given = params.map(np.copy)
    tier = make(given, lr)
    taken, state = tier.params(), tier.state()
    np.testing.assert_allclose(tier.forward(tensors[0]).numpy(), forward(params, x), rtol=1e-12)
    losses = [float(tier.step(*tensors)) for _ in range(5)]
    assert (x == problem(8, 6, 5, 3, bias=True)[1]).all()
    assert (y == problem(8, 6, 5, 3, bias=True)[2]).all()
    assert all((p == q).all() and (p == r).all() for p, q, r in zip(params, given, taken, strict=True))
    other = make(params.map(np.zeros_like), lr)
    other.load_state(state)
    assert [float(other.step(*tensors)) for _ in range(5)] == losses
    assert not FusedTier.splits_step()
    assert FusedTier.resumable()


def test_a_run_is_recorded_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`layerlab.run` finds the tier by its name and leaves a checked file."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")
    monkeypatch.chdir(tmp_path)
    run = layerlab.run(plugin="fused", data="iris", epochs=3, hidden=8).runs[0]
    assert (run.status, run.error) == ("FINISHED", None)
    assert (tmp_path / run.onnx["path"]).is_file()
