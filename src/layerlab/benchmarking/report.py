"""What a bench says of itself."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from layerlab.report import json_safe

if TYPE_CHECKING:
    from collections.abc import Sequence

# What is measured of each tier: the tier alone, its framework, and its record.
MODES = ("bare", "lightning", "tracked")


@dataclass(frozen=True)
class Timing:
    """Seconds a step: the median of all rounds, and an interval for it.

    Attributes:
        median: The median.
        low: Lower end of a 95 % interval, or of all rounds where there are fewer than six.
        high: Upper end.
        rounds: Every round.
    """

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Timing:
        """The timing of some rounds.

        The interval is between order statistics, which asks nothing of the distribution: the median lies
        outside of the k-th smallest and largest with a probability that the binomial distribution gives
        (Conover, "Practical Nonparametric Statistics", 3rd ed., 3.2).
        """
        ranked, n = sorted(rounds), len(rounds)
        k = 0
        while k + 1 < n / 2 and 2 * sum(math.comb(n, i) for i in range(k + 2)) / 2**n <= 0.05:
            k += 1
        middle = (ranked[(n - 1) // 2] + ranked[n // 2]) / 2
        return cls(middle, ranked[k], ranked[n - 1 - k], tuple(rounds))


@dataclass(frozen=True)
class Row:
    """One tier on one problem.

    Attributes:
        tier: The tier.
        distribution: The distribution that offers it, and its version.
        timings: By mode: "bare", "lightning", "tracked".
        first_step: Seconds of the first step of all, compilation included.
        gflops: Arithmetic of the bare loop, 10^9 operations of the five matrix products a second.
        floor_share: The time of these products alone, measured in the same rounds, as a share of a bare step.
        peak_mb: Most memory of the process, 10^6 bytes; on CUDA that of the tensors.
        proof: What was proven and audited.
    """

    tier: str
    distribution: str
    timings: dict[str, Timing]
    first_step: float
    gflops: float
    floor_share: float
    peak_mb: float
    proof: str


@dataclass
class Config:
    """One problem, and the tiers on it.

    Attributes:
        batch_size: Rows a step.
        d_in: Inputs.
        hidden: Hidden units.
        d_out: Outputs.
        rows: The tiers that passed.
        refused: The tiers that did not, and why.
    """

    batch_size: int
    d_in: int
    hidden: int
    d_out: int
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The sizes: N, D_in, H, D_out."""
        return f"{self.batch_size}x{self.d_in}x{self.hidden}x{self.d_out}"

    @property
    def operations(self) -> int:
        """Additions and multiplications of the five matrix products of a step."""
        return 2 * self.batch_size * self.hidden * (2 * self.d_in + 3 * self.d_out)


@dataclass
class BenchReport:
    """What `layerlab.benchmarking` returns.

    Attributes:
        machine: Where it ran, and with which settings and versions.
        date: When, in UTC.
        rounds: Rounds of each tier, mode and problem.
        configs: One entry a problem.
        run_id: The MLflow run that holds the bench.
        experiment: Its experiment.
        tracking_uri: Where it is recorded, without credentials.
        picture: The PNG.
        unsent: What of the record could not be sent.
    """

    machine: dict[str, Any]
    date: str
    rounds: int
    configs: list[Config] = field(default_factory=list)
    run_id: str = ""
    experiment: str = ""
    tracking_uri: str = ""
    picture: str = ""
    unsent: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether every tier that was asked for has its rows, and the record is whole."""
        return self.unsent is None and not any(config.refused for config in self.configs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ok": self.ok}

    def as_json(self) -> str:
        """The report as JSON; numbers that JSON does not know are null."""
        return json.dumps(json_safe(self.as_dict()), indent=2)
