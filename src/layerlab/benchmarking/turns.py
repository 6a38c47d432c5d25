"""A tier's bare loop, and a training whose blocks take turns with one.

A machine that is shared is slower in one second than in the next, and by more than a framework costs: a loop
and a training that were timed one after the other say little about each other. Where they take turns block by
block, both are of the same moments.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from layerlab.benchmarking.problem import TimedProblem
    from layerlab.tier import Params, Tier
    from layerlab.tracking import Record


class BareLoop:
    """The tier's own Python loop, which reads the loss of every step.

    Args:
        tier: The tier, at the start of the problem.
        problem: What it is timed on.
        device: Where its rows go.

    Attributes:
        batch: Inputs and targets, on the device.
        losses: Of all steps so far.
        end: The parameters after the last step.
    """

    end: Params

    def __init__(self, tier: Tier, problem: TimedProblem, device: torch.device) -> None:
        self.tier, self.problem = tier, problem
        x, y = (torch.tensor(a, device=device) for a in problem.rows[0])
        self.batch = x, y
        self.losses: list[float] = []

    def run(self, steps: int) -> None:
        """Makes so many steps."""
        step, (x, y), losses = self.tier.step, self.batch, self.losses
        for _ in range(steps):
            losses.append(float(step(x, y)))

    def turn(self) -> None:
        """What comes just before the clock starts: other rows into the same memory."""
        self.tier.params()  # as at the end, where the memory for it should not be new
        overwrite(self.batch, self.problem)

    def finish(self) -> None:
        """Reads the parameters: a tier pays for what it put off."""
        self.end = self.tier.params()


class Turns:
    """A sink that keeps the losses of a training, hands them on to its record, and looks at the clock.

    The clock runs from the end of the block that ends the first part to that of the last block. Whenever a
    block is over it stands still, and the loop beside makes as many steps on a clock of its own. The block's
    losses were read when a sink gets them: nothing runs on the device.

    Args:
        record: Of the training; None: nothing is recorded.
        counts: About how many steps the first part has, and how many there are in all.
        beside: The loop beside.
        alone: What the loop beside has its turns in: nobody else may be at work in them.
        synchronise: Waits until the device has done what it was given.

    Attributes:
        turn: Called just before the clock starts.
        finish: The parameters of the training, called after its last step.
        end: These parameters.
        warm: Steps of the first part.
        losses: Of all steps so far.
        seconds: What the steps after the first part took.
        beside_seconds: What they took the loop beside.
    """

    turn: Callable[[], None]
    finish: Callable[[], Params]
    end: Params

    def __init__(
        self,
        record: Record | None,
        counts: tuple[int, int],
        beside: BareLoop,
        alone: Callable[[], AbstractContextManager[None]],
        synchronise: Callable[[], None],
    ) -> None:
        self._record, (self._few, self._steps) = record, counts
        self._beside, self._alone, self._synchronise = beside, alone, synchronise
        self.losses: list[float] = []
        self.warm = 0
        self.seconds = self.beside_seconds = self._began = 0.0

    def log_losses(self, first_step: int, losses: Any, began: float, ended: float) -> None:
        """A block is over."""
        if self._record is not None:
            self._record.log_losses(first_step, losses, began, ended)
        self.losses += losses.tolist()
        if self.warm:
            self._swap(len(losses), last=len(self.losses) == self._steps)
        elif len(self.losses) >= self._few:
            self.warm = len(self.losses)
            self._beside.run(self.warm)
            self._beside.turn()
            self.turn()
            self._synchronise()
        self._began = time.perf_counter()

    def _swap(self, steps: int, *, last: bool) -> None:
        if last:
            self.end = self.finish()
            self._synchronise()
        with self._alone():  # until it is quiet it is the training's time
            began = time.perf_counter()
            self.seconds += began - self._began
            self._beside.run(steps)
            if last:
                self._beside.finish()
            self._synchronise()
            self.beside_seconds += time.perf_counter() - began

    def log_metrics(self, step: int, metrics: Any) -> None:
        """There is no validation."""


def overwrite(batch: tuple[Any, Any], problem: TimedProblem) -> None:
    """Other rows into the same memory."""
    for tensor, array in zip(batch, problem.rows[1], strict=True):
        tensor.copy_(torch.from_numpy(array))
