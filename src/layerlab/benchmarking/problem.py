"""The problem that everybody is timed on: drawn from sizes, a seed and a number of steps alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerlab.benchmarking.audit import audit_way
from layerlab.benchmarking.walk import norm
from layerlab.benchmarking.way import Fork, Way, follow, forks
from layerlab.reference import forward, gradients, hidden, initial_params, predictions
from layerlab.rounding import Roundoff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerlab.tier import Array, Params, Precision, Recipe

# Beside what can be learnt there is this much that no network fits: nothing converges to 0.
_NOISE = 0.5
# Rows at which every unit is dead teach nothing; of few rows and units they are drawn at times.
_DRAWS = 50
_FEWEST_STEPS, _MOST_STEPS = 20, 5000
# One in some hundred rounds is led off the oracle's way at all, and hardly ever in several units.
_MOST_FORKS, _MOST_TRIED = 3, 8


def most_steps(sizes: tuple[int, int, int, int], precision: Precision) -> int:
    """How many steps a round may have for each of them to be seen in the losses.

    All of them together bring about a tenth of the loss or more. A loss is rounded by ``u sqrt(terms)`` of
    itself, and there are two in a difference; that is to be at most a quarter of what one step brings.
    """
    n, d_in, hidden, d_out = sizes
    rounding = Roundoff.of(precision).store * math.sqrt(d_in + hidden + n * d_out)
    return max(_FEWEST_STEPS, min(int(0.1 / (8 * rounding)), _MOST_STEPS))


@dataclass(frozen=True)
class TimedProblem:
    """What is trained while the clock runs.

    Attributes:
        start: First parameters, in the dtype of the run.
        rows: Inputs (N, D_in) and targets (N, D_out), twice: for the steps before the clock starts and, since
            what is known beforehand can be worked at beforehand, others for those that are timed.
        lr: Learning rate.
        optimizer: "sgd" or "adam".
        seed: What it is drawn from.
    """

    start: Params
    rows: tuple[tuple[Array, Array], tuple[Array, Array]]
    lr: float
    optimizer: str
    seed: int

    @classmethod
    def draw(
        cls,
        sizes: tuple[int, int, int, int],
        *,
        steps: int,
        seed: int,
        precision: Precision,
        recipe: Recipe,
        bias: bool,
    ) -> TimedProblem:
        """The problem of these sizes (N, D_in, H, D_out), with a rate at which so many steps end half-way."""
        n, d_in, hidden, d_out = sizes
        rng = np.random.default_rng(seed)
        host = np.dtype(np.float64 if precision == "64-true" else np.float32)
        teacher = rng.standard_normal((d_in, d_out)) / math.sqrt(d_in)
        drawn = initial_params(d_in, hidden, d_out, init="linear", bias=bias, seed=seed)

        def rows() -> tuple[Array, Array]:
            for _ in range(_DRAWS):
                x = rng.standard_normal((n, d_in))
                if (forward(drawn, x) != (0 if drawn.b2 is None else drawn.b2)).any():
                    break
            y = x @ teacher + _NOISE * rng.standard_normal((n, d_out))
            return x.astype(host), y.astype(host)

        start = drawn.map(lambda p: p.astype(host))
        both = rows(), rows()
        return cls(start, both, rate(start, both, recipe, steps), recipe.optimizer, seed)

    def way(self, counts: Sequence[int], taken: Sequence[Fork] = ()) -> Way:
        """The oracle's way over so many steps on each of the rows; as many rows as there are counts."""
        return follow(*self._for_oracle(counts), optimizer=self.optimizer, lr=self.lr, taken=taken)

    def forks(
        self, counts: Sequence[int], precision: Precision, units: Sequence[int], *, roundings: int = 1
    ) -> list[Fork]:
        """Where other right ways of hidden units lead off this one, as `way.forks`."""
        u = Roundoff.of(precision).store
        return forks(
            *self._for_oracle(counts),
            optimizer=self.optimizer,
            lr=self.lr,
            roundoff=u,
            roundings=roundings,
            units=units,
        )

    def fault(
        self,
        counts: Sequence[int],
        losses: Sequence[float],
        end: Params,
        precision: Precision,
        losses_in: Precision | None = None,
        *,
        roundings: int = 1,
    ) -> str | None:
        """What shows that the steps of a round were not made, on any right way, or None.

        Where they were not made on the oracle's, the unit that ended furthest from it is let go the other
        way at its forks, one after the other, those that part first, and then the next such unit.

        Args:
            counts: How many steps were made on each of the rows.
            losses: The losses of the round.
            end: The parameters after it.
            precision: The precision of the run.
            losses_in: That of the losses, where they were kept in another one.
            roundings: How often an update rounds a weight.
        """

        def audit(way: Way) -> str | None:
            return audit_way(way, losses, end, precision, losses_in, roundings=roundings)

        way, taken = self.way(counts), list[Fork]()
        fault = audit(way)
        if fault is None or len(losses) != sum(counts) or end.w1.shape != way.end.w1.shape:
            return fault
        for _ in range(_MOST_FORKS):
            off = _off(way, end)
            unit = int(off.argmax())
            tried: list[tuple[float, Fork, Way, str]] = []
            for fork in self.forks(counts, precision, [unit], roundings=roundings)[:_MOST_TRIED]:
                other = self.way(counts, [*taken, fork])
                if (said := audit(other)) is None:
                    return None
                tried.append((float(_off(other, end)[unit]), fork, other, said))
            if not tried:
                return fault
            nearer, fork, way, said = min(tried, key=lambda found: found[0])
            if not nearer < off[unit]:
                return fault
            fault = said
            taken.append(fork)
        return fault

    def _for_oracle(self, counts: Sequence[int]) -> tuple[Params, list[tuple[Array, Array]], Sequence[int]]:
        rows = [(_wide(x), _wide(y)) for x, y in self.rows[: len(counts)]]
        return self.start.map(_wide), rows, counts


