"""No speed without proof: what was timed is compared with the oracle, on the very object that was timed.

Two things are looked at. *That the work was done while the clock ran:* the oracle makes the same steps from
the same start on the same rows, and what every single step brought must be what it brings, to half a step
and what a switch brings.
*That it is still the right work:* the object then makes a few more steps on other rows in the same memory,
each compared with the oracle within the bound of that one step, and at last one as a whole, and one in parts,
with targets so far away that an update is large beside the rounding of a weight.

How far two correct trainings may be apart. An error that is there grows with the curvature, and `problem`
chooses a rate at which a round is about one e-folding in the direction of the first step: so it grows no more
than e-fold, and e-fold once more for what follows from it elsewhere. (Where rounding decides whether ReLU
switches a unit at all there are two right ways, and one of them must be taken: see `way.forks`.)

*A loss.* The errors of n roundings of either sign grow as the root of n (Higham and Mary, "A new approach to
probabilistic rounding error analysis", 2019): so do those of a loss and of the predictions in it, twice that.
And it is the loss of other parameters. They are rounded at every step: by ``u`` times the largest of them and
the root of t after t steps where an update is one sum of weight and gradient, and as if there were N times as
many steps where it may be N sums of one row each. (An update that stays the same is rounded in the same way
for some steps, which the growth allowed for covers up to fifty of them; where it does so for longer there is
little gradient.) Errors that have nothing to do with each other have nothing to do with the gradient either,
and what they change the loss by is its norm times one such error, not times the norm of all of them
(Hoeffding, "Probability inequalities for sums of bounded random variables", 1963). The gradients' own
rounding may be the same at every step, for the rows are: by ``u`` times the root of their terms of the way so
far, all of it along the gradient.

*A switch.* Where a pre-activation is as good as 0, by so many roundings of its terms, the unit may be on for
that row in one of the trainings and off in the other. Its weights then differ by ``lr x`` times what comes
back to it, and the loss by what comes back times the longer of the steps that the pre-activation makes in the
two. There are some of that in a round, of either sign.

*The end.* In the worst case a parameter is rounded always to the same side, as where updates are less than it
can tell: after t steps by ``t u |p|``. The gradients' own rounding is a share of the way, ``terms u``.

*Adam* divides by the gradient: where that is within its error of 0 the update may be anything, which is so
for about a share of ``terms u`` of all entries, and in the norm the root of it. And what is wrong with an
entry goes on in what it remembers: a loss may be off by what the worst case of the parameters makes of it.

What cannot be seen: a loss that was guessed to within its rounding is as good as one that was computed. Who
makes fewer and longer steps of gradient descent is seen by where they lead, at the default sizes three as
one in every round, two as one in some; who makes them by a better rule than that, or does it with Adam's,
may not be.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.benchmarking.walk import norm
from layerlab.benchmarking.way import GROWTH
from layerlab.conformance.lockstep import Comparison, Oracle, Step, as_float64, number, take_step
from layerlab.rounding import Roundoff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from layerlab.benchmarking.way import Way
    from layerlab.tier import Array, Params, Precision, Tier

# The optimizers whose steps the oracle can make.
KNOWN = ("sgd", "adam")
STEPS_AFTER = 3
# So many times as large as those that were timed are the targets of a last step. An update is small beside
# the weights where a round has many, and a weight is known to within its rounding: a gradient of half the
# digits would be right. This one is not small.
FAR = 1024.0


def audit_way(
    way: Way,
    losses: Sequence[float],
    end: Params,
    precision: Precision,
    losses_in: Precision | None = None,
    *,
    roundings: int = 1,
) -> str | None:
    """What shows that the steps of a round were not made, or None.

    Args:
        way: The oracle's way from the same start.
        losses: The losses of the round.
        end: The parameters after it.
        precision: The precision of the run.
        losses_in: That of the losses, where they were kept in another one.
        roundings: How often an update rounds a weight.
    """
    if len(losses) != len(way.losses):
        return f"{len(losses)} losses were given for {len(way.losses)} steps"
    seen, expected = np.asarray(losses, np.float64), way.losses
    u = Roundoff.of(precision).store
    one_loss = Roundoff.of(losses_in or precision).store * way.rounding
    astray = GROWTH * u * _astray(way, roundings)
    rounded = u * np.sqrt(roundings * way.near[:, 0] + len(way.start.w1))
    step_of, _, of_loss, _ = way.near[way.near[:, 1] <= GROWTH * rounded].T
    switching = GROWTH * np.bincount(step_of.astype(int), of_loss, minlength=len(seen))
    switched = np.sqrt(np.cumsum([0.0, *np.square(switching)])[:-1])
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(seen - expected) <= one_loss + astray * way.slopes + switched)
    if wrong.any():
        step = int(wrong.argmax())
        return f"timed step {step} gave the loss {seen[step]:.6g}, and it is {expected[step]:.6g}"
    first = 0
    for count in way.counts:
        part = slice(first, first + count)
        brought, brings = -np.diff(seen[part]), -np.diff(expected[part])
        noise = one_loss[part][1:] + one_loss[part][:-1] + switching[part][:-1]
        wrong = np.abs(brought - brings) > np.abs(brings) / 2 + noise
        if wrong.any():
            at = int(wrong.argmax())
            said = f"timed step {first + at} brought the loss down by {brought[at]:.4g}"
            return f"{said}, and it brings {brings[at]:.4g}"
        first += count
    # Where errors have grown before a switch, the other way is tried (`TimedProblem.fault`): with all that
    # may have switched in the bound a whole step that was not made was within it.
    *_, of_params = way.near[way.near[:, 1] <= rounded].T
    wandered = GROWTH * u * norm(way.start) * len(losses) + float(np.linalg.norm(of_params))
    return _audit_end(way, end, wandered, way.terms * u)


def _astray(way: Way, roundings: int) -> Array:
    """How far along the gradient the parameters may be before every step, in units of the roundoff."""
    steps = np.arange(len(way.losses))
    if way.optimizer == "adam":
        return norm(way.start) * steps
    largest = max(float(np.abs(p).max()) for p in way.start if p is not None and p.size)
    return largest * np.sqrt(roundings * steps) + math.sqrt(way.terms) * way.gone


def _audit_end(way: Way, end: Params, wandered: float, share: float) -> str | None:
    went = norm(_minus(way.end, way.start))
    if way.optimizer == "adam" and went:
        share = math.sqrt(share + wandered / went)
    for name, target in way.end._asdict().items():
        if target is None:
            continue
        p = getattr(end, name)
        if p is None or np.shape(p) != target.shape:
            return f"after the timed steps {name} has not its shape"
        off = float(np.linalg.norm(p - target))
        if not off <= wandered + share * went:
            own = float(np.linalg.norm(target - getattr(way.start, name)))
            return (
                f"after {sum(way.counts)} timed steps {name} is off by {off / own if own else math.inf:.2g} "
                "of its way"
            )
    return None


def _minus(a: Params, b: Params) -> Params:
    pairs = zip(a, b, strict=True)
    return type(a)(*(None if p is None or q is None else p - q for p, q in pairs))  # type: ignore[arg-type]


def audit_steps(
    tier: Tier,
    timed: Callable[[Tensor, Tensor], Any],
    x: Tensor,
    y: Tensor,
    precision: Precision,
    lr: float,
    seed: Sequence[int],
) -> str | None:
    """Where a timed object parts from the oracle in further steps, or None.

    What was timed is judged as a whole; a tier that has its parts then makes as many steps in parts, gradient
    by gradient. At last one of each has targets that are far away.

    Args:
        tier: The object.
        timed: Makes a step in the way that was timed, replayed ones too; its loss.
        x: The inputs that it was timed on; they are overwritten.
        y: Its targets; they are overwritten.
        precision: The precision of the run.
        lr: Its learning rate.
        seed: What other rows are drawn from.
    """
    rng = np.random.default_rng(seed)
    # What Adam remembers of thousands of steps is not known here; its way was audited.
    optimizer = tier.recipe.optimizer if tier.recipe.optimizer == "sgd" else "unknown"
    oracle = Oracle(optimizer, lr, Roundoff.of(precision))
    seen = Comparison()
    ways = (False, True) if type(tier).splits_step() else (False,)
    steps = [*((split, 1.0) for split in ways for _ in range(STEPS_AFTER)), *((split, FAR) for split in ways)]
    for count, (split, far) in enumerate(steps):
        x.copy_(_like(x, rng))
        y.copy_(_like(y, rng) * far)
        before = as_float64(tier.params())
        step = take_step(tier, x, y, split=True) if split else Step(number(timed(x, y)))
        exact = (tensor.detach().cpu().numpy().astype(np.float64) for tensor in (x, y))
        oracle.judge(seen, count, step, before, as_float64(tier.params()), *exact)
        if not seen.end_step():
            how = f"{'in parts' if split else 'as a whole'}{', with far targets' if far > 1 else ''}"
            return f"after the timing, {how}, {seen.part}"
    return None


def _like(tensor: Tensor, rng: np.random.Generator) -> Any:
    import torch

    return torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).to(tensor.dtype)
