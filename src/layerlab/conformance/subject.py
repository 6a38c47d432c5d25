"""What is checked: a tier's class, and how to make one of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.conformance import problems
from layerlab.conformance.lockstep import Feed, autocast
from layerlab.tier import PRECISIONS, host_copy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor

    from layerlab.conformance.problems import Problem
    from layerlab.tier import Precision, Tier


@dataclass(frozen=True)
class Subject:
    """A tier under examination.

    Attributes:
        name: Its name.
        tier_class: Its class.
        device: Where it is examined.
        seed: What problems are drawn from.
        switches: Those of the process before anything of the tier was run.
        variant: Precision and biases of the checks that look at one at a time; None: the first of `variants`.
    """

    name: str
    tier_class: type[Tier]
    device: torch.device
    seed: int = 0
    switches: Mapping[str, Any] = field(default_factory=dict)
    variant: tuple[Precision, bool] | None = None

    @property
    def precision(self) -> Precision:
        """The precision to look at."""
        return self.variant[0] if self.variant else next(self._pairs())[0]

    @property
    def bias(self) -> bool:
        """Whether to look at it with biases."""
        return self.variant[1] if self.variant else next(self._pairs())[1]

    def variants(self) -> list[Subject]:
        """The same tier in every declared precision, with biases where it has them, and without."""
        return [replace(self, variant=pair) for pair in self._pairs()]

    def _pairs(self) -> Iterator[tuple[Precision, bool]]:
        for precision in PRECISIONS:
            if precision in self.tier_class.precisions:
                if self.tier_class.supports_bias:
                    yield precision, True
                yield precision, False

    def problem(self) -> Problem:
        """Minibatches of a small problem."""
        (problem,) = problems.minibatches(np.random.default_rng(self.seed), self.bias)
        return problem

    def trial(self) -> Trial:
        """A fresh tier at the start of the small problem."""
        return Trial(self)


class Trial:
    """A tier and the batches of the small problem.

    Args:
        subject: What is examined.
    """

    def __init__(self, subject: Subject) -> None:
        problem = subject.problem()
        self.subject = subject
        self.feed = Feed(problem, subject.precision, subject.device)
        self.lr = problem.learning_rate(subject.tier_class.recipe)
        self.tier: Any = self.build(self.feed.params())
        self.steps_done = 0

    def build(self, params: Any) -> Tier:
        """Another tier of the same kind, from given parameters."""
        device, dtype = self.subject.device, self.feed.dtype
        return self.subject.tier_class(params, lr=self.lr, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Any:
        """Predictions, computed as the precision says."""
        with self.computing():
            return host_copy(self.tier.forward(x))

    def computing(self) -> Any:
        """The context in which the tier computes."""
        return autocast(self.subject.precision, self.subject.device)

    def steps(self, count: int) -> list[float]:
        """Trains on the next batches; their losses."""
        losses = []
        for _ in range(count):
            x, y, _, _ = self.feed.batch(self.steps_done)
            with self.computing():
                losses.append(float(host_copy(self.tier.step(x, y))))
            self.steps_done += 1
        return losses
