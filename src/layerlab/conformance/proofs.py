"""The checks that compare a tier with the oracle at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerlab.conformance import problems
from layerlab.conformance.lockstep import STEPS, Part, prove
from layerlab.conformance.scorecard import Finding, NotApplicable
from layerlab.tier import Tier

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerlab.conformance.problems import Problem
    from layerlab.conformance.subject import Subject
    from layerlab.tier import Precision

# Large problems are there for what a kernel does at its limits, which one step shows.
_LARGE_STEPS = 5


def full_batch(subject: Subject) -> Finding:
    """Every step on the same batch is the oracle's, in four shapes, to the rounding of that step."""
    return _proof(subject, problems.full_batch)


def default_size(subject: Subject) -> Finding:
    """A few steps of a problem of the default size, 320 rows, are the oracle's."""
    return _proof(subject, problems.default_size, steps=_LARGE_STEPS)


def minibatches(subject: Subject) -> Finding:
    """Every step on minibatches is the oracle's, though their sizes change and their memory is used again."""
    return _proof(subject, problems.minibatches)


def single_row(subject: Subject) -> Finding:
    """Every step on a batch of one row is the oracle's."""
    return _proof(subject, problems.single_row)


def smallest(subject: Subject) -> Finding:
    """Every step of one row, one input, one unit and one output is the oracle's."""
    return _proof(subject, problems.smallest)


def dead_units(subject: Subject) -> Finding:
    """Units that are negative for every row, and a network of nothing else, get no gradient."""
    return _proof(subject, problems.dead_units)


def far_target(subject: Subject) -> Finding:
    """Every step is the oracle's when targets are a thousand times as large as predictions."""
    return _proof(subject, problems.far_target)


def zeros_at_relu(subject: Subject) -> Finding:
    """Where a pre-activation is exactly 0 nothing passes back: relu'(0) = 0."""
    return _proof(subject, problems.zeros_at_relu)


def small_gradients(subject: Subject) -> Finding:
    """Every step is the oracle's when gradients are smaller than Adam's epsilon."""
    return _proof(subject, problems.small_gradients)


def strided_inputs(subject: Subject) -> Finding:
    """Every step is the oracle's when inputs and targets are not contiguous."""
    return _proof(subject, problems.strided)


def mixed_precision(subject: Subject) -> Finding:
    """Under bf16 autocast every step is the oracle's, to the rounding of products of 8 bits."""
    if "bf16-mixed" not in subject.tier_class.precisions:
        raise NotApplicable("precisions: no bf16-mixed")
    return _proof(subject, problems.minibatches, precisions=("bf16-mixed",))


def _proof(
    subject: Subject,
    family: Callable[[np.random.Generator, bool], list[Problem]],
    *,
    precisions: tuple[Precision, ...] = ("32-true", "64-true"),
    steps: int = STEPS,
) -> Finding:
    """Proves a tier on a family of problems: with and without biases, in each precision, split and whole."""
    tier_class = subject.tier_class
    todo = [precision for precision in precisions if precision in tier_class.precisions]
    if not todo:
        raise NotApplicable(f"precisions: only {', '.join(sorted(tier_class.precisions))}")
    whole_too = tier_class.splits_step() and tier_class.step is not Tier.step
    worst, where, count = 0.0, "", 0
    for bias in (True, False) if tier_class.supports_bias else (False,):
        # the generator starts anew for every family: a new check leaves the problems of the others alone
        for problem in family(np.random.default_rng(subject.seed), bias):
            for precision in todo:
                for split in (True, False) if whole_too else (None,):
                    case = f"{problem.name}, {'bias' if bias else 'no bias'}, {precision}"
                    case += ", step()" if split is False else ""
                    seen = prove(
                        tier_class,
                        problem,
                        precision=precision,
                        device=subject.device,
                        split=split,
                        steps=steps,
                    )
                    count += 1
                    if seen.part is not None:
                        return _parted(case, seen.worst, seen.part)
                    if seen.worst >= worst:
                        worst, where = seen.worst, case
    said = f"{count} x {steps} steps; nearest its bound: {where}"
    if not tier_class.supports_bias:
        said += "; no biases: declared"
    if tier_class.recipe.optimizer not in ("sgd", "adam"):
        judged = "loss, predictions, gradients" if tier_class.splits_step() else "loss and predictions only"
        said += f"; {judged}: updates by '{tier_class.recipe.optimizer}' are its own"
    return Finding(True, worst, 1.0, said)


def _parted(case: str, worst: float, part: Part) -> Finding:
    return Finding(False, worst, 1.0, f"{case}: {part}", {"case": case, **vars(part)})
