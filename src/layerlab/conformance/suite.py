"""The suite: which checks there are, and how a tier is put through them."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

import torch

from layerlab import registry
from layerlab.conformance import abilities, contract, proofs
from layerlab.conformance.scorecard import CheckReport, CheckResult, Finding, NotApplicable, raised
from layerlab.conformance.subject import Subject
from layerlab.conformance.world import Kept
from layerlab.errors import AcceleratorError, PluginError, SpecError, did_you_mean, one_line
from layerlab.tier import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerlab.registry import TierRow

    Check = Callable[[Subject], Finding]

# Goes up when a check is added, or asks more: the first number when a tier that passed may fail.
SUITE_VERSION = "1.1"

SUITE: tuple[Check, ...] = (
    proofs.full_batch,
    proofs.default_size,
    proofs.minibatches,
    proofs.single_row,
    proofs.smallest,
    proofs.dead_units,
    proofs.far_target,
    proofs.zeros_at_relu,
    proofs.small_gradients,
    proofs.strided_inputs,
    proofs.mixed_precision,
    contract.contract_is_declared,
    contract.params_are_copies,
    contract.precision_is_kept,
    contract.forward_changes_nothing,
    contract.loss_is_a_number,
    contract.loss_is_before_the_update,
    contract.construction_continues,
    contract.state_resumes,
    contract.runs_repeat,
    contract.world_is_left_alone,
    contract.inputs_are_not_written_to,
    contract.gradients_are_used,
    abilities.runs_on_the_cpu,
    abilities.runs_on_the_gpu,
    abilities.step_does_not_wait,
    abilities.replays_agree,
    abilities.learns,
    abilities.export_agrees,
)


def check_name(check: Check) -> str:
    """What a check is called on the scorecard."""
    return check.__name__.replace("_", "-")


def check(
    tier: str | type[Tier],
    *,
    seed: int = 0,
    accelerator: str = "auto",
    only: Sequence[str] = (),
    watch: Callable[[str], None] | None = None,
) -> CheckReport:
    """Puts a tier through the suite.

    Args:
        tier: Its name, or its class, which need not be installed.
        seed: What the problems are drawn from; the bounds hold for any.
        accelerator: Where it is examined: "cpu", "gpu", or "auto": the CPU where the tier runs there.
        only: Names of checks; left out: all of them.
        watch: Told the name of each check before it begins.

    Returns:
        The scorecard.

    Raises:
        PluginError: There is no such tier, or it cannot be loaded.
        AcceleratorError: The tier does not run where it is asked to, or this machine has no such device.
        SpecError: There is no check of such a name, or the seed is below 0.
    """
    if not isinstance(seed, int) or seed < 0:
        raise SpecError(f"seed: should be a whole number of at least 0, got {seed}")
    checks = _select([only] if isinstance(only, str) else only)
    with Kept() as kept:
        return _check(tier, checks, seed, accelerator, watch, kept)


def _check(
    tier: str | type[Tier],
    checks: list[Check],
    seed: int,
    accelerator: str,
    watch: Callable[[str], None] | None,
    kept: Kept,
) -> CheckReport:
    if isinstance(tier, str):
        row = registry.find(tier)
        tier_class, name = registry.load(row), row.selector
        distribution, version = row.distribution, row.version
    else:
        if not (isinstance(tier, type) and issubclass(tier, Tier)):
            raise PluginError(f"{one_line(repr(tier))} is neither the name of a tier nor a subclass of Tier")
        if fault := (tier.contract_mismatch() or (tier.contract_fault(),))[0]:
            raise PluginError(f"{tier.__name__}: {fault}")
        tier_class, name, distribution, version = tier, tier.__name__, "", ""
    device = _device(tier_class, name, accelerator)
    subject = Subject(name, tier_class, device, seed, kept.switches)
    results = []
    for single in checks:
        if watch is not None:
            watch(check_name(single))
        results.append(examine(subject, single))
        kept.restore()  # what one check let a tier change, the next one does not begin with
    return CheckReport(name, distribution, version, SUITE_VERSION, seed, str(device), tuple(results))


def not_examined(row: TierRow, error: PluginError | AcceleratorError, *, seed: int) -> CheckReport:
    """The report of a tier that was not put through the suite: one line that says why.

    Args:
        row: The tier.
        error: A tier that cannot be loaded fails; one that does not run where it was asked to does not apply.
        seed: What the problems would have been drawn from.
    """
    result = CheckResult(
        check="loads" if isinstance(error, PluginError) else "runs-where-asked",
        claim="The tier can be loaded, and runs where it is asked to.",
        result="fail" if isinstance(error, PluginError) else "n/a",
        figure=None,
        bound=None,
        detail=str(error),
        where={},
        seconds=0.0,
    )
    return CheckReport(row.selector, row.distribution, row.version, SUITE_VERSION, seed, "none", (result,))


def examine(subject: Subject, check: Check) -> CheckResult:
    """Runs one check; a tier that raises fails it."""
    began = time.perf_counter()
    verdict, finding = "fail", Finding(False)
    try:
        finding = check(subject)
        verdict = "pass" if finding.ok else "fail"
    except NotApplicable as reason:
        verdict, finding = "n/a", Finding(True, detail=str(reason))
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever a tier raises, the others are checked
        finding = raised(error)
    return CheckResult(
        check=check_name(check),
        claim=(inspect.getdoc(check) or "").partition("\n")[0],
        result=verdict,  # type: ignore[arg-type]
        figure=finding.figure,
        bound=finding.bound,
        detail=finding.detail,
        where=finding.where,
        seconds=time.perf_counter() - began,
    )


def _select(only: Sequence[str]) -> list[Check]:
    names = {check_name(single): single for single in SUITE}
    for name in only:
        if name not in names:
            raise SpecError(f"no check is called '{one_line(name)}'", hint=did_you_mean(name, names))
    return [single for name, single in names.items() if not only or name in only]


def _device(tier_class: type[Tier], name: str, accelerator: str) -> Any:
    known = ("auto", "cpu", "gpu")
    if accelerator not in known:
        raise SpecError(f"accelerator: should be one of {', '.join(known)}, got '{one_line(accelerator)}'")
    wanted = accelerator
    if wanted == "auto":
        wanted = "cpu" if "cpu" in tier_class.accelerators else "gpu"
    if wanted not in tier_class.accelerators:
        there = " and ".join(sorted(tier_class.accelerators))
        raise AcceleratorError(f"tier '{name}' does not run on {wanted}", hint=f"it declares: {there}")
    if wanted == "cpu":
        return torch.device("cpu")
    found = abilities.gpu()
    if found is None:
        raise AcceleratorError(f"tier '{name}': there is no GPU on this machine", hint="--accelerator cpu")
    return found
