"""The oracle's way, by which a round of the bench is audited."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from layerlab.benchmarking import audit
from layerlab.benchmarking.audit import _astray, audit_steps, audit_way
from layerlab.benchmarking.problem import TimedProblem, most_steps, rate
from layerlab.benchmarking.seeds import seed_of
from layerlab.benchmarking.turns import BareLoop
from layerlab.benchmarking.walk import InFull, InSpan, Place, Update, pre_activation
from layerlab.benchmarking.way import GROWTH, Fork, forks
from layerlab.reference import hidden, initial_params
from layerlab.rounding import Roundoff
from layerlab.tier import Recipe
from layerlab.tiers.numpy import NumpyTier
from layerlab.tiers.tensors import TensorsTier


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_way_is_audited_step_by_step(optimizer: str) -> None:
    """What is the oracle's passes; a loss, a step or a parameter that is not is named."""
    recipe = Recipe(optimizer=optimizer)
    about: Any = {"seed": 0, "precision": "32-true", "recipe": recipe, "bias": False}
    problem = TimedProblem.draw((8, 6, 5, 3), steps=5000, **about)
    way = problem.way((500, 4500))
    losses, end = way.losses.tolist(), way.end
    assert audit_way(way, losses, end, "32-true") is None
    odd = [*losses[:7], losses[6] * 1.01, *losses[8:]]
    assert "timed step 7 gave the loss" in str(audit_way(way, odd, end, "32-true"))
    # of thousands of steps one loss that is given twice shows, wherever it is
    for step in (1, 499, 501, 4999):
        stale = [*losses[:step], losses[step - 1], *losses[step + 1 :]]
        assert "timed step" in str(audit_way(way, stale, end, "32-true")), step
    assert "w2 is off" in str(audit_way(way, losses, end._replace(w2=problem.start.w2), "32-true"))
    assert "w1 is off" in str(audit_way(way, losses, problem.way((500, 4000)).end, "32-true"))
    single = np.float32(losses).astype(float).tolist()
    assert audit_way(way, single, end, "64-true", losses_in="32-true") is None
    assert "gave the loss" in str(audit_way(way, single, end, "64-true"))
    rough = end.map(lambda p: p.astype("f4").astype(float))  # of who computed in single precision
    assert audit_way(way, single, rough, "32-true") is None
    if optimizer == "sgd":  # what Adam divides by is within its error in places, and the bound allows for it
        assert " is off by " in str(audit_way(way, single, rough, "64-true", losses_in="32-true"))
    assert "4999 losses were given" in str(audit_way(way, losses[:-1], end, "32-true"))
    assert audit_way(way, [float("nan")] * 5000, end, "32-true") is not None


class Halves(TensorsTier):
    """The gradient of its first layer has eight bits: a weight moves so little that none is missed."""

    def backward(self, x: Any, y_pred: Any, y: Any) -> Any:
        loss = super().backward(x, y_pred, y)
        self._grads[0] = self._grads[0].bfloat16().float()
        return loss

    def step(self, x: Any, y: Any) -> Any:
        loss = self.backward(x, self.forward(x), y)
        self.update()
        return loss