def _off(way: Way, end: Params) -> Array:
    """How far the weights of each hidden unit (H,) ended from where they should."""
    off = np.linalg.norm(end.w1.astype(np.float64) - way.end.w1, axis=0)
    return np.where(np.isfinite(off), off, np.inf)


def rate(start: Params, several: Sequence[tuple[Array, Array]], recipe: Recipe, steps: int) -> float:
    """The rate at which ``steps`` steps on any of the rows go no further than halfway.

    Args:
        start: First parameters.
        several: Inputs (N, n_in) and targets (N, n_out), each to be trained on from about there.
        recipe: Of a tier.
        steps: How many steps are made on all of them together.
    """
    params = start.map(_wide)
    found = [_lowest(params, _wide(x), _wide(y), recipe.optimizer) for x, y in several]
    alive = [length for length in found if length is not None]
    return min(alive) / max(steps, _FEWEST_STEPS) if alive else recipe.lr


def _lowest(params: Params, x: Array, y: Array, optimizer: str) -> float | None:
    """How far it is to the lowest point in the direction of the first step, or None: nothing will move.

    Along the gradient that is 1 / curvature, in which gradient descent comes nearer by a factor of e: nothing
    has converged after that, so that the last step still brings something.
    """
    _, grads = gradients(params, x, y)
    direction = grads.map(np.sign) if optimizer == "adam" else grads
    length = norm(direction)
    if not length:  # all units are dead
        return None
    pairs = zip(grads, direction, strict=True)
    slope = sum(float((g * d).sum()) for g, d in pairs if g is not None and d is not None)
    curvature = abs(_curvature(params, direction, x, y))
    # Nor further than the parameters are from 0, where a straight line has no lowest point.
    far = norm(params) / length
    return min(slope / curvature if curvature else far, far)


def _curvature(params: Params, direction: Params, x: Array, y: Array) -> float:
    """The second derivative of the loss along a direction, where no unit is switched.

    Differences of gradients have none where a pre-activation is as good as 0: across the kink they jump.
    """
    h = hidden(params, x)
    active, moving = np.maximum(h, 0), hidden(direction, x) * (h > 0)  # (N, H), and its derivative
    off = predictions(params, h) - y
    first = moving @ params.w2 + active @ direction.w2 + (0.0 if direction.b2 is None else direction.b2)
    second = 2 * (moving @ direction.w2)
    return 2 * float((np.square(first) + off * second).sum())


def _wide(a: Array) -> Array:
    return a.astype(np.float64)
