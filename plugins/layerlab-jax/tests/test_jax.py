"""The tier in JAX against the contract, and what is particular about JAX: memory, threads, compilation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import layerlab
import layerlab_jax
from layerlab import Params
from layerlab.reference import forward, gradients, sgd
from layerlab.testing import TierContract
from layerlab_jax import JaxTier

DTYPES = [torch.float32, torch.float64]
CPU = torch.device("cpu")
# XLA reads memory in place that starts at a multiple of this many bytes.
ALIGNMENT = 64


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets layerlab find this plugin, whatever else is installed."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-jax")


class TestJax(TierContract):
    """The contract that every tier keeps."""

    tier = "jax"


def make(params: Params, lr: float = 1e-3, dtype: torch.dtype = torch.float64) -> JaxTier:
    host = np.float64 if dtype is torch.float64 else np.float32
    return JaxTier(params.map(lambda p: p.astype(host)), lr=lr, device=CPU, dtype=dtype)


def problem(n: int, d_in: int, hidden: int, d_out: int) -> tuple[Params, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((d_in, hidden)), rng.standard_normal((hidden, d_out))
    params = Params(w1, w2, rng.standard_normal(hidden), rng.standard_normal(d_out))
    return (
        params,
        torch.from_numpy(rng.standard_normal((n, d_in))),
        torch.from_numpy(rng.standard_normal((n, d_out))),
    )


def after_a_step(params: Params, x: torch.Tensor, y: torch.Tensor, lr: float) -> tuple[float, Params]:
    loss, grads = gradients(params, x.numpy(), y.numpy())
    return loss, sgd(params, grads, lr=lr)


def assert_close(actual: Params, expected: Params) -> None:
    for name, p, q in zip(Params._fields, actual, expected, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("enabled", [True, False])
def test_float64_is_computed_whatever_jax_is_set_to_and_the_setting_stays(enabled: bool) -> None:
    """Both dtypes stay what they are under both settings, which are read after each call."""
    params, x, y = problem(8, 6, 5, 3)
    before = dict(jax.config.values)
    with jax.enable_x64(enabled):
        for dtype in DTYPES:
            tier = make(params, dtype=dtype)
            loss = tier.step(x.to(dtype), y.to(dtype))
            assert (loss.dtype, loss.shape, tier.forward(x.to(dtype)).dtype) == (dtype, (), dtype)
            assert {torch.from_numpy(p).dtype for p in tier.params()} == {dtype}
            assert jax.config.jax_enable_x64 == enabled
            if dtype is torch.float64:
                expected, after = after_a_step(params, x, y, 1e-3)
                assert float(loss) == pytest.approx(expected, rel=1e-12)
                assert_close(tier.params(), after)
    assert dict(jax.config.values) == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_aligned_tensor_is_read_in_place(dtype: torch.dtype) -> None:
    """What JAX makes of the view that the tier hands it lies where the tensor lies."""
    memory = torch.zeros(6 * 4 + ALIGNMENT, dtype=dtype)
    skipped = -memory.data_ptr() % ALIGNMENT // memory.itemsize
    x = memory[skipped : skipped + 24].view(6, 4).requires_grad_()
    view = layerlab_jax._view(x)
    assert view.ctypes.data == x.data_ptr()
    with jax.enable_x64(dtype is torch.float64):
        # as jit does with its arguments
        assert jax.device_put(view).unsafe_buffer_pointer() == x.data_ptr()


def strided(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values in memory of all sorts."""
    wide = torch.zeros(len(x), 2 * x.shape[1], dtype=x.dtype)
    wide[:, ::2] = x
    memory = torch.zeros(x.numel() + 1, dtype=x.dtype)
    memory[1:] = x.flatten()
    with torch.inference_mode():
        inference = x.clone()
    return {
        "every other column": wide[:, ::2],
        "transposed": x.t().contiguous().t(),
        "not aligned": memory[1:].view_as(x),
        "with a gradient": x.clone().requires_grad_(),
        "with a graph": x.clone().requires_grad_() * 1,
        "inference": inference,
        "expanded": x[:1].expand(len(x), -1),
        "one row": x[:1],
        "no row": x[:0],
    }


@pytest.mark.parametrize("kind", list(strided(torch.ones(1, 1))))
def test_tensors_of_all_sorts(kind: str) -> None:
    """Strides, gradients and alignment change nothing, and nothing is written to."""
    params, x, y = problem(8, 6, 5, 3)
    x, y = strided(x)[kind], strided(y)[kind]
    x_before, y_before = x.detach().clone(), y.detach().clone()
    tier = make(params)
    np.testing.assert_allclose(tier.forward(x), forward(params, x_before.numpy()), rtol=1e-12)
    loss, after = after_a_step(params, x_before, y_before, 1e-3)
    assert float(tier.step(x, y)) == pytest.approx(loss, rel=1e-12)
    assert_close(tier.params(), after)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


