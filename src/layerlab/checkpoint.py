"""Checkpoints of runs: where they are, what is in them, and which are refused."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from layerlab.errors import CheckpointError, looked_at, one_line
from layerlab.folder import CHECKPOINTS, is_run_id

SUFFIX = ".ckpt"
_NAME = re.compile(r"step-(\d+)\.ckpt")
_FIELDS = {
    "run_id": str,
    "tracking_uri": str,
    "spec": dict,
    "tier": str,
    "distribution": str,
    "tier_version": str,
    "version": str,
    "data_digest": str,
}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself.

    Attributes:
        path: The file.
        step: Updates that were made.
        run_id: The MLflow run.
        tracking_uri: Its store, without credentials.
        spec: Its resolved spec, as plain values.
        tier: The name of its tier.
        distribution: The distribution that offers the tier.
        tier_version: The version of that distribution.
        version: The layerlab that wrote it.
        data_digest: Of the data.
        round_steps: Steps between two validations, or None.
    """

    path: Path
    step: int
    run_id: str
    tracking_uri: str
    spec: dict[str, Any]
    tier: str
    distribution: str
    tier_version: str
    version: str
    data_digest: str
    round_steps: int | None


def folder_of(run_id: str) -> Path:
    """Where the checkpoints of a run are, in this folder."""
    return CHECKPOINTS / run_id


def path_of(run_id: str, step: int) -> Path:
    """Where the checkpoint of a run after ``step`` updates is."""
    return folder_of(run_id) / f"step-{step}{SUFFIX}"


def of_run(run_id: str) -> list[Path]:
    """The checkpoints of a run, the latest first.

    Raises:
        CheckpointError: Nobody may look.
    """
    found = {path: _NAME.fullmatch(path.name) for path in _inside(folder_of(run_id))}
    steps = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def runs() -> list[str]:
    """The runs that have checkpoints in this folder.

    Raises:
        CheckpointError: Nobody may look.
    """
    with looked_at(CHECKPOINTS, CheckpointError):
        return sorted(path.name for path in _inside(CHECKPOINTS) if path.is_dir())


def _inside(folder: Path) -> list[Path]:
    with looked_at(folder, CheckpointError):
        return list(folder.iterdir()) if folder.is_dir() else []


def read(path: Path) -> Checkpoint:
    """Reads what a checkpoint says of itself; tensors, numbers and text are all that is opened.

    Raises:
        CheckpointError: It is not there, damaged, none of layerlab's, or written by another version. The hint
            names the one before it.
    """
    import torch

    try:
        _refuse_damaged(path)
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        about, step = content["layerlab_run"], content["global_step"]
        if not (isinstance(step, int) and isinstance(content["layerlab"], dict)):
            raise TypeError
        if any(not isinstance(about[name], kind) for name, kind in _FIELDS.items()):
            raise TypeError
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {error.strerror}") from None
    except (KeyError, TypeError):
        raise CheckpointError(f"checkpoint {path} is none of a layerlab run", hint=before(path)) from None
    except Exception as error:  # noqa: BLE001 -- torch raises what the bytes make it raise
        reason = "is damaged" if not _is_pickle(error) else "holds more than tensors and numbers"
        raise CheckpointError(f"checkpoint {path} {reason}", hint=before(path)) from None
    if not is_run_id(about["run_id"]):
        raise CheckpointError(f"checkpoint {path} is none of a layerlab run", hint=before(path))
    if about["version"] != version("layerlab"):
        raise CheckpointError(
            f"checkpoint {path} was written by layerlab {one_line(about['version'])}, and this is "
            f"{version('layerlab')}",
            hint=f"pip install layerlab=={one_line(about['version'])}; or {before(path)}",
        )
    round_steps = about.get("round_steps")
    return Checkpoint(
        path=path,
        step=step,
        round_steps=round_steps if isinstance(round_steps, int) else None,
        **{name: about[name] for name in _FIELDS},
    )


def _refuse_damaged(path: Path) -> None:
    """Every part of the file has a checksum: one bit is enough to tell."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise zipfile.BadZipFile


def _is_pickle(error: Exception) -> bool:
    import pickle

    return isinstance(error, pickle.UnpicklingError)


def before(path: Path) -> str:
    """The checkpoint before one that cannot be used, as what the user can do."""
    earlier = of_run(path.parent.name)
    bad = _NAME.fullmatch(path.name)
    if path.parent.parent.name != CHECKPOINTS.name or not bad:
        return "name another one, or the run"
    for other in earlier:
        match = _NAME.fullmatch(other.name)
        if match and int(match[1]) < int(bad[1]):
            return f"the one before it: layerlab resume {other}"
    return f"remove it, and the run begins again at its first step: rm {path}"
