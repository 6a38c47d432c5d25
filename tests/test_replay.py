"""Steps that are replayed: which are captured, what a replay does, and what is said where one cannot be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerlab
from helpers import BUILTINS, SameMemory, Site
from layerlab import Params, Recipe, Tier, registry
from layerlab.errors import TierError
from layerlab.reference import gradients, sgd
from layerlab.replay import WARM_UP, CalledSteps, CudaGraphs, ReplayedSteps, replays, steps_of

LR = 1e-3


class Plain(Tier):
    """The step by hand, in place."""

    contract_version = 1
    capturable = True
    precisions = frozenset({"64-true"})
    supports_bias = False
    recipe = Recipe(bias=False)

    def __init__(self, params: Params, *, lr: float, device: torch.device, dtype: torch.dtype) -> None:
        self.lr = lr
        self.w1, self.w2 = (torch.tensor(w, device=device, dtype=dtype) for w in (params.w1, params.w2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mm(self.w1).clamp(min=0).mm(self.w2)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        h = x.mm(self.w1).clamp(min=0)
        diff = h.mm(self.w2) - y
        back = 2 * diff.mm(self.w2.t()) * (h > 0)
        self.w2 -= self.lr * h.t().mm(2 * diff)
        self.w1 -= self.lr * x.t().mm(back)
        return diff.square().sum()

    def params(self) -> Params:
        return Params.copy_of(self.w1, self.w2)


def problem(rows: int = 12) -> tuple[Params, Any, Any]:
    rng = np.random.default_rng(0)
    params = Params(rng.standard_normal((5, 4)), rng.standard_normal((4, 3)))
    return params, rng.standard_normal((rows, 5)), rng.standard_normal((rows, 3))


def replayed(
    tier: Tier, graphs: Any, *, in_place: bool, most: int = 100, device: str = "cpu"
) -> ReplayedSteps:
    losses = torch.zeros(most, dtype=torch.float64, device=device)
    return ReplayedSteps(tier, losses, graphs, in_place=in_place)


def make(device: str = "cpu", tier: type[Tier] = Plain) -> Any:
    return tier(problem()[0], lr=LR, device=torch.device(device), dtype=torch.float64)


def every(device: str, graphs: Callable[[], Any]) -> None:
    """Blocks of both kinds of batches against the oracle, whatever captures."""
    for in_place in (True, False):
        params, x, y = problem()
        tier = make(device)
        made = replayed(tier, graphs(), in_place=in_place, device=device)
        tensors = [torch.tensor(a, device=device) for a in (x, y)]
        done, expected = 0, []
        for length in (2, 4, 1, 7):
            steps = range(done, done + length)
            # an epoch's last batch is shorter, and comes back in the next
            sizes = [12 if in_place else (12, 12, 7)[step % 3] for step in steps]
            batches = [tensors if in_place else [t[:size].clone() for t in tensors] for size in sizes]
            losses = made.run(steps, [(a, b) for a, b in batches])
            for size in sizes:
                loss, grads = gradients(params, x[:size], y[:size])
                expected.append(loss)
                params = sgd(params, grads, lr=LR)
            np.testing.assert_allclose(losses, expected[done:], rtol=1e-10)
            done += length
            if in_place:  # what is written into the memory is seen
                x, y = x[::-1].copy() + 0.1, y[::-1].copy()
                for tensor, array in zip(tensors, (x, y), strict=True):
                    tensor.copy_(torch.tensor(array))
        np.testing.assert_allclose(tier.params().w1, params.w1, rtol=1e-10)
        np.testing.assert_allclose(tier.params().w2, params.w2, rtol=1e-10)


def test_replayed_steps_are_the_oracles() -> None:
    """Losses in their places and parameters, of one batch again and again and of others, in any blocks."""
    every("cpu", SameMemory)


def test_a_step_is_captured_once_for_each_number_of_rows() -> None:
    """After the steps in which libraries are set up; the tier is not called again, but by this stand-in."""
    graphs = SameMemory()
    made = replayed(make(), graphs, in_place=False)
    x, y = map(torch.tensor, problem()[1:])
    for number in range(4 * WARM_UP):
        rows = (12, 7)[number % 2]
        made.run(range(number, number + 1), [(x[:rows], y[:rows])])
        assert graphs.captures == (number >= 2 * WARM_UP) + (number >= 2 * WARM_UP + 1)


def test_batches_are_copied_and_not_held() -> None:
    """What comes later to lie where a batch was is not what is trained on."""
    tier, other = make(), make()
    made = replayed(tier, SameMemory(), in_place=False)
    x, y = map(torch.tensor, problem()[1:])
    memory = x.clone(), y.clone()
    made.run(range(WARM_UP + 1), [memory] * (WARM_UP + 1))
    for tensor in memory:
        tensor.fill_(1e9)
    made.run(range(WARM_UP + 1, WARM_UP + 2), [(x, y)])
    for _ in range(WARM_UP + 2):
        other.step(x, y)
    assert (tier.params().w1 == other.params().w1).all()


def test_only_what_says_so_is_replayed_and_only_on_cuda() -> None:
    """A tier is called unless it is capturable, and always on other devices."""

    class Silent(Plain):
        """What is derived from a tier may count in Python, and has not said that it does not."""

    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert replays(Plain, cuda)
    assert not replays(Silent, cuda)
    assert not replays(Plain, cpu)
    assert not isinstance(steps_of(make(), device=cpu, dtype=torch.float64, in_place=True), ReplayedSteps)
    assert not Tier.capturable


def test_what_has_a_graph_is_not_kept_with_its_losses() -> None:
    """A loss that still knows what led to it does not hold all steps of a run, called or captured."""

    class Follows(Plain):
        def step(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return super().step(x, y) * torch.ones((), requires_grad=True)

    batch = tuple(map(torch.tensor, problem()[1:]))
    for kind in (CalledSteps, partial(ReplayedSteps, graphs=SameMemory(), in_place=True)):
        losses = torch.zeros(20, dtype=torch.float64)
        kind(make(tier=Follows), losses).run(range(20), [batch] * 20)
        assert losses.all()
        assert not losses.requires_grad


def test_the_kit_does_not_pass_what_it_cannot_see() -> None:
    """Of an optimizer of its own nobody knows what an update should be: nothing shows that one is made."""

    class Own(Plain):
        capturable = True
        recipe = Recipe(optimizer="own")

    (result,) = layerlab.check(Own, only=["replays-agree"]).results
    assert (result.result, result.detail) == (
        "fail",
        "64-true, no bias: nothing would show that an update by 'own' is made anew",
    )


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_capturable_is_true_or_false(value: Any) -> None:
    """Anything else is no declaration."""
    tier = type("Odd", (Plain,), {"capturable": value})
    assert tier.contract_fault() == f"Odd.capturable is {value!r}, neither True nor False"


def test_a_step_that_raises_is_named() -> None:
    """Whether it is called or captured: the step, the error, and what the tier said of itself."""

    class Number(Plain):
        def step(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return float(super().step(x, y))

    batch = tuple(map(torch.tensor, problem()[1:]))

    class Calls(SameMemory):
        """As a capture: Python goes through the step once."""

        def capture(self, work: Callable[[], None]) -> Callable[[], None]:
            work()
            return work

    made = replayed(make(tier=Number), Calls(), in_place=True)
    with pytest.raises(
        TierError, match=f"step {40 + WARM_UP} failed: the tier says that it is capturable"
    ) as raised:
        made.run(range(40, 50), [batch] * 10)
    assert "its loss is a float" in str(raised.value)
    assert raised.value.hint == "capturable = False"
    made = replayed(make(), SameMemory(), in_place=True)
    with pytest.raises(TierError, match="step 41 failed: RuntimeError: "):
        made.run(range(40, 50), [batch, (batch[0], batch[1][:, :2])])


@pytest.mark.parametrize(
    ("spoiled", "given", "hint"),
    [
        (ValueError("no such layer"), "no such layer", "capturable = False"),
        (
            TierError("it does not compile", hint="install a compiler"),
            "it does not compile",
            "install a compiler",
        ),
    ],
)
def test_why_a_step_cannot_be_captured_is_what_it_raised(spoiled: Exception, given: str, hint: str) -> None:
    """Neither what that came of, nor what the end of a capture that was spoiled by it raises."""

    class Raises(Plain):
        steps = 0

        def step(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            self.steps += 1
            if self.steps > WARM_UP:
                try:
                    return {}["layer"]
                except KeyError:
                    raise spoiled from None
            return super().step(x, y)

    class Spoiled(SameMemory):
        """As torch's, whose end raises too."""

        def capture(self, work: Callable[[], None]) -> Callable[[], None]:
            try:
                work()
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    batch = tuple(map(torch.tensor, problem()[1:]))
    made = replayed(make(tier=Raises), Spoiled(), in_place=True)
    with pytest.raises(TierError, match=f"its step cannot be captured: {given}$") as raised:
        made.run(range(10), [batch] * 10)
    assert raised.value.hint == hint


