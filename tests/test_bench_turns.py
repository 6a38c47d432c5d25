"""A training and the loops beside it take turns, each on a clock of its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from layerlab.benchmarking.machine import settings
from layerlab.benchmarking.problem import TimedProblem
from layerlab.benchmarking.report import MODES, Row, Timing
from layerlab.benchmarking.rounds import Asked, Rounds
from layerlab.benchmarking.timed import TimedModule
from layerlab.benchmarking.turns import BareLoop, Turns
from layerlab.benchmarking.worker import Worker
from layerlab.tier import Params, Recipe
from layerlab.training import TierModule


@pytest.mark.parametrize(
    ("beside", "against", "said"),
    [
        ([1.0] * 6, True, "took 0.50 of what the same step took in the bare loop alone"),
        ([1.0] * 5, True, None),
        ([1.0] * 6, False, None),
        ([2.0], False, "took 0.50 of what the same step took in its loop beside"),
        ([1.4] * 6, False, None),
        # in some rounds it leaves it, to be told from nobody
        ([2.0] * 8 + [1.0], False, "; the 95 % interval ends at 0.50"),
        ([2.0] * 18 + [1.0] * 3, False, "; the 95 % interval ends at 0.50"),
        ([2.0] * 5 + [1.0] * 4, False, None),
    ],
)
def test_work_in_the_turns_of_another(*, beside: list[float], against: bool, said: str | None) -> None:
    """Of its loop beside, however few the rounds; for both alike in a third one's, which bare rounds tell."""

    def timing(took: float) -> Timing:
        return Timing.of([took] * len(beside))

    row = Row(
        tier="mine",
        distribution="mine 1",
        timings={"bare": timing(2.0), "tracked": timing(1.0)},
        beside={"tracked": Timing.of(beside)},
        first_step=1.0,
        once=0.0,
        gflops=1.0,
        floor=timing(1.0),
        floor_share=0.5,
        peak_mb=1.0,
        proof="",
        against={"tracked": timing(1.0)} if against else {},
    )
    measured = Rounds.__new__(Rounds)
    measured._asked = Asked([], MODES, len(beside), 0.1, "32-true", "cpu", 0)
    fault = measured._too_fast(row)
    assert (fault is None) == (said is None)
    assert said is None or said in str(fault)


class Clock:
    """Says what time it is, and what happened until then."""

    def __init__(self) -> None:
        self.now, self.did = 0.0, list[str]()

    def takes(self, seconds: float, what: str) -> None:
        self.now += seconds
        self.did.append(what)


class Ticking:
    """A tier whose steps take so long, by such a clock."""

    def __init__(self, clock: Clock, name: str, seconds: float) -> None:
        self.clock, self.name, self.seconds = clock, name, seconds

    def step(self, x: Any, y: Any) -> float:
        self.clock.takes(self.seconds, self.name)
        return 1.0

    def params(self) -> Params:
        self.clock.takes(self.seconds, f"{self.name}'s parameters")
        return Params(np.array(self.name), np.zeros(1))

    @classmethod
    def splits_step(cls) -> bool:
        return False