def test_a_coarse_gradient_shows_where_the_targets_are_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole, and only there: an update of many steps' is less than the rounding of what it is added to.

    The step in parts, of which the gradients are seen, is refused anyway; most tiers that are fast have none.
    """
    monkeypatch.setattr(Halves, "splits_step", classmethod(lambda _: False))

    def said(tier_class: type[TensorsTier], sizes: tuple[int, int, int, int]) -> str | None:
        about: Any = {"seed": 0, "precision": "32-true", "recipe": tier_class.recipe, "bias": False}
        problem = TimedProblem.draw(sizes, steps=700, **about)
        device = torch.device("cpu")
        tier = tier_class(problem.start, lr=problem.lr, device=device, dtype=torch.float32)
        x, y = (torch.tensor(a) for a in problem.rows[0])
        return audit_steps(tier, tier.step, x, y, "32-true", problem.lr, (0, 1))

    sizes = [(64, 1000, 100, 10), (256, 500, 200, 10), (8, 7, 5, 3), (1, 1, 1, 1), (3, 5, 2, 2)]
    assert [said(TensorsTier, each) for each in sizes] == [None] * len(sizes)
    for each in (sizes[0], (1024, 500, 100, 10)):
        seen = str(said(Halves, each))
        assert seen.startswith("after the timing, as a whole, with far targets, step 3, w1["), seen
    monkeypatch.setattr(audit, "FAR", 1.0)
    assert said(Halves, sizes[0]) is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("place", [None, Place(5, 3)])
def test_steps_in_the_span_of_the_rows_are_those_in_full(bias: bool, place: Place | None) -> None:
    """Losses, slopes and parameters are the same, also where ReLU is taken to be on the other side of 0.

    Sums of a hundred terms at most leave float64 14 digits; what one entry of a gradient changes is in the
    sixth, or before it.
    """
    about: Any = {"precision": "64-true", "recipe": Recipe(), "bias": bias}
    problem = TimedProblem.draw((16, 60, 30, 4), steps=40, seed=1, **about)
    x, y = problem.rows[0]
    walk = Update("sgd", problem.lr).walk(problem.start, x, y, 40)
    assert isinstance(walk, InSpan)
    full = InFull(problem.start, x, y, Update("sgd", problem.lr))
    plain = InFull(problem.start, x, y, Update("sgd", problem.lr))
    for step in range(40):
        there = [place] if place is not None and step == 3 else []
        one, other, without = walk.step(there), full.step(there), plain.step()
        np.testing.assert_allclose(one, other, rtol=1e-12)
        np.testing.assert_allclose(walk.h, full.h, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(walk.back(), full.back(), rtol=1e-9, atol=1e-12)
    assert (abs(other[0] / without[0] - 1) > 1e-6) == (place is not None)
    for mine, expected in zip(walk.params(), full.params(), strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None and expected is not None:
            np.testing.assert_allclose(mine, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
def test_thousands_of_steps_in_the_span_are_those_in_full(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sets of rows, in float64: an audit allows for twenty times the difference, and more.

    The difference is a last bit or two of a loss: of other problems it is a sixteenth at most.
    """
    about: Any = {"precision": "64-true", "recipe": Recipe(), "bias": bias}
    counts = (1000, 4000)
    problem = TimedProblem.draw((16, 60, 30, 4), steps=5000, seed=3, **about)
    way = problem.way(counts)
    monkeypatch.setattr(Update, "walk", lambda self, params, x, y, count: InFull(params, x, y, self))
    full = problem.way(counts)
    u = Roundoff.of("64-true").store
    allowed = u * full.rounding + GROWTH * u * _astray(full, 1) * full.slopes
    assert (np.abs(way.losses - full.losses) <= allowed / 20).all()
    np.testing.assert_allclose(way.slopes, full.slopes, rtol=1e-9)
    assert audit_way(full, way.losses.tolist(), way.end, "64-true") is None


def test_the_shorter_way_is_taken() -> None:
    """Many rows span no less than the inputs, few steps are not worth the products; Adam leaves any span."""
    params = initial_params(4, 3, 2, init="linear", bias=True, seed=0)
    x, y = np.ones((8, 4)), np.ones((8, 2))

    def taken(optimizer: str, rows: int, count: int) -> type:
        return type(Update(optimizer, 0.1).walk(params, x[:rows], y[:rows], count))

    assert taken("sgd", 8, 10_000) is InFull
    assert taken("sgd", 6, 10_000) is InSpan
    assert taken("sgd", 6, 8) is InFull  # 6 * 3 * 8 + 4 * (6 + 6) are as many as 2 * 4 * 3 * 8
    assert taken("sgd", 6, 9) is InSpan
    assert taken("adam", 6, 10_000) is InFull


def test_of_two_right_ways_either_may_be_taken() -> None:
    """Where rounding decides whether ReLU switches a unit off, either way is right, and nothing between."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((64, 1000, 100, 10), steps=307, seed=seed_of(0, 10, "bare"), **about)
    counts = (308,)
    found = problem.forks(counts, "32-true", range(100))
    assert found[0] == Fork(0, Place(62, 55))
    one, other = problem.way(counts), problem.way(counts, found[:1])
    for way in (one, other):
        assert problem.fault(counts, way.losses.tolist(), way.end, "32-true") is None
    assert "w1 is off" in str(audit_way(one, other.losses.tolist(), other.end, "32-true"))
    late = problem.way((307,), found[:1]).end
    assert "w1 is off" in str(problem.fault(counts, other.losses.tolist(), late, "32-true"))


def test_some_units_may_go_the_other_way_in_one_round() -> None:
    """Each is found by how far it ended from where it should; what is wrong with another is still seen."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    counts = (154, 308)
    problem = TimedProblem.draw((64, 1000, 100, 10), steps=461, seed=seed_of(0, 3, "bare"), **about)
    taken = [Fork(410, Place(24, 49)), Fork(431, Place(38, 5)), Fork(0, Place(57, 67))]
    assert set(taken) <= set(problem.forks(counts, "32-true", [5, 49, 67]))
    way, others = problem.way(counts), problem.way(counts, taken)
    losses, end = others.losses.tolist(), others.end
    assert "timed step 14 gave the loss" in str(audit_way(way, losses, end, "32-true"))
    assert "w1 is off" in str(audit_way(way, way.losses.tolist(), end, "32-true"))
    assert problem.fault(counts, losses, end, "32-true") is None
    for unit in (67, 2):
        wrong = end.w1.copy()
        wrong[:, unit] += 0.5 * (problem.start.w1[:, unit] - wrong[:, unit])
        assert problem.fault(counts, losses, end._replace(w1=wrong), "32-true") is not None


