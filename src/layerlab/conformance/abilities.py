"""The checks of what a tier says it can do: run somewhere, not wait, learn, be exported."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlab.conformance.contract import everywhere
from layerlab.conformance.lockstep import prove
from layerlab.conformance.scorecard import Finding, NotApplicable, as_finding
from layerlab.errors import ModelError
from layerlab.export import export
from layerlab.modelfile import ModelFile
from layerlab.reference import initial_params
from layerlab.replay import nothing_waits
from layerlab.rounding import Roundoff, bound_forward
from layerlab.tier import host_copy

if TYPE_CHECKING:
    from layerlab.conformance.subject import Subject

# Steps of training before an export.
_SEVERAL = 5
# The default problem of `layerlab run`: N, D_in, H, D_out.
_DEFAULT = (64, 1000, 100, 10)
_LEARNING_STEPS = 50


def runs_on_the_cpu(subject: Subject) -> Finding:
    """A tier that declares the CPU makes the oracle's steps there."""
    if "cpu" not in subject.tier_class.accelerators:
        raise NotApplicable("accelerators: no cpu")
    return _proof_on(subject, torch.device("cpu"))


def runs_on_the_gpu(subject: Subject) -> Finding:
    """A tier that declares GPUs makes the oracle's steps on one."""
    if "gpu" not in subject.tier_class.accelerators:
        raise NotApplicable("accelerators: no gpu")
    device = gpu()
    if device is None:
        raise NotApplicable("accelerators: gpu declared; there is none on this machine to look on")
    return _proof_on(subject, device)


def step_does_not_wait(subject: Subject) -> Finding:
    """On CUDA nothing in `step` waits for the device."""
    if "gpu" not in subject.tier_class.accelerators:
        raise NotApplicable("accelerators: no gpu")
    if not torch.cuda.is_available():
        raise NotApplicable("accelerators: gpu declared; no CUDA device on this machine to look on")
    trial = replace(subject, device=torch.device("cuda")).trial()
    trial.steps(3)  # what is made or compiled once may wait
    x, y, _, _ = trial.feed.batch(3)
    faults = []
    try:
        with nothing_waits():
            trial.tier.step(x, y)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        faults.append(f"step() waits for the device: {error}")
    return as_finding(faults, "one step after 3")


@everywhere
def replays_agree(subject: Subject) -> Finding:
    """On CUDA, steps that are captured in a graph and replayed from it are the oracle's."""
    if "gpu" not in subject.tier_class.accelerators:
        raise NotApplicable("accelerators: no gpu")
    if not subject.tier_class.says_capturable():
        raise NotApplicable("capturable: False")
    optimizer = subject.tier_class.recipe.optimizer
    if optimizer not in ("sgd", "adam"):
        return Finding(False, detail=f"nothing would show that an update by '{optimizer}' is made anew")
    if not torch.cuda.is_available():
        raise NotApplicable("capturable: True; no CUDA device on this machine to look on")
    return _proof_on(subject, torch.device("cuda"), replayed=True)


def learns(subject: Subject) -> Finding:
    """Under its own recipe the tier learns the default problem: the loss falls, and all stays finite."""
    recipe = subject.tier_class.recipe
    rng = np.random.default_rng(subject.seed)
    n, d_in, hidden, d_out = _DEFAULT
    bias = recipe.bias and subject.tier_class.supports_bias
    params = initial_params(d_in, hidden, d_out, init=recipe.init, bias=bias, seed=subject.seed)
    trial = subject.trial()
    x, y = (
        torch.as_tensor(rng.standard_normal(shape), dtype=trial.feed.dtype, device=subject.device)
        for shape in ((n, d_in), (n, d_out))
    )
    tier = subject.tier_class(
        params.map(lambda p: p.astype(trial.feed.host)),
        lr=recipe.lr,
        device=subject.device,
        dtype=trial.feed.dtype,
    )
    losses = [float(tier.step(x, y)) for _ in range(_LEARNING_STEPS)]
    finite = bool(np.isfinite(losses).all()) and all(
        np.isfinite(p).all() for p in (p for p in tier.params() if p is not None)
    )
    share = losses[-1] / losses[0] if losses[0] else 1.0
    said = (
        f"{recipe.optimizer} {recipe.lr:g}, {_LEARNING_STEPS} steps: loss {losses[0]:.4g} to {losses[-1]:.4g}"
    )
    return Finding(finite and share < 1, share, 1.0, said if finite else f"{said}: not finite")


def export_agrees(subject: Subject) -> Finding:
    """The ONNX file of the trained tier computes what its `forward` does, and what the oracle does."""
    trial = subject.trial()
    trial.steps(_SEVERAL)
    tier, params = trial.tier, trial.tier.params()
    _, _, rows, _ = trial.feed.batch(0)
    rows = rows.astype(trial.feed.host)

    def predict(x: Any) -> Any:
        return host_copy(tier.forward(torch.as_tensor(x, dtype=trial.feed.dtype, device=subject.device)))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tier.onnx"
        features = tuple(f"x{i}" for i in range(rows.shape[1]))
        try:
            export(params, None, path=path, predict=predict, rows=rows, features=features, metadata={})
        except ModelError as error:
            return Finding(False, detail=str(error))
        answered = ModelFile(path).run(rows)
    exact = params.map(np.float64)
    _, _, y_pred, bound = bound_forward(exact, rows.astype(np.float64), Roundoff.of(subject.precision))
    share = float((np.abs(answered - y_pred) / bound).max())
    return Finding(share <= 1, share, 1.0, "the gate's tolerance for forward(), rounding for the oracle")


def _proof_on(subject: Subject, device: torch.device, *, replayed: bool = False) -> Finding:
    proof = prove(
        subject.tier_class,
        subject.problem(),
        precision=subject.precision,
        device=device,
        replayed=replayed,
    )
    if proof.part is not None:
        return Finding(False, proof.worst, 1.0, f"{device}: {proof.part}", vars(proof.part))
    return Finding(True, proof.worst, 1.0, str(device))


def gpu() -> torch.device | None:
    """The GPU of this machine, if it has one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else None