@pytest.mark.gpu
class TestOnCuda:
    """The graphs themselves."""

    def test_replayed_steps_are_the_oracles(self) -> None:
        """As on the CPU, with nothing in Python's hands."""
        every("cuda", lambda: CudaGraphs(torch.device("cuda")))

    @pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
    @pytest.mark.parametrize("name", [n for n in BUILTINS[1:] if n != "optim"])
    def test_what_is_replayed_is_what_would_be_called(self, name: str, precision: str) -> None:
        """The same operations: losses and parameters to the rounding of some of them."""
        tier = registry.load(registry.find(name))
        assert tier.says_capturable()
        device = torch.device("cuda")
        dtype = torch.float64 if precision == "64-true" else torch.float32
        rel = {"32-true": 1e-4, "64-true": 1e-12, "bf16-mixed": 1e-2}[precision]
        params, x, y = problem()
        host = np.float64 if precision == "64-true" else np.float32
        batch = tuple(torch.tensor(a, device=device, dtype=dtype) for a in (x, y))
        one, two = (
            tier(params.map(lambda p: p.astype(host)), lr=LR, device=device, dtype=dtype) for _ in range(2)
        )
        made = steps_of(one, device=device, dtype=dtype, in_place=True)
        context = torch.autocast(
            "cuda", torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False
        )
        with context:
            losses = made.run(range(20), [batch] * 20)
        expected = []
        for _ in range(20):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
                expected.append(float(two.step(*batch)))
        np.testing.assert_allclose(losses, expected, rtol=rel)
        np.testing.assert_allclose(one.params().w1, two.params().w1, rtol=rel, atol=rel)

    def test_garbage_and_other_graphs_do_not_disturb_a_capture(self) -> None:
        """Tiers that hold graphs and are held by nobody but themselves, while others are captured."""
        batch = tuple(torch.tensor(a, device="cuda") for a in problem()[1:])
        expected = None
        for _ in range(20):
            tier = make("cuda")
            tier.made = steps_of(tier, device=torch.device("cuda"), dtype=torch.float64, in_place=True)
            losses = tier.made.run(range(6), [batch] * 6)
            expected = losses if expected is None else expected
            np.testing.assert_allclose(losses, expected, rtol=1e-12)

    def test_only_the_class_that_says_so_is_replayed(self) -> None:
        """What makes the steps of a tier that says so, on the device."""
        for tier, kind in ((Plain, ReplayedSteps), (type("Derived", (Plain,), {}), CalledSteps)):
            made = steps_of(
                make("cuda", tier), device=torch.device("cuda"), dtype=torch.float64, in_place=True
            )
            assert type(made) is kind

    @pytest.mark.parametrize("how", ["item", "synchronize", "raise"])
    def test_a_capture_that_fails_leaves_all_as_it_was(self, how: str) -> None:
        """What cannot be captured is an error that says why; others are captured after it."""
        device = torch.device("cuda")

        class Spoils(Plain):
            capturable = True
            steps = 0

            def step(self, x: torch.Tensor, y: torch.Tensor) -> Any:
                loss = super().step(x, y)
                if how == "item":
                    loss.item()
                elif how == "synchronize":
                    torch.cuda.synchronize()
                self.steps += 1
                if how == "raise" and self.steps > WARM_UP:
                    raise ValueError("on purpose")
                return loss

        batch = tuple(torch.tensor(a, device="cuda") for a in problem()[1:])
        value, stream = torch.ones((), device="cuda"), torch.cuda.current_stream()
        said = {"item": "synchronizing", "synchronize": "not permitted", "raise": "on purpose"}[how]
        for _ in range(2):
            made = steps_of(make("cuda", Spoils), device=device, dtype=torch.float64, in_place=True)
            with pytest.raises(TierError, match=f"says that it is capturable, and .* cannot be .*{said}"):
                made.run(range(10), [batch] * 10)
            assert torch.cuda.current_stream() == stream
            assert float(value + 1) == 2
            torch.cuda.empty_cache()
            torch.rand(1, device="cuda")
            made = steps_of(make("cuda"), device=device, dtype=torch.float64, in_place=True)
            assert np.isfinite(made.run(range(10), [batch] * 10)).all()

    def test_a_run_whose_step_cannot_be_captured_fails_and_the_next_one_does_not(
        self, folder: Path, site: Site
    ) -> None:
        """One line that says why, under a Trainer too, which empties the cache; then others are trained."""
        code = """
import torch
from layerlab.tiers.tensors import TensorsTier


class Waits(TensorsTier):
    capturable = True

    def update(self):
        super().update()
        torch.cuda.synchronize()
"""
        site.add("layerlab-waits", {"waits": "MODULE:Waits"}, code)
        site.allow("layerlab-waits")
        report = layerlab.run(plugin=["waits", "tensors"], steps=20, accelerator="gpu")
        assert [run.status for run in report.runs] == ["FAILED", "FINISHED"]
        assert "step 3 failed: the tier says that it is capturable" in str(report.runs[0].error)

    def test_minibatches_with_validation_are_those_of_the_cpu(self, folder: Path) -> None:
        """Rows that come in a block at a time, batches of two sizes, and a validation between blocks."""
        runs = [
            layerlab.run(
                plugin="nn", data="iris", batch_size=25, epochs=8, precision="64-true", accelerator=a
            )
            for a in ("cpu", "gpu")
        ]
        on_cpu, on_gpu = (report.runs[0] for report in runs)
        assert (on_gpu.status, on_gpu.device, on_gpu.steps) == ("FINISHED", "cuda:0", on_cpu.steps)
        assert on_gpu.final_loss == pytest.approx(on_cpu.final_loss, rel=1e-9)
        assert on_gpu.val == pytest.approx(on_cpu.val, rel=1e-9)
