"""What a tier shares with everybody else in the process: generators and switches."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import _tensor_str


def generators() -> dict[str, Any]:
    """The state of every global generator."""
    numpy_state: Any = np.random.get_state()
    states: dict[str, Any] = {
        "torch's generator": torch.get_rng_state().tolist(),
        "NumPy's generator": (numpy_state[1].tolist(), numpy_state[2:]),
        "Python's generator": random.getstate(),
    }
    if _cuda_is_used():
        states["CUDA's generator"] = torch.cuda.get_rng_state().tolist()
    return states


def _cuda_is_used() -> bool:
    """Whether this process has anything on a CUDA device; to ask its generators would be the first thing."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch has no types for it


def switches() -> dict[str, Any]:
    """Every switch that a tier might turn, and forget to turn back."""
    tiny = torch.tensor(1e-310, dtype=torch.float64)
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "torch's threads": torch.get_num_threads(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "float32 precision of products": torch.get_float32_matmul_precision(),
        "flushing of denormal numbers": bool(tiny * 1 == 0),
        "torch's print options": repr(_tensor_str.PRINT_OPTS),
        "NumPy's error state": np.geterr(),
        "NumPy's print options": repr(np.get_printoptions()),
        "the filters of warnings": tuple(warnings.filters),
    }


class Kept:
    """A context that puts back what was changed within it.

    Attributes:
        switches: As they were.
    """

    def __enter__(self) -> Kept:
        self.switches = switches()
        self._random: tuple[Any, ...] = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._cuda = torch.cuda.get_rng_state_all() if _cuda_is_used() else []
        self._print = dict(vars(_tensor_str.PRINT_OPTS)), np.get_printoptions()
        self._filters = list(warnings.filters)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Puts everything back."""
        was = self.switches
        torch.set_default_dtype(was["torch's default dtype"])
        if torch.get_default_device() != was["torch's default device"]:
            torch.set_default_device(was["torch's default device"])
        torch.set_grad_enabled(was["grad mode"])
        torch.set_anomaly_enabled(was["anomaly mode"])
        for kind, enabled in zip(("cpu", "cuda"), was["autocast"], strict=True):
            torch.set_autocast_enabled(kind, enabled)
        if torch.get_num_threads() != was["torch's threads"]:
            torch.set_num_threads(was["torch's threads"])
        torch.use_deterministic_algorithms(was["deterministic mode"])
        torch.set_float32_matmul_precision(was["float32 precision of products"])
        torch.set_flush_denormal(was["flushing of denormal numbers"])
        np.seterr(**was["NumPy's error state"])
        vars(_tensor_str.PRINT_OPTS).update(self._print[0])
        np.set_printoptions(**self._print[1])
        warnings.filters[:] = self._filters  # type: ignore[index]
        torch.set_rng_state(self._random[0])
        np.random.set_state(self._random[1])
        random.setstate(self._random[2])
        torch.cuda.set_rng_state_all(self._cuda)
