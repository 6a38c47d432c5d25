"""One tier in a process of its own, asked by the coordinator: a line of JSON each way."""

from __future__ import annotations

import os
import statistics
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from layerlab import registry
from layerlab.benchmarking.against import Against, named
from layerlab.benchmarking.audit import audit_steps
from layerlab.benchmarking.floor import products
from layerlab.benchmarking.machine import Peak, changed, give_back, keep_modules, machine, settings, settle
from layerlab.benchmarking.problem import TimedProblem, most_steps
from layerlab.benchmarking.processes import serve
from layerlab.benchmarking.proof import proven
from layerlab.benchmarking.seeds import seed_of
from layerlab.benchmarking.sending import audit_record, sending_of
from layerlab.benchmarking.turns import BareLoop, Turns, at_once, overwrite, roundings_of
from layerlab.errors import AcceleratorError, TierError
from layerlab.tracking import Recorder, RunInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerlab.tier import Params, Precision, Tier
    from layerlab.tracking import Record

    # Says what is wrong with what was timed, or None.
    Audit = Callable[[], str | None]
    Sizes = tuple[int, int, int, int]

# The cost of a step is its marginal cost, whatever is timed: what so many more steps take after this part of
# them. A process that has waited for its turn is slow at first, and what happens once is no cost of a step.
_SHORTER = 4


class Measured(NamedTuple):
    """What was timed in one mode.

    Attributes:
        step: Seconds of a step.
        fault: Says what is wrong with it, or None.
        beside: Seconds of a step of what it is compared with: of a training the bare loop that it took turns
            with, of the bare loop the products before it and after it.
        against: Seconds of a step of the other tier whose bare loop a training took turns with too.
        sending: What of the step is the store's.
    """

    step: float
    fault: Audit
    beside: float
    against: float | None = None
    sending: float | None = None