@pytest.mark.parametrize("most", [2, 14])
def test_a_training_takes_turns_with_loops_beside(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own clock, as many steps, and its parameters; by blocks where nothing may wait in one."""
    clock = Clock()
    monkeypatch.setattr("layerlab.benchmarking.turns.time.perf_counter", lambda: clock.now)
    draw_of = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((3, 2, 2, 1), steps=20, seed=0, **draw_of)
    mine = Ticking(clock, "training", 2.0)
    loops = [
        BareLoop(Ticking(clock, name, seconds), problem, torch.device("cpu"))  # type: ignore[arg-type]  # all that it needs of a tier
        for name, seconds in (("loop", 3.0), ("another", 7.0))
    ]
    turns = Turns(None, few=4, steps=14, most=most, beside=loops, synchronise=lambda: None)
    turns.begin, turns.finish = lambda: None, mine.params
    for block in (4, 7, 3):
        losses = [mine.step(x, y) for x, y in turns.batches([loops[0].batch] * block, block)]
        clock.takes(0.5, "framework")
        turns.log_losses(0, np.array(losses), 0.0, 0.0)
    first = ["training"] * 4 + ["framework"]
    first += ["loop"] * 4 + ["another"] * 4 + ["loop's parameters", "another's parameters"]

    def turns_of(swap: int, steps: int, *between: str, last: bool = False) -> list[str]:
        order = ["loop", "another"] if swap % 2 == 0 else ["another", "loop"]
        ends = [[name] * steps + ([f"{name}'s parameters"] if last else []) for name in order]
        return ["training"] * steps + list(between) + ends[0] + ends[1]

    if most == 14:
        second = turns_of(0, 7, "framework")
        third = turns_of(1, 3, "framework", "training's parameters", last=True)
        assert clock.did == first + second + third
    else:
        second = [*turns_of(0, 2), *turns_of(1, 2), *turns_of(2, 2), *turns_of(3, 1, "framework")]
        third = turns_of(4, 2) + turns_of(5, 1, "framework", "training's parameters", last=True)
        assert clock.did == first + second + third
    assert [len(losses) for losses in (turns.losses, *(loop.losses for loop in loops))] == [14] * 3
    assert turns.seconds == 10 * 2.0 + 2 * 0.5 + 2.0
    assert turns.beside_seconds == [10 * 3.0 + 3.0, 10 * 7.0 + 7.0]
    assert turns.within == (0 if most == 14 else 2 * (3.0 + 7.0))
    assert [end.w1 for end in (turns.end, *(loop.end for loop in loops))] == ["training", "loop", "another"]


@pytest.mark.parametrize(
    ("rests", "sound"),
    [
        ([True, True, True], True),
        ([False, True, True, False, True], True),  # the machine is busy: they rest a little later
        ([False, False, True, True], False),
        ([True, True, False, False], False),
    ],
)
def test_the_bare_loop_is_between_two_halves_of_its_floor(
    monkeypatch: pytest.MonkeyPatch, *, rests: list[bool], sound: bool
) -> None:
    """Other threads are waited for before each, and never between the new rows and the end of the clock.

    Where they do not rest before one half, what the products took beside them would flatter the tier.
    """
    clock, answers = Clock(), iter(rests)
    monkeypatch.setattr("layerlab.benchmarking.worker.time.perf_counter", lambda: clock.now)
    monkeypatch.setattr(
        "layerlab.benchmarking.worker.settle", lambda: clock.takes(5.0, "wait") or next(answers)
    )
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((3, 2, 2, 1), steps=20, seed=0, **about)
    worker = Worker.__new__(Worker)
    worker.device, worker._settings = torch.device("cpu"), settings()
    tier = Ticking(clock, "step", 2.0)
    floor_loop = BareLoop(Ticking(clock, "product", 3.0), problem, worker.device)  # type: ignore[arg-type]
    monkeypatch.setattr(worker, "_draw", lambda steps, seed: problem)
    monkeypatch.setattr(worker, "_loop", lambda problem: BareLoop(tier, problem, worker.device))  # type: ignore[arg-type]
    monkeypatch.setattr(worker, "_products", lambda problem, few: floor_loop.run)
    measured = worker._bare(9, 0)
    first, last = (["wait", *["product"] * (2 + steps)] for steps in (4, 5))
    loop = ["wait", "step", "step", "step's parameters", *["step"] * 9, "step's parameters"]
    assert [
        did for did, after in itertools.pairwise([*clock.did, ""]) if (did, after) != ("wait", "wait")
    ] == [
        *first,
        *loop,
        *last,
    ]
    assert next(answers, None) is None
    assert measured.step == (9 * 2.0 + 2.0) / 9
    assert measured.beside == 3.0
    monkeypatch.setattr(worker, "_audit_loop", lambda *_: None)
    assert (measured.fault() is None) == sound
    assert sound or "its threads do not rest" in str(measured.fault())


def test_blocks_are_as_long_as_without_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loop beside takes within a block is not taken for the pace of the training."""

    def step(self: TierModule, batch: slice, batch_idx: int) -> None:
        self.seconds_per_step = 0.5
        self._sink.within = 40.0  # type: ignore[attr-defined]

    monkeypatch.setattr(TierModule, "training_step", step)
    module = TimedModule.__new__(TimedModule)
    torch.nn.Module.__init__(module)
    module._sink = Turns.__new__(Turns)
    module.training_step(slice(100, 200), 0)
    assert module.seconds_per_step == pytest.approx(0.1)


def test_the_first_part_is_as_long_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that went on would leave the clock few steps, or none: blocks grow fourfold."""
    monkeypatch.setattr(TierModule, "block_end", lambda *_: 100)
    module = TimedModule.__new__(TimedModule)
    torch.nn.Module.__init__(module)
    module._sink = Turns.__new__(Turns)
    module._sink.few = 40
    assert [module.block_end(step) for step in (0, 39, 40, 41)] == [40, 40, 100, 100]
