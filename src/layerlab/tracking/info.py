"""What is recorded of a run before it starts, in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerlab.steps import Steps

# The tag by which a run that was recorded without a store is found in the store that gets it.
OFFLINE_TAG = "layerlab.offline_id"


@dataclass(frozen=True)
class DatasetInfo:
    """A data set, in the words of `mlflow.entities.Dataset`.

    Attributes:
        name: What it is called.
        digest: Equal for equal data.
        source_type: Where it comes from: "local", "code".
        source: More of that, as JSON.
        schema: Types and shapes, as JSON.
        profile: Sizes, as JSON.
    """

    name: str
    digest: str
    source_type: str
    source: str
    schema: str
    profile: str


@dataclass(frozen=True)
class RunInfo:
    """What is recorded of a run before it starts.

    Attributes:
        experiment: Name of the experiment; it is made if it is not there.
        name: Name of the run.
        params: Flat parameters.
        tags: Flat tags.
        spec_yaml: The resolved spec, kept as ``spec.yaml``; None: there is none.
        dataset: The data set; None: there is none.
    """

    experiment: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    spec_yaml: str | None = None
    dataset: DatasetInfo | None = None


@dataclass(frozen=True)
class KnownRun:
    """What is recorded of a run that has ended.

    Attributes:
        run_id: Of the MLflow run.
        status: FINISHED, FAILED, KILLED; RUNNING where nobody could say how it ended.
        experiment: Name of its experiment.
        spec_yaml: Its resolved spec; None: it has none.
        data_digest: Of its data; None: not known.
        recorded: The steps of every metric that it has.
        tags: Its tags.
        state: Differs once somebody else went on with the run.
    """

    run_id: str
    status: str
    experiment: str
    spec_yaml: str | None
    data_digest: str | None
    recorded: Mapping[str, Steps]
    tags: Mapping[str, str]
    state: str = ""