class Worker:
    """A tier, the problem it is timed on, and what it is asked.

    Args:
        name: The tier.
        precision: The precision of the run.
        accelerator: "cpu" or "gpu".
        store: The tracking store of its trainings; whoever asks removes it, for a worker is killed.
        against: Another tier, with whose bare loop its trainings take turns too.
    """

    def __init__(
        self, name: str, precision: Precision, accelerator: str, store: str, against: str | None = None
    ) -> None:
        self._settings = settings()  # before anything of the tier's is imported
        self.row = registry.find(name)
        self.tier_class = registry.load(self.row)
        self._against: Against | None = None
        if against is not None:
            with self._watched(name_beside := f"{against} beside it"):
                row = registry.find(against)
                self._against = Against(row, registry.load(row), name_beside)
        self.precision, self.accelerator = precision, accelerator
        self.device = torch.device("cuda" if accelerator == "gpu" else "cpu")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise AcceleratorError("there is no CUDA device on this machine", hint="--accelerator cpu")
        self.dtype = torch.float64 if precision == "64-true" else torch.float32
        self._store = store
        self._recorder: Recorder | None = None
        self._peak = 0
        self._kept, self._rested = False, True

    def begun(self) -> dict[str, Any]:
        """The machine and the settings, as this process sees them."""
        return machine(self.device, self._settings)

    def prove(self) -> dict[str, Any]:
        """Puts the tier through the part of the conformance suite that says what it computes.

        The other one too: what is compared with something that is not proven is not compared.

        Raises:
            TierError: Nobody but the tier knows what its steps should be.
        """
        proof = proven(self.row, self.tier_class, self.accelerator)
        if proof["ok"] and (other := self._against) is not None:
            with self._watched(other.name):
                others = proven(other.row, other.tier_class, self.accelerator)
            if not others["ok"]:
                return {"ok": False, "said": f"{other.name}: {others['said']}"}
        return proof

    def prepare(self, sizes: list[int], seed: int) -> dict[str, Any]:
        """Finds out how long a step of such a problem takes: the first one, and one of many."""
        self._take(sizes)
        most = most_steps(self._sizes, self.precision)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        problem = self._draw(most, seed)
        loops = list[BareLoop]()
        # What is compiled when the tier is made is compiled as well: what that takes beyond a later time.
        made = self._clock(partial(self._loop, problem))
        again = self._clock(lambda: loops.append(self._loop(problem)))
        (loop,) = loops
        first, second = (self._clock(partial(loop.run, 1)) for _ in range(2))
        first += max(0.0, made - again)
        count, seconds = 1, 0.0
        while seconds < 0.05 and count < 1 << 16:
            count *= 2
            seconds = self._clock(partial(loop.run, count))
        step = seconds / count
        return {"first_step": first, "once": first + second - 2 * step, "step": step, "most_steps": most}

    def round(self, sizes: list[int], asked: list[tuple[str, int, int]], pace: float) -> dict[str, Any]:
        """Measures modes right after one another, each so many steps from a seed, and audits them after that.

        A processor is slower in one minute than in another. Both sides of a ratio should be of the same
        seconds, and an audit takes longer than what it looks at.
        """
        self._take(sizes)
        self._pace = pace  # about how many seconds a step takes
        if not self._kept:
            if {"lightning", "tracked"} & {mode for mode, *_ in asked}:
                import layerlab.training  # noqa: F401 -- what it imports is alive from here on
            keep_modules()
            self._kept = True
        ways = {
            "bare": self._bare,
            "lightning": self._lightning,
            "tracked": self._tracked,
        }
        measured = [(mode, ways[mode](steps, seed)) for mode, steps, seed in asked]
        peak_mb = self._peak / 1e6  # of the bare loop, before its audit
        answers = {mode: {**it._asdict(), "fault": it.fault()} for mode, it in measured}
        return {"peak_mb": peak_mb, "modes": answers}

    def _bare(self, steps: int, seed: int) -> Measured:
        """The tier's own Python loop, which reads the loss of every step, and its parameters at the end.

        With the parameters a tier pays for what it put off: for the others they are one copy of many steps.
        Half of the products that are its floor come before it, and half after it: what grows or falls
        steadily in between does so for both. Nobody waits from the moment when there are other rows to the
        end of the clock: a thread of the tier's could work meanwhile.
        """
        few, half = max(1, steps // _SHORTER), steps // 2
        self._rested = True
        problem = self._draw(few + steps, seed)
        floor = self._products(problem, few)
        floor_seconds = self._floor(floor, few, half)
        give_back()  # the layout that is the slower one here
        peak = Peak(self.device)
        loop = self._loop(problem)
        settle()
        loop.run(few)
        loop.begin()
        fault = changed(self._settings)

        def timed() -> None:
            loop.run(steps)
            loop.finish()

        seconds = self._clock(timed)
        self._peak = peak.grown()
        loop.seal()
        fault = fault or changed(self._settings)
        floor_seconds += self._floor(floor, few, steps - half)
        if not self._rested:
            fault = fault or "its threads do not rest: what the products take beside them is no floor"
        return Measured(
            seconds / steps,
            lambda: fault or self._audit_loop(loop, (few, steps)),
            floor_seconds / steps,
        )

    def _floor(self, floor: Callable[[int], None], few: int, steps: int) -> float:
        """What so many steps' products take, when no other thread looks out for work and few were made."""
        self._rested &= settle() or settle()  # on a busy machine a thread rests later
        floor(few)
        return self._clock(partial(floor, steps))

    def _products(self, problem: TimedProblem, few: int) -> Callable[[int], None]:
        """The five matrix products of a step and nothing else, in the layout that is the faster here."""
        x, y = (torch.tensor(a, device=self.device) for a in problem.rows[0])
        w1, w2 = (torch.tensor(w, device=self.device) for w in (problem.start.w1, problem.start.w2))
        return min(products(x, y, w1, w2), key=lambda loop: self._floor(loop, few, few))

    def _lightning(self, steps: int, seed: int) -> Measured:
        """The same steps under a Lightning Trainer, nothing recorded."""
        turns, audit = self._training(steps, seed, None)
        return Measured(turns.seconds / steps, audit, *turns.beside(steps))

    def _tracked(self, steps: int, seed: int) -> Measured:
        """The same under Lightning, every loss in MLflow, until the last one is there.

        They are sent after the training, and what that takes is added (`sending_of`): in a run they are
        sent while it lasts, and somebody waits for a processor then; here it could be either of those who
        take turns. In a training of many seconds, with a processor to spare, it is at most this.
        """
        if self._recorder is None:
            self._recorder = Recorder()
            self._recorder.open(self._store, "bench")
            self._recorder.opened()
        record = self._recorder.start_run(RunInfo("bench", self.row.name, {}, {}))
        record.started()
        calls = []
        for number in range(4):
            for step in (2 * number, 2 * number + 1):  # two of a metric go the way that many do
                record.log_metrics(step, {"nothing": 0.0})
            began = time.perf_counter()
            with self._recorder.held():
                calls.append(time.perf_counter() - began)
        call = statistics.median(calls[1:])  # what is told of a run when it begins goes with the first
        with self._recorder.held():
            turns, audit = self._training(steps, seed, record)
            ended = time.perf_counter()
        sending = time.perf_counter() - ended
        unsent = record.finish("FINISHED").unsent()
        lost = None if unsent is None else f"the record is not whole: {unsent.reason}"
        own = turns.seconds / steps
        share = sending_of(own, call=call, sending=sending, losses=len(turns.losses))
        return Measured(
            own + share,
            lambda: audit() or lost or audit_record(self._store, record.run_id, turns.losses),
            *turns.beside(steps),
            share,
        )

    def _take(self, sizes: list[int]) -> None:
        n, d_in, hidden, d_out = sizes
        self._sizes: Sizes = n, d_in, hidden, d_out
        # What was compiled for another problem, or in another bench, is no help in the first step.
        folder = f"{self._store.removeprefix('sqlite:///')}-{'x'.join(map(str, sizes))}"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}-inductor"
        os.environ["TRITON_CACHE_DIR"] = f"{folder}-triton"

    def _training(self, steps: int, seed: int, record: Record | None) -> tuple[Turns, Audit]:
        """A training that takes turns with bare loops, and the audit of all of them."""
        from layerlab.benchmarking.timed import TimedModule
        from layerlab.training import TrainingData, make_trainer, quiet_lightning

        few = max(1, steps // _SHORTER)
        beside = [self._loop(self._draw(few + steps, seed_of(seed)))]
        if (other := self._against) is not None:
            with self._watched(other.name):  # its problem is a third one, with the recipe that it has
                drawn = self._draw(few + steps, seed_of(seed, 0), other.tier_class)
                beside.append(BareLoop(self._tier(drawn, other.tier_class), drawn, self.device, other.name))
        problem = self._draw(few + steps, seed)
        roundings = roundings_of(self.tier_class, problem)
        x, y = (a.copy() for a in problem.rows[0])  # they are overwritten
        turns = Turns(
            record,
            few=few,
            steps=few + steps,
            most=at_once(self._pace) if self.device.type == "cpu" else few + steps,
            beside=beside,
            synchronise=self._synchronise,
        )
        module = TimedModule(
            self.tier_class,
            problem.start,
            TrainingData(x, y, x[:0], y[:0]),
            lr=problem.lr,
            batch_size=len(x),
            sink=turns,
        )

        def begin() -> None:
            module.tier.params()  # as in the bare loop
            overwrite((module.batches.x, module.batches.y), problem)

        def finish() -> Params:
            params: Params = module.tier.params()
            return params

        turns.begin, turns.finish = begin, finish
        with quiet_lightning():
            trainer = make_trainer(
                accelerator="cuda" if self.accelerator == "gpu" else "cpu",
                precision=self.precision,
                max_steps=few + steps,
                validate=False,
            )
            trainer.fit(module)
        counts = few, steps
        batch = module.batches.x, module.batches.y
        fault = changed(self._settings)

        def mine() -> str | None:
            said = problem.fault(counts, turns.losses, turns.end, self.precision, roundings=roundings)
            return said or self._audit_steps(module.tier, problem, batch, module.again)

        return turns, partial(self._audit_training, fault, mine, beside, counts)

    def _audit_training(
        self, fault: str | None, mine: Audit, beside: list[BareLoop], counts: tuple[int, int]
    ) -> str | None:
        """What is wrong with a training or with a loop beside it, after what was seen at its end."""
        if fault:
            return fault if self._against is None else f"{fault}; or {self._against.name} does"
        if said := mine():
            return said
        for loop in beside:
            with named(loop.name):
                said = self._audit_loop(loop, counts)
            if said:
                return f"{loop.name}: {said}"
        return None

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Within this context the other tier is at work: what goes wrong has its name."""
        before = changed(self._settings)
        with named(name):
            yield
            if before is None and (said := changed(self._settings)):
                raise TierError(said)

    def _draw(self, steps: int, seed: int, other: type[Tier] | None = None) -> TimedProblem:
        tier_class = other or self.tier_class
        recipe = tier_class.recipe
        problem = TimedProblem.draw(
            self._sizes,
            steps=steps,
            seed=seed,
            precision=self.precision,
            recipe=recipe,
            bias=recipe.bias and tier_class.supports_bias,
        )
        give_back()
        settle()
        return problem

    def _tier(self, problem: TimedProblem, tier_class: type[Tier]) -> Tier:
        return tier_class(problem.start, lr=problem.lr, device=self.device, dtype=self.dtype)

    def _loop(self, problem: TimedProblem) -> BareLoop:
        return BareLoop(self._tier(problem, self.tier_class), problem, self.device)

    def _clock(self, work: Callable[[], Any]) -> float:
        self._synchronise()
        began = time.perf_counter()
        work()
        self._synchronise()
        return time.perf_counter() - began

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _audit_loop(self, loop: BareLoop, counts: tuple[int, int]) -> str | None:
        said = loop.problem.fault(counts, loop.losses, loop.end, self.precision, roundings=loop.roundings)
        return said or self._audit_steps(loop.tier, loop.problem, loop.batch, loop.tier.step)

    def _audit_steps(
        self, tier: Tier, problem: TimedProblem, batch: tuple[Any, Any], timed: Callable[[Any, Any], Any]
    ) -> str | None:
        """What is wrong with steps after the timing: only now code of the tier's runs again."""
        return (
            changed(self._settings)
            or audit_steps(tier, timed, *batch, self.precision, problem.lr, seed=(problem.seed, 1))
            or changed(self._settings)
        )


def main() -> None:
    """Answers until stdin ends."""
    serve(Worker)


if __name__ == "__main__":
    main()
