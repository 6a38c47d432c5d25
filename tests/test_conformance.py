"""The conformance kit: the tiers that must pass, the bound, the scorecard and the command."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

import layerlab
from gallery import SGD, ByHand, ByHandAdam, ForgottenMask, SeedReset, Whole
from helpers import BUILTINS, Site
from layerlab import registry
from layerlab.conformance import SUITE, SUITE_VERSION, check, check_name, problems, world
from layerlab.conformance.lockstep import Comparison, prove
from layerlab.errors import AcceleratorError, PluginError, SpecError
from layerlab.reference import Adam, gradients, sgd
from layerlab.rounding import AdamBound, Roundoff, bound_sgd, bound_step, gamma
from layerlab.testing import TierContract
from layerlab.tier import Params, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerlab.conformance.problems import Problem

FAMILIES = [
    problems.full_batch,
    # without default_size, which takes ten times as long as all of them
    problems.minibatches,
    problems.single_row,
    problems.smallest,
    problems.dead_units,
    problems.far_target,
    problems.zeros_at_relu,
    problems.small_gradients,
    problems.strided,
]
NAMES = [check_name(single) for single in SUITE]


# --- tiers that must pass -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BUILTINS, "fused"])
def test_our_own_tiers_pass_without_exemption(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails; what does not apply is what the tier declares, or a device that is not there."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")
    report = check(name)
    assert report.ok, report.failures
    tier = registry.load(registry.find(name))
    skipped = {result.check for result in report.results if result.result == "n/a"}
    expected = set()
    if "bf16-mixed" not in tier.precisions:
        expected.add("mixed-precision")
    if not tier.splits_step():
        expected.add("gradients-are-used")
    if "gpu" not in tier.accelerators or not torch.cuda.is_available():
        expected |= {"step-does-not-wait", "runs-on-the-gpu"}
    if not (tier.says_capturable() and torch.cuda.is_available()):
        expected.add("replays-agree")
    assert skipped == expected


class TestByHand(TierContract):
    """The suite as pytest, on a class that is not installed."""

    tier = ByHand


@pytest.mark.gpu
@pytest.mark.parametrize("name", BUILTINS[1:])
def test_the_whole_suite_on_cuda(name: str) -> None:
    """Every check, with the tensors on the device."""
    report = check(name, accelerator="gpu")
    assert report.ok, report.failures


def test_a_tensor_does_not_part_beside_itself() -> None:
    """What else parts at the same step is something else."""
    seen = Comparison()
    for tensor in ("w1", "b1", "w1", "b1"):
        seen.compare(0, tensor, 1.0, 0.0, 0.0)
    assert not seen.end_step()
    assert seen.part is not None
    assert (seen.part.tensor, seen.part.also) == ("w1", ("b1",))


# --- the bound ----------------------------------------------------------------------------------------------


def rotation(seed: int) -> tuple[Problem, str]:
    """A problem for a seed: all families in turn, with and without biases, all shapes."""
    family = FAMILIES[seed % len(FAMILIES)]
    drawn = family(np.random.default_rng(seed), bool(seed // len(FAMILIES) % 2))
    return drawn[seed // (2 * len(FAMILIES)) % len(drawn)], family.__name__


def assert_no_correct_tier_fails(seeds: Iterable[int], names: list[str]) -> None:
    tiers = [registry.load(registry.find(name)) for name in names]
    for seed in seeds:
        problem, family = rotation(seed)
        for tier in tiers:
            for precision in ("32-true", "64-true"):
                seen = prove(tier, problem, precision=precision)
                assert seen.part is None, (seed, family, tier.__name__, precision, str(seen.part))


def test_no_correct_tier_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """18 seeds, both precisions, every built-in tier and `fused`, 50 steps each: every family, two shapes."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")
    seeds = [seed + 2 * len(FAMILIES) * (seed % 2) for seed in range(2 * len(FAMILIES))]
    assert_no_correct_tier_fails(seeds, [*BUILTINS, "fused"])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(10))
