"""What a peer is given, and what it gives back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from layerlab.tier import Params
from layerlab.tiers.custom_module import DoubleLayerNet

if TYPE_CHECKING:
    from layerlab.tier import Array, Precision

# Before the timed steps the fourth part of them is made, as with the tiers: a process that has waited for its
# turn is slow at first.
_WARM_UP = 4


@dataclass
class Job:
    """A training, and the clock over it.

    The clock runs from the beginning of the first step after the warm-up to the beginning of the last step:
    whole steps with all that comes between two of them, and nothing of what is set up or closed down once.

    Attributes:
        start: First parameters, in the dtype of the run.
        x: Inputs, shape (N, D_in).
        y: Targets, shape (N, D_out).
        lr: Learning rate.
        timed: How many steps the clock sees.
        precision: "32-true" or "64-true".
        device: "cpu" or "cuda".
        folder: An empty folder at first; the same one for all jobs of a process.
    """

    start: Params
    x: Array
    y: Array
    lr: float
    timed: int
    precision: Precision
    device: str
    folder: Path
    _begun: int = field(default=0, init=False)
    _times: list[float] = field(default_factory=list, init=False)

    @property
    def steps(self) -> int:
        """How many steps are to be made."""
        return self._warm_up + self.timed + 1

    @property
    def network(self) -> DoubleLayerNet:
        """The module that the tier `custom-module` trains, with the first parameters."""
        (d_in, hidden), d_out = self.start.w1.shape, self.start.w2.shape[1]
        network = DoubleLayerNet(d_in, hidden, d_out).to(torch.as_tensor(self.x).dtype)
        assert self.start.b1 is not None
        assert self.start.b2 is not None
        first = {
            "linear1.weight": self.start.w1.T,
            "linear1.bias": self.start.b1,
            "linear2.weight": self.start.w2.T,
            "linear2.bias": self.start.b2,
        }
        network.load_state_dict({name: torch.tensor(value) for name, value in first.items()})
        return network

    def step_begins(self) -> None:
        """To be called when a step begins; only twice in a job does it look at the clock."""
        if self._begun in (self._warm_up, self.steps - 1):
            if self.device == "cuda":
                torch.cuda.synchronize()
            self._times.append(time.perf_counter())
        self._begun += 1

    @property
    def _warm_up(self) -> int:
        return max(1, self.timed // _WARM_UP)

    @property
    def begun(self) -> int:
        """How many steps began."""
        return self._begun

    @property
    def seconds(self) -> float:
        """Seconds a step."""
        began, ended = self._times
        return (ended - began) / self.timed


@dataclass(frozen=True)
class Made:
    """What a peer made of a job.

    Attributes:
        losses: The loss of every step, from where the peer keeps it for its user.
        end: The parameters after the last step.
    """

    losses: list[float]
    end: Params

    @classmethod
    def of(cls, losses: list[float], network: DoubleLayerNet) -> Made:
        """The same, of a module that was trained."""
        one, two = network.linear1, network.linear2
        tensors = (one.weight.T, two.weight.T, one.bias, two.bias)
        return cls(losses, Params.copy_of(*(tensor.detach().cpu() for tensor in tensors)))
