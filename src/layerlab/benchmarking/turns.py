"""A tier's bare loop, and a training that takes turns with one, or with that of another tier too.

A machine that is shared is slower in one moment than in the next, and by more than a framework costs: a loop
and a training that were timed one after the other say little about each other. Where they take turns, every
few steps, both are of the same moments.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import torch

from layerlab.benchmarking.against import named
from layerlab.tier import Params, Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from layerlab.benchmarking.problem import TimedProblem
    from layerlab.tracking import Record

    Batch = tuple[Any, Any]

# About how long a turn is, or one step where that takes longer: long beside what rows and weights take to get
# back to the caches, where they are as small as that. Where they are not, both sides wait for them.
_SECONDS = 0.01


class BareLoop:
    """The tier's own Python loop, which reads the loss of every step.

    Args:
        tier: The tier, at the start of the problem.
        problem: What it is timed on.
        device: Where its rows go.
        name: What it is called where something is wrong with it.

    Attributes:
        batch: Inputs and targets, on the device.
        losses: Of all steps so far.
        end: The parameters after the last step.
        roundings: How often an update rounds a weight.
    """

    end: Params

    def __init__(
        self, tier: Tier, problem: TimedProblem, device: torch.device, name: str = "its loop beside"
    ) -> None:
        self.tier, self.problem, self.name = tier, problem, name
        x, y = (torch.tensor(a, device=device) for a in problem.rows[0])
        self.batch = x, y
        self.losses: list[float] = []
        self.roundings = roundings_of(type(tier), problem)

    def run(self, steps: int) -> None:
        """Makes so many steps."""
        step, (x, y), losses = self.tier.step, self.batch, self.losses
        for _ in range(steps):
            losses.append(float(step(x, y)))

    def made(self, steps: int, *, last: bool = False) -> None:
        """Makes so many steps in a turn, the last ones with what comes after them.

        Raises:
            TierError: The tier raised: it is within a block that this is told, and no step of that block.
        """
        with named(self.name):
            self.run(steps)
            if last:
                self.finish()

    def begin(self) -> None:
        """What comes just before the clock starts: other rows into the same memory."""
        with named(self.name):
            self.tier.params()  # as at the end, where the memory for it should not be new
        overwrite(self.batch, self.problem)

    def finish(self) -> None:
        """Reads the parameters: a tier pays for what it put off."""
        self.end = self.tier.params()

    def seal(self) -> None:
        """Copies what was answered, once the clock stands: a tier may write to what it handed out."""
        self.end, self.losses = Params.copy_of(*self.end), [*self.losses]


def roundings_of(tier_class: type[Tier], problem: TimedProblem) -> int:
    """How often an update of a tier rounds a weight: a step of its own may add the rows to it one by one.

    Asked before the clock starts: what a class says of itself runs code of the tier's.
    """
    own = not tier_class.splits_step() or tier_class.step is not Tier.step
    return len(problem.rows[0][0]) if own else 1


class Turns:
    """A training's batches and its sink: they keep its losses, hand them on, and look at the clock.

    The clock runs from the end of the first part to that of the last block. Every now and then it stands
    still, and each loop beside makes as many steps as the training did since, on a clock of its own. On the
    CPU that is within a block, every `_SECONDS`; on CUDA it is at its end alone: within a block nothing waits
    for the device there, and nothing should.

    Args:
        record: Of the training; None: nothing is recorded.
        few: How many steps the first part has; a block must end with it.
        steps: How many there are in all.
        most: Steps of a turn within a block.
        beside: The loops beside.
        synchronise: Waits until the device has done what it was given.

    Attributes:
        begin: Called just before the clock starts.
        finish: The parameters of the training, called after its last step.
        end: These parameters.
        few: As given.
        losses: Of all steps so far.
        seconds: What the steps after the first part took.
        beside_seconds: What they took each loop beside.
        within: What of these was within the block in hand.
    """

    begin: Callable[[], None]
    finish: Callable[[], Params]
    end: Params

    def __init__(
        self,
        record: Record | None,
        *,
        few: int,
        steps: int,
        most: int,
        beside: Sequence[BareLoop],
        synchronise: Callable[[], None],
    ) -> None:
        self._record, self.few, self._steps = record, few, steps
        self._most, self._beside, self._synchronise = most, beside, synchronise
        self.losses: list[float] = []
        self._made = 0
        self.seconds = self.within = self._began = 0.0
        self.beside_seconds = [0.0 for _ in beside]
        # Whoever comes first has what the training left in the caches: each does in its turn.
        self._order = [*range(len(beside))]

    def batches(self, batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
        """The batches of a block of so many steps; some of them on, the loops beside have their turns."""
        every, before = iter(batches), sum(self.beside_seconds)
        while steps > self._most and len(self.losses) >= self.few:
            yield from itertools.islice(every, self._most)
            steps -= self._most
            self._swap(self._most)
        self._made, self.within = steps, sum(self.beside_seconds) - before
        yield from every

    def log_losses(self, first_step: int, losses: Any, began: float, ended: float) -> None:
        """A block is over; its losses were read: nothing runs on the device."""
        if self._record is not None:
            self._record.log_losses(first_step, losses, began, ended)
        self.losses += losses.tolist()
        if len(self.losses) > self.few:
            self._swap(self._made, last=len(self.losses) == self._steps)
        elif len(self.losses) == self.few:
            for loop in self._beside:
                loop.made(self.few)
            for loop in self._beside:
                loop.begin()
            self.begin()
            self._synchronise()
            self._began = time.perf_counter()

    def _swap(self, steps: int, *, last: bool = False) -> None:
        if last:
            self.end = self.finish()
        self._synchronise()
        began = time.perf_counter()
        self.seconds += began - self._began
        if last:  # as `BareLoop.seal`
            self.end, self.losses = Params.copy_of(*self.end), [*self.losses]
            began = time.perf_counter()
        for number in self._order:
            self._beside[number].made(steps, last=last)
            self._synchronise()
            ended = time.perf_counter()
            self.beside_seconds[number] += ended - began
            if last:
                self._beside[number].seal()
                ended = time.perf_counter()
            began = ended
        self._order.reverse()
        self._began = began

    def beside(self, steps: int) -> tuple[float, float | None]:
        """The seconds of one of so many steps in the tier's own loop, and in another tier's, if any."""
        own, *other = (seconds / steps for seconds in self.beside_seconds)
        return own, other[0] if other else None

    def log_metrics(self, step: int, metrics: Any) -> None:
        """There is no validation."""


def at_once(pace: float) -> int:
    """The steps of a turn on the CPU, for steps that take about so many seconds."""
    return max(1, round(_SECONDS / pace))


def overwrite(batch: tuple[Any, Any], problem: TimedProblem) -> None:
    """Other rows into the same memory."""
    for tensor, array in zip(batch, problem.rows[1], strict=True):
        tensor.copy_(torch.from_numpy(array))
