"""What is checked: a tier's class, and how to make one of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.conformance import problems
from layerlab.conformance.lockstep import Feed
from layerlab.tier import host_copy

if TYPE_CHECKING:
    import torch

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
    """

    name: str
    tier_class: type[Tier]
    device: torch.device
    seed: int = 0

    @property
    def precision(self) -> Precision:
        """The precision of the checks that need but one."""
        precisions: tuple[Precision, ...] = ("32-true", "64-true", "bf16-mixed")
        return next(p for p in precisions if p in self.tier_class.precisions)

    def problem(self) -> Problem:
        """Minibatches of a small problem, with biases where the tier has them."""
        rng = np.random.default_rng(self.seed)
        (problem,) = problems.minibatches(rng, self.tier_class.supports_bias)
        return problem

    def trial(self, *, precision: Precision | None = None) -> Trial:
        """A fresh tier at the start of the small problem."""
        return Trial(self, precision or self.precision)


class Trial:
    """A tier and the batches of the small problem.

    Args:
        subject: What is examined.
        precision: The precision of the run.
    """

    def __init__(self, subject: Subject, precision: Precision) -> None:
        problem = subject.problem()
        self.subject = subject
        self.feed = Feed(problem, precision, subject.device)
        self.lr = problem.learning_rate(subject.tier_class.recipe.optimizer)
        self.tier: Any = self.build(self.feed.params())
        self.steps_done = 0

    def build(self, params: Any) -> Tier:
        """Another tier of the same kind, from given parameters."""
        device, dtype = self.subject.device, self.feed.dtype
        return self.subject.tier_class(params, lr=self.lr, device=device, dtype=dtype)

    def steps(self, count: int) -> list[float]:
        """Trains on the next batches; their losses."""
        losses = []
        for _ in range(count):
            x, y, _, _ = self.feed.batch(self.steps_done)
            losses.append(float(host_copy(self.tier.step(x, y))))
            self.steps_done += 1
        return losses