@pytest.mark.parametrize(("seed", "step", "place"), [(3206, 58, Place(1, 4)), (4266, 5, Place(3, 1))])
def test_a_switch_may_be_a_step_earlier_or_later(seed: int, step: int, place: Place) -> None:
    """Where a pre-activation is as good as 0: a bound that knew nothing of it would refuse a right one."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem, counts = TimedProblem.draw((8, 6, 5, 3), steps=60, seed=seed, **about), (10, 50)
    way, other = problem.way(counts), problem.way(counts, [Fork(step, place)])
    assert step in way.near[:, 0]
    losses = other.losses.tolist()
    assert audit_way(way, losses, other.end, "32-true") is None
    blind = replace(way, near=way.near[:0])
    assert "gave the loss" in str(audit_way(blind, losses, other.end, "32-true"))
    assert "w1 is off" in str(audit_way(blind, way.losses.tolist(), other.end, "32-true"))


@pytest.mark.parametrize(
    ("seed", "step", "place"), [(7, 57, Place(1, 0)), (327, 249, Place(0, 4)), (260, 105, Place(7, 0))]
)
def test_a_switch_that_leaves_a_step_of_a_row_behind_is_no_fault(seed: int, step: int, place: Place) -> None:
    """The end has no room for it where errors grew before: the way is tried; a step too few is still one."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": False}
    problem = TimedProblem.draw((8, 6, 5, 3), steps=291, seed=5_000_000 + seed, **about)
    counts, fork = (58, 233), Fork(step, place, parts=False)
    way, other = problem.way(counts), problem.way(counts, [fork])
    losses = other.losses.tolist()
    assert fork in problem.forks(counts, "32-true", [place.unit])
    assert "w1 is off" in str(audit_way(way, losses, other.end, "32-true"))
    assert problem.fault(counts, losses, other.end, "32-true") is None
    late = problem.way((58, 232), [fork]).end
    assert "w1 is off" in str(problem.fault(counts, losses, late, "32-true"))


def test_a_place_is_in_doubt_on_either_set_of_rows_and_the_more_the_more_is_rounded() -> None:
    """A row of the timed ones is another than the one before that had its number."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem, counts = TimedProblem.draw((8, 6, 5, 3), steps=20, seed=0, **about), (4, 16)
    oracle = problem.start, list(problem.rows), counts
    of_round: Any = {"optimizer": "sgd", "lr": problem.lr, "units": range(5)}
    everywhere = forks(*oracle, **of_round, roundoff=1.0, roundings=1)
    places = [{f.place for f in everywhere if (f.step < 4) == warming_up} for warming_up in (True, False)]
    assert places[0] == places[1] == {Place(row, unit) for row in range(8) for unit in range(5)}
    few, more = ({f.place for f in forks(*oracle, **of_round, roundoff=1e-3, roundings=n)} for n in (1, 8))
    assert few < more < places[0]


def test_to_get_to_the_other_side_may_take_some_steps() -> None:
    """On new rows a unit may be in doubt by more than a step moves it."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((64, 1000, 100, 10), steps=5920, seed=seed_of(0, 10, "tracked"), **about)
    x = problem.rows[1][0][44].astype(np.float64)

    def came(steps: int, taken: list[Fork]) -> float:
        return pre_activation(problem.way((1184, steps), taken).end, x, 2)

    fork = [Fork(1184, Place(44, 2))]
    assert came(0, []) > came(1, fork) > 0 > came(3, fork) > came(20, fork)
    assert came(20, []) > came(1, []) > came(0, [])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_fork_leads_to_either_side(optimizer: str, bias: bool) -> None:
    """Where the two part, one stays on its side, and the other leads away from it; elsewhere not both."""
    about: Any = {"precision": "32-true", "recipe": Recipe(optimizer=optimizer), "bias": bias}
    seen = [0, 0]
    for seed in range(12):
        problem = TimedProblem.draw((64, 500, 100, 10), steps=60, seed=seed, **about)
        found = problem.forks((60,), "32-true", range(100))
        part = sum(fork.parts for fork in found)
        for fork in found[: part + 2]:
            x = problem.rows[0][0][fork.place.row].astype(np.float64)
            ways = ((fork.step, ()), (fork.step + 1, ()), (fork.step + 1, [fork]))
            ends = [problem.way((steps,), taken).end for steps, taken in ways]
            before, own, other = (pre_activation(end, x, fork.place.unit) for end in ends)
            stays, leaves = (own > 0) == (before > 0), (other - before > 0) != (before > 0)
            assert (stays and leaves) == fork.parts, fork
            seen[fork.parts] += 1
    assert all(seen)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_unit_that_is_as_good_as_switched_makes_no_rate_small(optimizer: str) -> None:
    """The gradient jumps where one is: a rate that took the jump for curvature had nothing move."""
    recipe = Recipe(optimizer=optimizer)
    about: Any = {"precision": "64-true", "recipe": recipe, "bias": True}
    problem = TimedProblem.draw((8, 6, 5, 3), steps=100, seed=0, **about)
    x, y = problem.rows[0]
    h = hidden(problem.start, x)
    for row, unit in np.argwhere(h > 0):
        rates = []
        for beside in (-1e-9, 1e-9):
            b1 = problem.start.b1 - (h[row, unit] - beside) * (np.arange(5) == unit)
            rates.append(rate(problem.start._replace(b1=b1), [(x, y)], recipe, 100))
        assert 1 / 2 < rates[0] / rates[1] < 2, (row, unit)


