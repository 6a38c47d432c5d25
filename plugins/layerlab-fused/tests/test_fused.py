"""The fused step against the contract, and against the float64 oracle, each going its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerlab
from layerlab import Params
from layerlab.reference import gradients, sgd
from layerlab.testing import TierContract
from layerlab_fused import FusedTier

STEPS = 50


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets layerlab find this plugin, whatever else is installed."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")


class TestFused(TierContract):
    """The contract that every tier keeps."""

    tier = "fused"


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


def test_a_run_is_recorded_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`layerlab.run` finds the tier by its name and leaves a checked file."""
    monkeypatch.chdir(tmp_path)
    run = layerlab.run(plugin="fused", data="iris", epochs=3, hidden=8).runs[0]
    assert (run.status, run.error) == ("FINISHED", None)
    assert (tmp_path / run.onnx["path"]).is_file()
