"""From a spec to jobs: all that can be refused is refused here, the cheap checks before the heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerlab import registry
from layerlab.data import check_table, load_prepared
from layerlab.data.room import check_memory
from layerlab.errors import AcceleratorError, PluginError, SpecError, one_line
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
    """Checks all that can be checked without recording anything: `read`, then `assign`.

    Returns:
        One job a tier, and the data that all of them see.

    Raises:
        InputError: Something cannot be done as asked.
    """
    rows, prepared = read(spec, stage)
    return assign(spec, rows, prepared, stage), prepared


def read(spec: ExperimentSpec, stage: Callable[[str], None]) -> tuple[list[TierRow], Prepared]:
    """Finds the tiers and reads the data, for which neither torch nor Lightning is needed.

    Args:
        spec: The experiment.
        stage: Told what begins, where it may take a moment.

    Returns:
        Where the tiers come from, and the data that all of them see.

    Raises:
        InputError: Something cannot be done as asked.
    """
    if spec.data.is_table:
        check_table(spec.data.name)
    elif spec.data.name == RANDOM:
        _check_batch(spec, spec.data.n or DEFAULT_SIZES["n"])
    rows = registry.select(spec.plugins)
    stage(f"reading the data: {one_line(spec.data.name)}")
    prepared = load_prepared(spec, stage)
    _check_batch(spec, len(prepared.train))
    n_in, n_out = prepared.dataset.x.shape[1], prepared.dataset.y.shape[1]
    hidden = spec.net.hidden
    check_memory(
        f"net.hidden: the parameters of {n_in} inputs, {hidden} hidden units and {n_out} outputs",
        hidden * (n_in + n_out),
    )
    return rows, prepared


def assign(
    spec: ExperimentSpec, rows: list[TierRow], prepared: Prepared, stage: Callable[[str], None]
) -> list[Job]:
    """Loads the tiers, and says what each is to do and where.

    Args:
        spec: The experiment.
        rows: Where the tiers come from.
        prepared: The data.
        stage: Told what begins, where it may take a moment.

    Returns:
        One job a tier.

    Raises:
        InputError: Something cannot be done as asked.
    """
    n_train = len(prepared.train)
    stage("loading the tiers")
    tiers = [(row, registry.load(row)) for row in rows]
    resolved = []
    for row, tier_class in tiers:
        name = f"{spec.name}-{row.name}" if spec.name and len(rows) > 1 else spec.name or row.name
        resolved.append(spec.resolved(row.selector, tier_class.recipe, run_name=name, n_train=n_train))
        _check_tier(row, tier_class, resolved[-1])
    return [
        Job(row, tier_class, single, choose_accelerator(single, row.name, tier_class))
        for (row, tier_class), single in zip(tiers, resolved, strict=True)
    ]


def total_steps(spec: ExperimentSpec, n_train: int) -> int:
    """How many updates a resolved spec asks for.

    Args:
        spec: The spec.
        n_train: Rows to train on.
    """
    train = spec.train
    assert train.batch_size is not None  # a resolved spec has it
    return train.steps or (train.epochs or 0) * math.ceil(n_train / train.batch_size)


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
    if spec.train.checkpoint_every is not None and not tier_class.resumable():
        raise PluginError(
            f"tier '{row.name}' cannot be saved: it has no state() and load_state()",
            hint="leave --checkpoint-every out",
        )
    if spec.net.bias and not tier_class.supports_bias:
        raise PluginError(f"tier '{row.name}' has no biases", hint="--no-bias")
