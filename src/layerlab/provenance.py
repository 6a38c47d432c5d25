"""Where a run comes from, in MLflow's terms: the data, the user, the code."""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

from layerlab.liveness import this_process
from layerlab.tracking.info import DatasetInfo

if TYPE_CHECKING:
    from layerlab.data.dataset import Dataset


def describe_dataset(dataset: Dataset, target: tuple[str, ...]) -> DatasetInfo:
    """A data set in MLflow's terms.

    Args:
        dataset: The data.
        target: Names of the target columns of a file.
    """

    def tensor(width: int) -> str:
        spec = {"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, width]}}
        return json.dumps([spec])

    rows, n_in = dataset.x.shape
    n_out = dataset.y.shape[1]
    local = dataset.source not in {"generated", "scikit-learn"}
    made = f"{dataset.source}: {dataset.name}"
    return DatasetInfo(
        name=dataset.name[:500],
        digest=dataset.digest,
        source_type="local" if local else "code",
        source=json.dumps({"uri": dataset.source} if local else {"tags": {"mlflow.source.name": made}}),
        schema=json.dumps({"mlflow_tensorspec": {"features": tensor(n_in), "targets": tensor(n_out)}}),
        profile=json.dumps(
            {"num_rows": rows, "num_features": n_in, "num_targets": n_out, "target": list(target)}
        ),
    )


def source_tags(command: str) -> dict[str, str]:
    """Tags for who ran what: user, command, process, and the git commit of this folder if it has one."""
    tags = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    tags |= {f"layerlab.{name}": str(value) for name, value in this_process().items()}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        tags["mlflow.user"] = str(os.getuid())
    try:
        tags["mlflow.source.git.commit"] = _git("rev-parse", "HEAD")
        if not _folder_has_filters():
            changed = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
            tags["layerlab.git_dirty"] = str(bool(changed)).lower()
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or no repository: then there is no commit to name
    return tags


def _folder_has_filters() -> bool:
    """Whether the repository's own configuration names filters: looking for changes, git would run them."""
    names = _git("config", "--list", "--name-only", "--show-scope")
    return re.search(r"^(local|worktree)\s+filter\.", names, re.MULTILINE) is not None


def _git(*arguments: str) -> str:
    """What git says; it runs no program that the repository names, and fetches nothing."""
    done = subprocess.run(
        ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments],
        capture_output=True,
        text=True,
        errors="replace",  # names of files are bytes
        env={**os.environ, "GIT_ALLOW_PROTOCOL": ""},
        timeout=5,
        check=True,
    )
    return done.stdout.strip()
