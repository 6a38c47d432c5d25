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
# Of fewer the whole range holds the median with less than 95 %.
FEWEST_ROUNDS = 6


@dataclass(frozen=True)
class Timing:
    """Seconds a step, or a ratio of two of them: the median of all rounds, and an interval for it.

    Attributes:
        median: The median.
        low: Lower end of a 95 % interval; where there are fewer than six rounds, of the range of them.
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

    def over(self, other: Timing) -> Timing:
        """How many times as long it takes as another: the ratios round by round, with their interval.

        A slow minute is in both sides of a ratio, and in one side only of a quotient of medians.
        """
        return Timing.of([a / b for a, b in zip(self.rounds, other.rounds, strict=True)])


def interval_label(rounds: int) -> str:
    """What lies between the ends of a timing: no interval at all can be given for a few rounds."""
    return f"range of {rounds} rounds" if rounds < FEWEST_ROUNDS else "95 % interval"


@dataclass(frozen=True)
class Row:
    """One tier on one problem.

    Attributes:
        tier: The tier.
        distribution: The distribution that offers it, and its version.
        timings: By mode: "bare", "lightning", "tracked".
        beside: By mode of a training: a bare loop that took turns with it.
        against: By mode of a training: another tier's bare loop, likewise, if that was asked for.
        first_step: Seconds of the first step on the problem, compilation included, the constructor's too.
        once: What the first two steps took beyond two later ones, and making the tier beyond making it again:
            what is compiled, captured and set up once.
        gflops: Arithmetic of the bare loop, 10^9 operations of the five matrix products a second.
        floor: These products alone, half of them before the bare loop and half after it.
        floor_share: Their time as a share of a bare step's.
        peak_mb: The most memory that a bare round held beyond what the process had, 10^6 bytes, on CUDA that
            of the tensors; the median of all rounds, as a first one may compile.
        proof: What was proven and audited.
        sending: Seconds of a tracked step that are the store's, the median; None where nothing was tracked.
    """

    tier: str
    distribution: str
    timings: dict[str, Timing]
    beside: dict[str, Timing]
    first_step: float
    once: float
    gflops: float
    floor: Timing
    floor_share: float
    peak_mb: float
    proof: str
    sending: float | None = None
    against: dict[str, Timing] = field(default_factory=dict)

    def tax(self, mode: str) -> Timing:
        """How many times as long a step takes in a training as in the bare loop beside it."""
        return self.timings[mode].over(self.beside[mode])

    def tax_against(self, mode: str) -> Timing:
        """The same, of the bare loop of the other tier."""
        return self.timings[mode].over(self.against[mode])


@dataclass(frozen=True)
class PeerRow:
    """What somebody else's way to train takes on one problem.

    Attributes:
        peer: Its name.
        distribution: The distribution that it is made with, and its version.
        mode: What a step of it includes: "bare", or "tracked", every loss in MLflow.
        timing: Seconds a step.
        ratio: How many times as long it takes as `custom-module` in the same mode and rounds; None where that
            was not measured.
        ratio_ends: The ends of its interval; None as above.
        audit: What was audited.
    """

    peer: str
    distribution: str
    mode: str
    timing: Timing
    ratio: float | None
    ratio_ends: tuple[float, float] | None
    audit: str


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
        peers: What else was measured beside them, if that was asked for.
        peers_refused: The peers that failed or did something else, and why.
    """

    batch_size: int
    d_in: int
    hidden: int
    d_out: int
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    peers: list[PeerRow] = field(default_factory=list)
    peers_refused: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The sizes: N, D_in, H, D_out."""
        return "x".join(map(str, self.sizes))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, D_in, H, D_out."""
        return self.batch_size, self.d_in, self.hidden, self.d_out

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
        seconds: About how long a round was to be.
        precision: "32-true" or "64-true".
        configs: One entry a problem.
        against: The tier with whose bare loop every training took turns too; empty where there was none.
        seed: What the problems were drawn from.
        peers_missing: The peers that are not installed, and what installs them.
        stopped: What ended it before the rounds that were asked for; empty where nothing did.
        run_id: The MLflow run that holds the bench.
        experiment: Its experiment.
        tracking_uri: Where it is recorded, without credentials.
        picture: The PNG; empty where there is none.
        picture_fault: Why it could not be drawn.
        unsent: What of the record could not be sent.
    """

    machine: dict[str, Any]
    date: str
    rounds: int
    seconds: float
    precision: str
    configs: list[Config] = field(default_factory=list)
    against: str = ""
    seed: int = 0
    peers_missing: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    run_id: str = ""
    experiment: str = ""
    tracking_uri: str = ""
    picture: str = ""
    picture_fault: str = ""
    unsent: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether all who were asked for and are installed have all their rounds, and the record is whole."""
        refused = any(config.refused or config.peers_refused for config in self.configs)
        return self.unsent is None and not refused and not self.stopped

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ok": self.ok}

    def as_json(self) -> str:
        """The report as JSON; numbers that JSON does not know are null."""
        return json.dumps(json_safe(self.as_dict()), indent=2)