def test_no_correct_tier_fails_for_1000_seeds(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for seeds 0 to 999."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")
    assert_no_correct_tier_fails(range(100 * part, 100 * (part + 1)), [*BUILTINS, "fused"])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_the_oracle_in_single_precision_is_within_the_bound(family: Any) -> None:
    """The oracle's own formulas, computed in float32, differ from float64 by no more than is allowed.

    Over 20 seeds they come to at least a hundredth of it: the bound is of the order of what rounding does.
    """
    r = Roundoff.of("32-true")
    worst = 0.0
    for seed in range(20):
        for bias in (True, False):
            for problem in family(np.random.default_rng(seed), bias):
                x, y = (a.astype(np.float32) for a in problem.batches[0])
                params = problem.params.map(lambda p: p.astype(np.float32))
                loss, grads = gradients(params, x, y)
                exact = params.map(np.float64)
                loss64, grads64 = gradients(exact, x.astype(float), y.astype(float))
                sound = bound_step(exact, x.astype(float), y.astype(float), r)
                assert abs(loss - loss64) <= sound.loss
                for g, g64, bound in zip(grads, grads64, sound.gradients, strict=True):
                    if g is not None:
                        assert (np.abs(g - g64) <= bound).all()
                        worst = max(worst, float((np.abs(g - g64) / np.where(bound > 0, bound, 1)).max()))
    assert worst >= 0.01


def test_adam_in_single_precision_is_within_its_bound() -> None:
    """Adam on float32 arrays, its decays too, beside float64 on the same gradients, for 50 steps."""
    rng = np.random.default_rng(0)
    params = Params(rng.standard_normal((4, 3)), rng.standard_normal((3, 2)))
    p32 = params.map(lambda p: p.astype(np.float32))
    single = Adam(np.float32(1e-2), np.float32(0.9), np.float32(0.999), np.float32(1e-8))  # type: ignore[arg-type]
    exact = AdamBound(Adam(1e-2), Roundoff.of("32-true"))
    for _ in range(50):
        scale = 10.0 ** rng.integers(-12, 3)
        g32 = params.map(lambda p: (scale * rng.standard_normal(p.shape)).astype(np.float32))  # noqa: B023
        before = p32.map(np.float64)
        p32 = single.update(p32, g32)
        after, bound = exact.update(before, g32.map(np.float64), g32.map(lambda g: np.zeros(g.shape)))
        for p, q, b in zip(p32, after, bound, strict=True):
            assert p is None or (np.abs(p - q) <= b).all()
            assert p is None or p.dtype == np.float32


def test_there_is_no_doubt_about_a_zero_that_no_rounding_can_miss() -> None:
    """Small whole numbers that cancel give an exact 0; numbers with all their bits do not."""
    r = Roundoff.of("32-true")
    x = np.array([[3.0, -3.0], [0.1, -0.1]])
    params = Params(np.array([[2.0, 0.3], [2.0, 0.3]]), np.ones((2, 1)))
    sound = bound_step(params, x, np.ones((2, 1)), r)
    exact, rounded = sound.gradients.w1[:, 0], sound.gradients.w1[:, 1]
    assert (exact < rounded).all()
    only_first = bound_step(params, x[:1], np.ones((1, 1)), r)
    assert (only_first.gradients.w1[:, 0] == 0).all()
    assert (only_first.gradients.w1[:, 1] > 1).all()  # the mask may fall either way


def test_a_sum_that_is_too_long_has_no_bound() -> None:
    """1 / u roundings and more: the model says nothing."""
    with pytest.raises(ValueError, match="no bound"):
        gamma(2**24, 2.0**-24)