def test_nothing_converges_in_a_round() -> None:
    """The last step still brings something, for whatever sizes and however many steps."""
    for sizes in ((64, 20, 10, 4), (3, 5, 2, 2), (1, 4, 7, 2), (200, 3, 4, 1)):
        for steps in (25, most_steps(sizes, "32-true")):
            about: Any = {"seed": 1, "precision": "32-true", "recipe": Recipe(), "bias": True}
            losses = TimedProblem.draw(sizes, steps=steps, **about).way((steps,)).losses
            brings = -np.diff(losses)
            assert 0.02 * brings[0] < brings[-1] < brings[0]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_converges_on_the_timed_rows_either(seed: int) -> None:
    """A slope may grow on the way, where it leads off a ridge, as much as errors may."""
    about: Any = {"seed": seed, "precision": "32-true", "recipe": Recipe(), "bias": True}
    for sizes in ((64, 20, 10, 4), (3, 5, 2, 2), (1, 4, 7, 2), (200, 3, 4, 1)):
        for steps in (25, most_steps(sizes, "32-true")):
            few = steps // 5
            way = TimedProblem.draw(sizes, steps=steps, **about).way((few, steps - few))
            for losses in (way.losses[:few], way.losses[few:]):
                brings = -np.diff(losses)
                assert 0.02 * brings[0] < brings[-1] < GROWTH * brings[0], (sizes, steps)


# Of the few rows of a tiny network some have more than ten times the curvature of others.
_UNLIKE = [
    ((1, 1, 1, 1), (58, 233), 44),
    ((1, 5, 3, 2), (58, 233), 145),
    ((1, 5, 3, 2), (4, 20), 1270),
    ((2, 3, 2, 1), (4, 20), 4),
]


@pytest.mark.parametrize(("sizes", "counts", "seed"), _UNLIKE)
def test_the_rate_is_that_of_the_steeper_rows(
    sizes: tuple[int, int, int, int], counts: tuple[int, int], seed: int
) -> None:
    """With that of the first the others converge within the clock, or diverge: an honest tier was refused."""
    recipe = Recipe()
    about: Any = {"precision": "32-true", "recipe": recipe, "bias": False}
    problem = TimedProblem.draw(sizes, steps=sum(counts), seed=seed, **about)
    own = [rate(problem.start, [rows], recipe, sum(counts)) for rows in problem.rows]
    assert problem.lr == min(own) < own[0] / 2
    device = torch.device("cpu")
    tier = NumpyTier(problem.start, lr=problem.lr, device=device, dtype=torch.float32)
    loop = BareLoop(tier, problem, device)
    loop.run(counts[0])
    loop.begin()
    loop.run(counts[1])
    loop.finish()
    assert problem.fault(counts, loop.losses, loop.end, "32-true") is None
    last = problem.way(counts).losses
    assert 0.02 * last[counts[0]] < last[-1] < last[counts[0]]
