"""From a spec to jobs: all that can be refused is refused here, the cheap checks before the heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerlab import registry
from layerlab.data import check_table, load_prepared
from layerlab.errors import AcceleratorError, PluginError, SpecError
from layerlab.spec import DEFAULT_SIZES, RANDOM, ExperimentSpec, build_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from layerlab.data.dataset import Prepared
    from layerlab.registry import TierRow
    from layerlab.tier import Tier


@dataclass(frozen=True)
class Job:
    """One tier to train.

    Attributes:
        row: Where it comes from.
        tier_class: Its class.
        spec: Its resolved spec.
        accelerator: Where it will run, as Lightning names it: "cpu", "cuda" or "mps".
    """

    row: TierRow
    tier_class: type[Tier]
    spec: ExperimentSpec
    accelerator: str


def resolve(
    *, config: str | Path | None = None, settings: Iterable[str] = (), **flags: Any
) -> list[ExperimentSpec]:
    """The resolved spec of every run that `run` would make of the same arguments; nothing is run.

    Raises:
        InputError: As `run`.
    """
    spec = build_spec(config=config, settings=settings, flags=flags)
    return [job.spec for job in plan(spec, lambda _: None)[0]]


def plan(spec: ExperimentSpec, stage: Callable[[str], None]) -> tuple[list[Job], Prepared]:
    """Checks all that can be checked without recording anything; what is cheap to check comes first.

    Args:
        spec: The experiment.
        stage: Told what begins, where it may take a moment.

    Returns:
        One job a tier, and the data that all of them see.

    Raises:
        InputError: Something cannot be done as asked.
    """
    if spec.data.is_table:
        check_table(spec.data.name)
    elif spec.data.name == RANDOM:
        _check_batch(spec, spec.data.n or DEFAULT_SIZES["n"])
    rows = registry.select(spec.plugins)
    stage(f"reading the data: {spec.data.name}")
    prepared = load_prepared(spec)
    n_train = len(prepared.train)
    _check_batch(spec, n_train)
    stage("loading the tiers")
    tiers = [(row, registry.load(row)) for row in rows]
    resolved = []
    for row, tier_class in tiers:
        name = f"{spec.name}-{row.name}" if spec.name and len(rows) > 1 else spec.name or row.name
        resolved.append(spec.resolved(row.selector, tier_class.recipe, run_name=name, n_train=n_train))
        _check_tier(row, tier_class, resolved[-1])
    jobs = [
        Job(row, tier_class, single, choose_accelerator(single, row.name, tier_class))
        for (row, tier_class), single in zip(tiers, resolved, strict=True)
    ]
    return jobs, prepared


def _check_batch(spec: ExperimentSpec, rows: int) -> None:
    if spec.train.batch_size is not None and spec.train.batch_size > rows:
        raise SpecError(
            f"train.batch_size: {spec.train.batch_size} is more than {spec.data.name} has to train on: "
            f"{rows} rows",
            hint="leave --batch-size out, or make it smaller",
        )


def choose_accelerator(spec: ExperimentSpec, name: str, tier_class: type[Tier]) -> str:
    """Where a tier runs, as Lightning names it: "cpu", "cuda" or "mps".

    Raises:
        AcceleratorError: What is asked for is not on this machine.
    """
    import torch

    asked, precision = spec.train.accelerator, spec.train.precision
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gpus = [
        gpu for gpu, present in there.items() if present and not (gpu == "mps" and precision == "64-true")
    ]
    if asked == "auto":
        if gpus and "gpu" in tier_class.accelerators:
            return gpus[0]
        if "cpu" in tier_class.accelerators:
            return "cpu"
        asked = "gpu"
    if asked == "cpu":
        return asked
    if asked == "gpu" and gpus:
        return gpus[0]
    if asked in gpus:
        return asked
    if there.get("mps") and precision == "64-true":
        raise AcceleratorError(
            "MPS has no 64-bit floating point", hint="--precision 32-true, or --accelerator cpu"
        )
    what = {"gpu": "GPU", "cuda": "CUDA GPU", "mps": "MPS device"}[asked]
    raise AcceleratorError(
        f"tier '{name}': there is no {what} on this machine that torch {torch.__version__} can use",
        hint="--accelerator cpu or auto",
    )


def _check_tier(row: TierRow, tier_class: type[Tier], spec: ExperimentSpec) -> None:
    """Refuses what the tier says it cannot do."""
    asked = spec.train.accelerator
    if asked != "auto" and ("cpu" if asked == "cpu" else "gpu") not in tier_class.accelerators:
        only = "the CPU" if tier_class.accelerators == {"cpu"} else "a GPU"
        raise AcceleratorError(
            f"tier '{row.name}' runs on {only} only, and the accelerator asked for is '{asked}'",
            hint="--accelerator auto picks what each tier can use",
        )
    if spec.train.precision not in tier_class.precisions:
        raise AcceleratorError(
            f"tier '{row.name}' does not compute in {spec.train.precision}",
            hint=f"it computes in: {', '.join(sorted(tier_class.precisions))}",
        )
    if spec.net.bias and not tier_class.supports_bias:
        raise PluginError(f"tier '{row.name}' has no biases", hint="--no-bias")