def test_the_update_bound_holds_term_by_term() -> None:
    """A product that adds N terms to a weight one by one, in float32, in the worst of 200 orders."""
    rng = np.random.default_rng(0)
    r = Roundoff.of("32-true")
    p, terms = np.float32(3.0), rng.standard_normal(40).astype(np.float32)
    lr = 0.1
    size = np.abs(terms).sum(dtype=np.float64).reshape(1, 1)
    start = Params(np.array([[float(p)]]), np.zeros((1, 1)))
    sizes, zero = Params(size, np.zeros((1, 1))), Params(np.zeros((1, 1)), np.zeros((1, 1)))
    exact = sgd(start, Params(terms.sum(dtype=np.float64).reshape(1, 1), zero.w2), lr=lr)
    bound = bound_sgd(start, sizes, zero, lr=lr, terms=40, r=r)
    for _ in range(200):
        total = p
        for term in rng.permutation(terms):
            total = np.float32(total - np.float32(lr) * term)
        assert abs(float(total) - exact.w1[0, 0]) <= bound.w1[0, 0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_problems_do_not_run_away(family: Any, optimizer: str) -> None:
    """Over 50 exact steps no parameter leaves the order of magnitude of the first ones."""
    for bias in (True, False):
        for problem in family(np.random.default_rng(0), bias):
            params, lr = problem.params, problem.learning_rate(replace(SGD, optimizer=optimizer))
            adam = Adam(lr)
            largest = max(np.abs(p).max() for p in params if p is not None)
            for number in range(50):
                x, y = problem.batches[number % len(problem.batches)]
                _, grads = gradients(params, x, y)
                params = adam.update(params, grads) if optimizer == "adam" else sgd(params, grads, lr=lr)
            assert max(np.abs(p).max() for p in params if p is not None) <= 10 * max(largest, 1e-3)


# --- the scorecard ------------------------------------------------------------------------------------------


def test_a_report_from_python() -> None:
    """`layerlab.check` gives one result a check, each with the claim of its docstring."""
    report = layerlab.check("numpy", seed=3, only=["full-batch", "learns", "step-does-not-wait"])
    assert isinstance(report, layerlab.CheckReport)
    assert (report.tier, report.distribution, report.suite, report.seed) == (
        "numpy",
        "layerlab",
        SUITE_VERSION,
        3,
    )
    assert [result.check for result in report.results] == ["full-batch", "step-does-not-wait", "learns"]
    first, waits, _ = report.results
    assert (first.result, first.bound) == ("pass", 1.0)
    assert first.figure is not None
    assert 0 < first.figure <= 1
    assert first.claim.startswith("Every step on the same batch")
    assert (waits.result, waits.detail) == ("n/a", "accelerators: no gpu")


def test_every_check_states_its_claim() -> None:
    """Each is a function with a docstring of its own, one sentence, and a name of its own."""
    assert len(set(NAMES)) == len(SUITE)
    for single in SUITE:
        claim = (single.__doc__ or "").partition("\n")[0]
        assert claim.endswith("."), single.__name__


def test_a_failure_says_step_tensor_place_and_bound() -> None:
    """In words and in fields."""
    (result,) = check(ForgottenMask, only=["full-batch"]).results
    where = result.where
    assert (where["step"], where["tensor"], where["also"]) == (0, "grad_w1", ("grad_b1",))
    place = ",".join(map(str, where["index"]))
    assert f"step 0, grad_w1[{place}]: {where['actual']:.9g} against {where['expected']:.9g}" in result.detail
    assert abs(where["actual"] - where["expected"]) > where["bound"] > 0


class OwnOptimizer(ByHandAdam):
    """An optimizer that the oracle does not know."""

    recipe = layerlab.Recipe(optimizer="nadir", lr=1e-4, init="linear", bias=True)
    betas = (0.5, 0.5)


class OwnOptimizerWrongGradient(OwnOptimizer):
    def mask(self) -> Any:
        return torch.ones_like(self.h)


class OwnOptimizerThatLearnsNothing(OwnOptimizer):
    def update(self) -> None:
        self.g = {name: -g for name, g in self.g.items()}
        super().update()


def test_an_optimizer_of_its_own() -> None:
    """Its gradients are proven, its updates are not judged but by whether it learns."""
    assert check(OwnOptimizer).ok
    failed = {result.check: result for result in check(OwnOptimizerWrongGradient).failures}
    assert failed["full-batch"].where["tensor"] == "grad_w1"
    assert {result.check for result in check(OwnOptimizerThatLearnsNothing).failures} == {"learns"}


class NoBias(ByHand):
    supports_bias = False

    def __init__(self, params: Params, **run: Any) -> None:
        assert params.b1 is None
        super().__init__(params, **run)


def test_what_a_tier_does_not_claim_is_not_asked_of_it() -> None:
    """No biases, one precision, no state: declared, and said in the report."""
    report = check(NoBias)
    assert report.ok, report.failures
    assert "no biases: declared" in report.results[0].detail

    class OnlyDouble(Whole):
        precisions = frozenset({"64-true"})

    report = check(OnlyDouble)
    assert report.ok, report.failures
    assert "state-resumes" in {result.check for result in report.results if result.result == "n/a"}


def test_what_a_check_or_a_tier_seeds_is_put_back() -> None:
    """Whoever goes on after a check draws what he would have drawn without it."""
    before = world.generators()
    assert check(ByHand, only="world-is-left-alone").ok
    assert not check(SeedReset, only="world-is-left-alone").ok
    assert world.generators() == before


@pytest.mark.gpu
def test_generators_of_other_devices_are_put_back() -> None:
    """No check seeds them; a tier may, with all that `torch.manual_seed` reaches."""

    class Watched(ByHand):
        def __init__(self, params: Params, **run: Any) -> None:
            seen.append(states())
            super().__init__(params, **run)

    def states() -> list[list[int]]:
        return [state.tolist() for state in torch.cuda.get_rng_state_all()]

    seen: list[list[list[int]]] = []
    torch.cuda.manual_seed_all(17)
    torch.rand(3, device="cuda")
    before = states()
    assert check(Watched, only="world-is-left-alone").ok
    assert seen
    assert all(state == before for state in seen)
    assert not check(SeedReset, only="world-is-left-alone").ok
    assert states() == before


def test_a_tier_of_the_cpu_is_not_replayed() -> None:
    """Whatever it says of its step, and whatever its optimizer: no check takes it to a GPU."""

    class OnlyCPU(OwnOptimizer):
        accelerators = frozenset({"cpu"})
        capturable = True

    (result,) = check(OnlyCPU, only="replays-agree").results
    assert (result.result, result.detail) == ("n/a", "accelerators: no gpu")


def test_a_tier_that_raises_or_exits_fails_and_the_others_go_on() -> None:
    """One line a check, whatever it raised."""

    class Raises(ByHand):
        def backward(self, x: Any, y_pred: Any, y: Any) -> Any:
            raise SystemExit("two\nlines")

    report = check(Raises)
    assert len(report.results) == len(SUITE)
    assert "raised SystemExit: two lines" in {result.detail for result in report.failures}


def test_bad_requests() -> None:
    """No such tier, no such check, a seed below 0, a device that the tier or the machine has not."""
    with pytest.raises(PluginError, match="no tier is called"):
        check("nope")
    with pytest.raises(SpecError, match="no check is called 'full-bach'") as error:
        check("numpy", only=["full-bach"])
    assert error.value.hint == "did you mean 'full-batch'?"
    with pytest.raises(SpecError, match="at least 0"):
        check("numpy", seed=-1)
    with pytest.raises(SpecError, match="one of auto, cpu, gpu"):
        check("numpy", accelerator="tpu")
    with pytest.raises(SpecError, match="whole number"):
        check("numpy", seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="neither the name of a tier nor a subclass"):
        check(int)  # type: ignore[arg-type]
    with pytest.raises(AcceleratorError, match="does not run on gpu"):
        check("numpy", accelerator="gpu")
    with pytest.raises(PluginError, match="neither step nor both"):
        check(
            type(
                "Empty",
                (Tier,),
                {m: lambda *_: None for m in ("__init__", "forward", "params")} | {"recipe": ByHand.recipe},
            )
        )


# --- the command --------------------------------------------------------------------------------------------


def test_the_scorecard_on_the_terminal(layerlab_cli: Any, empty_folder: Path) -> None:
    """One line a check with figure and bound; nothing is written; exit 0."""
    result = layerlab_cli("check", "numpy")
    assert result.code == 0
    lines = result.stdout.splitlines()
    assert [name for name in NAMES if any(line.split()[:1] == [name] for line in lines)] == NAMES
    assert f"{len(NAMES) - 4} passed, 0 failed, 4 not applicable" in result.stdout
    assert not list(empty_folder.iterdir())


def test_several_tiers_as_json(layerlab_cli: Any, empty_folder: Path) -> None:
    """The same scorecards for programs, and nothing else on stdout."""
    result = layerlab_cli("check", "nn", "tensors", "nn", "--only", "smallest", "--seed", 5, "--json")
    assert result.code == 0
    reports = json.loads(result.stdout)["reports"]
    assert [report["tier"] for report in reports] == ["nn", "tensors"]
    assert {(r["seed"], r["ok"], r["results"][0]["check"]) for r in reports} == {(5, True, "smallest")}


@pytest.fixture
def broken_plugin(site: Site) -> str:
    """An installed tier that forgets the mask of ReLU."""
    site.add("a-forgetful-dist", {"forgetful": "gallery:ForgottenMask"}, "")
    site.allow("a-forgetful-dist")
    return "forgetful"


def test_a_failure_exits_1_and_is_in_the_junit_file(
    layerlab_cli: Any, empty_folder: Path, broken_plugin: str
) -> None:
    """The tensor is named on the terminal; the file has failures and skips, and an entry a check."""
    result = layerlab_cli("check", broken_plugin, "numpy", "--junit", "out.xml")
    assert result.code == 1
    assert "step 0, grad_w1[" in result.stdout
    suites = ET.parse(empty_folder / "out.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["layerlab check forgetful", "layerlab check numpy"]
    assert [int(suite.get("tests", 0)) for suite in suites] == [len(SUITE)] * 2
    assert int(suites[0].get("failures", 0)) == len(suites[0].findall("testcase/failure")) > 0
    assert suites[1].get("failures") == "0"
    assert len(suites[1].findall("testcase/skipped")) == 4


def test_a_junit_file_may_be_a_pipe(layerlab_cli: Any, empty_folder: Path) -> None:
    """What takes lines and is no file gets them, and stays what it is."""
    os.mkfifo("pipe")
    end = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    arguments = ("--only", "contract-is-declared", "--junit", "pipe")
    assert layerlab_cli("check", "numpy", *arguments).code == 0
    suite = ET.fromstring(os.read(end, 2**16)).find("testsuite")
    os.close(end)
    assert suite is not None
    assert suite.get("name") == "layerlab check numpy"
    assert [path.name for path in empty_folder.iterdir() if path.is_fifo()] == ["pipe"]


def test_all_is_every_tier_there_is(layerlab_cli: Any, empty_folder: Path, broken_plugin: str) -> None:
    """Other people's tiers too, unlike `run --plugin all`; a tier that cannot be loaded fails."""
    result = layerlab_cli("check", "--all", "--only", "contract-is-declared", "--json")
    assert result.code == 0
    names = [report["tier"] for report in json.loads(result.stdout)["reports"]]
    assert names == [*BUILTINS, "forgetful"]


def test_all_tells_of_those_that_cannot_be_checked(site: Site, layerlab_cli: Any, empty_folder: Path) -> None:
    """A tier that cannot be loaded fails, one that has no GPU to run on is n/a: both are in every report."""
    site.add("a-broken-dist", {"broken": "MODULE:Good"}, "raise RuntimeError('no luck')")
    site.allow("a-broken-dist")
    arguments = ("--only", "contract-is-declared", "--junit", "out.xml")
    result = layerlab_cli("check", "--all", "--json", *arguments)
    assert result.code == 1
    last = json.loads(result.stdout)["reports"][-1]
    assert (last["tier"], last["ok"], last["results"][0]["check"]) == ("broken", False, "loads")
    assert "no luck" in last["results"][0]["detail"]
    suite = ET.parse(empty_folder / "out.xml").getroot().findall("testsuite")[-1]
    assert (suite.get("name"), suite.get("failures")) == ("layerlab check broken", "1")
    on_gpu = json.loads(layerlab_cli("check", "--all", "--accelerator", "gpu", "--json", *arguments).stdout)
    first = on_gpu["reports"][0]["results"][0]
    assert (first["result"], first["detail"]) == ("n/a", "tier 'numpy' does not run on gpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a tier"),
        (["numpy", "--all"], "exclude each other"),
        (["nmupy"], "did you mean 'numpy'?"),
        (["numpy", "--only", "nope"], "no check is called 'nope'"),
        (["numpy", "--seed", "-1"], "at least 0"),
        (["numpy", "--junit", "no/such/folder/out.xml"], "no/such/folder"),
        (["numpy", "--junit", "."], "is a folder"),
        (["numpy", "--accelerator", "gpu"], "does not run on gpu"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_2(
    layerlab_cli: Any, empty_folder: Path, arguments: list[str], said: str
) -> None:
    """Before anything is checked, and nothing is written."""
    result = layerlab_cli("check", *arguments)
    assert result.code == 2
    assert said in result.stderr
    assert not result.stdout
    assert not list(empty_folder.iterdir())
