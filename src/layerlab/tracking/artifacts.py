"""Artifacts, kept where the store said that they go.

`MlflowClient.log_text` and `log_model_artifacts` would ask the store for it, which loads all that it has of
the run or the model. Whoever has made or loaded it was told.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient


def keep_text(client: MlflowClient, location: str, text: str, name: str) -> None:
    """Keeps a text.

    Args:
        client: MLflow's client of the store.
        location: Where the artifacts of the run are, as the store says it.
        text: The text.
        name: What the file is called there.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(text, "utf-8")
        _repository(client, location).log_artifact(str(path))


def keep_folder(client: MlflowClient, location: str, folder: Path) -> None:
    """Keeps the files of a folder.

    Args:
        client: MLflow's client of the store.
        location: Where the artifacts of the model are, as the store says it.
        folder: The folder; its files come right there.
    """
    _repository(client, location).log_artifacts(str(folder))


def _repository(client: MlflowClient, location: str) -> Any:
    """An `ArtifactRepository`, as MLflow's client has it, once it has asked."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

    # MLflow's is untyped
    uri = add_databricks_profile_info_to_artifact_uri(location, client.tracking_uri)  # type: ignore[no-untyped-call]
    return get_artifact_repository(uri, tracking_uri=client.tracking_uri)