@pytest.mark.parametrize("skipped", [0, 1], ids=["aligned", "not-aligned"])
def test_a_batch_may_be_overwritten_as_soon_as_step_returns(skipped: int) -> None:
    """A step long enough to be still under way, had nobody waited: neither loss nor parameters see it."""
    params, x, y = problem(4096, 256, 128, 64)
    lr = 1e-9
    memory = torch.zeros(x.numel() + skipped, dtype=x.dtype)
    batch, targets = memory[skipped:].view_as(x), y.clone()
    tier = make(params, lr)
    for _ in range(3):  # the first one compiles
        batch.copy_(x)
        targets.copy_(y)
        before = tier.params()
        loss = tier.step(batch, targets)
        batch.fill_(torch.nan)
        targets.fill_(torch.nan)
        expected, after = after_a_step(before, x, y, lr)
        assert float(loss) == pytest.approx(expected, rel=1e-12)
        assert_close(tier.params(), after)


def test_forward_has_read_its_inputs_when_it_returns() -> None:
    """The same for `forward`."""
    params, x, _ = problem(4096, 256, 128, 64)
    tier, batch = make(params), x.clone()
    for _ in range(2):
        batch.copy_(x)
        y_pred = tier.forward(batch)
        batch.fill_(torch.nan)
        np.testing.assert_allclose(y_pred, forward(params, x.numpy()), rtol=1e-10, atol=1e-10)


def test_copies_outlive_the_buffers_that_steps_reuse() -> None:
    """Parameters, states, losses and predictions in hand stay as they were while training goes on."""
    params, x, y = problem(8, 6, 5, 3)
    given = params.map(np.copy)
    tier = JaxTier(given, lr=1e-3, device=CPU, dtype=torch.float64)
    taken, state, y_pred, loss = tier.params(), tier.state(), tier.forward(x), tier.step(x, y)
    seen = float(loss)
    for _ in range(20):
        tier.step(x, y)
        tier.params()  # a view of the buffers, had it not been copied, would keep them from being reused
    assert all((p == q).all() and (p == r).all() for p, q, r in zip(params, given, taken, strict=True))
    assert all((state[name].numpy() == p).all() for name, p in params._asdict().items())
    np.testing.assert_allclose(y_pred, forward(params, x.numpy()), rtol=1e-12)
    assert float(loss) == seen
    assert all(p.flags.writeable for p in taken)
    other = make(params)
    given.w1.fill(np.nan)
    assert float(other.step(x, y)) == seen


def test_a_state_is_saved_without_pickled_code(tmp_path: Path) -> None:
    """Tensors only; a tier of other parameters goes on from the file to the bit."""
    params, x, y = problem(8, 6, 5, 3)
    tier, other = make(params), make(params.map(np.zeros_like))
    tier.step(x, y)
    torch.save(tier.state(), tmp_path / "state.pt")
    other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [float(tier.step(x, y)) for _ in range(5)] == [float(other.step(x, y)) for _ in range(5)]


def test_two_tiers_of_one_shape_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is traced once for each shape and dtype, whatever the rate."""
    traced: list[Any] = []
    loss_of = layerlab_jax._loss

    def counting(params: Params, x: Any, y: Any) -> Any:
        traced.append((x.shape, x.dtype))
        return loss_of(params, x, y)

    monkeypatch.setattr(layerlab_jax, "_loss", counting)
    # A shape of this test's own: what another test has compiled is not traced again.
    params, x, y = problem(7, 11, 13, 2)
    for lr in (1e-3, 1e-4):
        for dtype in DTYPES:
            tier = make(params, lr, dtype)
            for _ in range(3):
                tier.step(x.to(dtype), y.to(dtype))
    assert traced == [((7, 11), np.float32), ((7, 11), np.float64)]


def test_the_rate_is_not_rounded_in_64_bits() -> None:
    """A rate that 32 bits cannot hold moves a bias of 0 by exactly its double."""
    lr = 1 / 3
    tier = make(Params(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1)), lr)
    tier.step(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    b2 = tier.params().b2
    assert b2 is not None
    assert b2[0] == 2 * lr


def test_the_import_starts_no_backend_and_prints_nothing() -> None:
    """What the tier declares is read from metadata: a listing costs no start of JAX."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from layerlab_jax import JaxTier; JaxTier.accelerators"],
        # a backend that there is not: to start it is an error
        env={**os.environ, "JAX_PLATFORMS": "nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_gpu_is_declared_where_jax_may_have_one() -> None:
    """The CPU always; "gpu" follows the plugin, and without the plugin JAX has none."""
    assert "cpu" in JaxTier.accelerators
    if "gpu" not in JaxTier.accelerators:
        with pytest.raises(RuntimeError):
            jax.devices("cuda")


def test_a_run_is_recorded_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`layerlab.run` finds the tier by its name and leaves a checked file."""
    monkeypatch.chdir(tmp_path)
    run = layerlab.run(plugin="jax", data="iris", epochs=3, hidden=8).runs[0]
    assert (run.status, run.error) == ("FINISHED", None)
    assert (tmp_path / run.onnx["path"]).is_file()
