"""What a run says of itself: as text for people, as JSON for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class RunReport:
    """One tier trained once.

    Attributes:
        tier: Name of the tier.
        distribution: The distribution that offers it.
        version: The version of that distribution.
        status: How the run ended.
        run_id: Id of the MLflow run.
        experiment: Name of the MLflow experiment.
        steps: Updates that were made.
        first_loss: Loss before the first update.
        final_loss: Loss before the last update.
        val: Figures on the validation rows after the last update.
        device: Where it ran.
        seconds: Wall time of the parts: setup, train, export, total.
        onnx: The exported file: path, max_abs_diff, atol, rtol, batch_sizes; None where there is none.
        error: Why the run failed.
        hint: What can be done about it.
        unsent: Points that could not be sent to the tracking store, and where they are kept.
        offline: Whether it was recorded without the store, as asked.
        checkpoint: The last checkpoint that was written; "" where there is none.
    """

    tier: str
    distribution: str
    version: str
    status: Status
    run_id: str
    experiment: str
    steps: int = 0
    first_loss: float | None = None
    final_loss: float | None = None
    val: dict[str, float] = field(default_factory=dict)
    device: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    onnx: dict[str, Any] | None = None
    error: str | None = None
    hint: str | None = None
    unsent: dict[str, Any] | None = None
    offline: bool = False
    checkpoint: str = ""

    @property
    def ok(self) -> bool:
        """Whether the run did all that was asked, and its record is whole."""
        return self.status == "FINISHED" and (self.unsent is None or self.offline)


@dataclass
class Report:
    """What `layerlab.run` returns.

    Attributes:
        tracking_uri: Where the runs are recorded, without credentials.
        runs: One entry a tier, in the order in which they ran.
    """

    tracking_uri: str
    runs: list[RunReport] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every run is."""
        return all(run.ok for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"runs": [asdict(run) for run in self.runs], "tracking_uri": self.tracking_uri}

    def as_json(self) -> str:
        """The report as JSON; numbers that JSON does not know are null."""
        return json.dumps(json_safe(self.as_dict()), indent=2)


class Observer:
    """Somebody who watches runs; the methods do nothing until they are overridden."""

    def stage(self, text: str) -> None:
        """Something that takes a moment begins."""

    def started(self, tier: str, steps: int) -> None:
        """A tier begins to train for so many steps."""

    def resumed(self, tier: str, step: int) -> None:
        """A tier goes on from a checkpoint after so many steps; 0: there is none, and it begins again."""

    def advanced(self, step: int, loss: float) -> None:
        """So many steps are done, and this was the last loss."""

    def finished(self, run: RunReport) -> None:
        """A run ended, in whatever way."""

    def measuring(self, what: str, rounds: int) -> None:
        """A bench begins its rounds."""

    def measured(self, rounds: int) -> None:
        """So many rounds are done."""


def json_safe(value: Any) -> Any:
    """The value with None for every number that JSON has no word for: infinities and nan."""
    if isinstance(value, dict):
        return {key: json_safe(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
