"""What a comparison says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from layerlab.report import json_safe


@dataclass
class Pair:
    """Two tiers, compared at every step.

    Attributes:
        leader: The first one.
        follower: The other one.
        compared: What could be compared: "loss", "y_pred", "gradients", "parameters".
        steps: Steps that agree.
        worst: The largest difference, as a share of what rounding may make of it.
        resolution: The smallest error in whatever was compared, as a share of it, that would have shown had
            it been made at every step: long sums leave room for rounding, and what fits in is not seen.
        part: Where they part: step, tensor, index, actual (the follower's), expected, bound; None where they
            do not.
        said: The same in words.
        notes: What could not be compared, and why.
    """

    leader: str
    follower: str
    compared: list[str] = field(default_factory=list)
    steps: int = 0
    worst: float = 0.0
    resolution: float = 0.0
    part: dict[str, Any] | None = None
    said: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class CompareReport:
    """What `layerlab.compare` returns.

    Attributes:
        tiers: The tiers, the leader first.
        steps: Steps that were made.
        pairs: One entry a follower.
        final_losses: The loss of each tier's last step, trained on its own.
        run_id: The MLflow run that holds the comparison.
        experiment: Its experiment.
        tracking_uri: Where it is recorded, without credentials.
        picture: The PNG with the loss curves.
        unsent: What of the record could not be sent.
    """

    tiers: list[str]
    steps: int = 0
    pairs: list[Pair] = field(default_factory=list)
    final_losses: dict[str, float] = field(default_factory=dict)
    run_id: str = ""
    experiment: str = ""
    tracking_uri: str = ""
    picture: str = ""
    unsent: dict[str, Any] | None = None

    @property
    def agree(self) -> bool:
        """Whether no two tiers part."""
        return all(pair.part is None for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "agree": self.agree}

    def as_json(self) -> str:
        """The report as JSON; numbers that JSON does not know are null."""
        return json.dumps(json_safe(self.as_dict()), indent=2)


@dataclass
class RunsReport:
    """What `layerlab.compare_runs` returns.

    Attributes:
        runs: Of each run its id, name, tier, status and number of recorded losses.
        params: Parameters and the pair of their values, where they differ; None where a run has none.
        figures: Final figures and the pair of their values.
        losses: How the loss curves compare: steps both have, the first one that differs, the largest relative
            difference and its step.
        run_id: The MLflow run that holds the comparison.
        experiment: Its experiment.
        tracking_uri: Where it is recorded, without credentials.
        picture: The PNG with the loss curves; empty where neither run has one.
        unsent: What of the record could not be sent.
    """

    runs: list[dict[str, Any]]
    params: dict[str, list[str | None]] = field(default_factory=dict)
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    experiment: str = ""
    tracking_uri: str = ""
    picture: str = ""
    unsent: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def as_json(self) -> str:
        """The report as JSON; numbers that JSON does not know are null."""
        return json.dumps(json_safe(self.as_dict()), indent=2)
