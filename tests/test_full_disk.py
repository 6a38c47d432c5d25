"""Disks that are full, small file systems that are really mounted: one clear line, and no half file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

import layerlab
from helpers import TINY
from layerlab import journal
from layerlab.errors import InputError, JournalError
from layerlab.prediction import Predicted, write_csv
from layerlab.report import Observer
from layerlab.tracking import OfflineRecorder, RunInfo

ENDLESS = ["run", "-p", "nn", "--steps", "1000000000", "--n", "4", "--d-in", "3", "--hidden", "3", "--quiet"]
Mount = Callable[[Path, str], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a small file system on a folder; called again, it gets another size."""
    mounted: list[Path] = []

    def put(path: Path, size: str) -> None:
        again = path in mounted
        path.mkdir(exist_ok=True)
        options = f"size={size}" + (",remount" if again else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "layerlab", str(path)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a small file system needs rights that this process has not")
        if not again:
            mounted.append(path)

    yield put
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def losses(client: MlflowClient, run_id: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, "loss"))


def test_the_disk_of_the_journal_is_full(folder: Path, client: Any, mount: Mount, layerlab_cli: Any) -> None:
    """The run is FAILED with one line that says so; every step until then is in the store."""
    Path(".layerlab").mkdir()
    mount(folder / ".layerlab", "300k")
    result = layerlab_cli(
        "run", "-p", "nn", "--steps", 10**9, "--n", 4, "--d-in", 3, "--hidden", 3, "--quiet"
    )
    assert (result.code, result.stdout) == (1, "")
    first, hint = result.stderr.splitlines()
    assert first.startswith("error: nn: .layerlab/runs/")
    assert first.endswith("the record of the run cannot be written: No space left on device")
    assert hint.startswith("hint: ")
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert (run.info.status, run.data.tags["layerlab.reason"]) == (
        "FAILED",
        first.removeprefix("error: nn: "),
    )
    steps = losses(client, run.info.run_id)
    assert steps == list(range(len(steps)))
    assert len(steps) > 100
    assert journal.journals() == []
    assert not Path("models").exists()


@pytest.mark.slow
def test_the_disk_of_everything_is_full(
    empty_folder: Path, migrated_db: Path, tmp_path: Path, mount: Mount, layerlab_cli: Any
) -> None:
    """All on one disk: the run fails; once there is room again, sync makes the record whole."""
    disk = tmp_path / "disk"
    mount(disk, f"{migrated_db.stat().st_size // 1024 + 400}k")
    shutil.copy(migrated_db, disk / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(disk)
        result = layerlab_cli(*ENDLESS)
        assert result.code == 1
        assert "Traceback" not in result.stderr
        assert "No space left on device" in result.stderr
        assert all(line.startswith(("error: ", "hint: ")) for line in result.stderr.splitlines())
        mount(disk, "100m")
        assert layerlab_cli("sync", "--quiet").code == 0
        client = MlflowClient(f"sqlite:///{disk / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
        assert run.info.status == "FAILED"
        steps = losses(client, run.info.run_id)
        assert steps == list(range(len(steps)))
        assert len(steps) > 100
        assert journal.journals() == []


def test_predictions_that_do_not_fit_leave_those_that_were_there(empty_folder: Path, mount: Mount) -> None:
    """One line, and the file is the one before, whole."""
    path = empty_folder / "disk" / "out.csv"
    mount(path.parent, "64k")
    path.write_text("old")
    predicted = Predicted(["y"], np.arange(20_000, dtype=np.float64)[:, None], None)
    with pytest.raises(InputError, match=r"out\.csv: cannot be written: No space left on device$"):
        write_csv(predicted, path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def take_all_of(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    assert shutil.disk_usage(disk).free < 4096


def test_how_a_run_ended_has_room_on_a_full_disk(folder: Path, mount: Mount) -> None:
    """Whoever takes the rest of the disk: an entry is refused, and the longest reason is written."""
    Path(".layerlab").mkdir()
    mount(folder / ".layerlab", "400k")
    known = journal.Header("0" * 32, None, "sqlite:///mlflow.db", {"tags": {}}, "here", 1)
    with journal.Journal.create(known) as held:
        size = held.size()
    with journal.Journal(journal.path_of(known.run_id)) as held:
        take_all_of(folder / ".layerlab")
        with pytest.raises(JournalError, match="cannot be written: No space left on device"):
            held.append({"tags": {"key": "v" * 4096}})
        assert held.size() == size
        take_all_of(folder / ".layerlab")
        held.end("FAILED", "\N{GRINNING FACE}" * 6000)
        assert journal.finished(held.path)
        *_, (_, last) = journal.entries(held.path)
    assert (last["finish"], last["reason"]) == ("FAILED", "\N{GRINNING FACE}" * journal.LONGEST_REASON)


def test_a_run_without_a_store_cannot_be_gone_on_with(folder: Path, mount: Mount) -> None:
    """What it needs to begin does not fit: its journal says FAILED, with the reason, and nobody holds it."""
    Path(".layerlab").mkdir()
    mount(folder / ".layerlab", "400k")
    (run,) = layerlab.run(plugin="nn", **TINY, offline=True).runs
    path = journal.path_of(run.run_id)
    info = RunInfo(**{**journal.header(path).info, "dataset": None, "spec_yaml": "#" * 10**6})
    with OfflineRecorder() as recorder:
        recorder.open(None)
        record = recorder.resume_run(recorder.known(run.run_id), info)
        with pytest.raises(JournalError, match="cannot be written: No space left on device"):
            record.started()
    *_, before, (_, last) = journal.entries(path)
    assert before[1].keys() == {"tags"}
    assert last["finish"] == "FAILED"
    assert last["reason"].endswith("cannot be written: No space left on device")
    journal.Journal(path, alone=True).close()


@pytest.mark.slow
def test_the_disk_of_a_run_without_a_store_is_full(
    folder: Path, client: MlflowClient, mount: Mount, layerlab_cli: Any
) -> None:
    """Nobody else is there to say how it ended; a sync once there is room says it."""
    Path(".layerlab").mkdir()
    mount(folder / ".layerlab", "300k")
    result = layerlab_cli(*ENDLESS, "--offline")
    assert result.code == 1
    assert "No space left on device" in result.stderr
    mount(folder / ".layerlab", "10m")
    assert layerlab_cli("sync", "--quiet").code == 0
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert run.info.status == "FAILED"
    assert len(losses(client, run.info.run_id)) > 100


class Fill(Observer):
    """Takes what room there is on a disk, once the training has begun."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def started(self, tier: str, steps: int) -> None:
        free = shutil.disk_usage(self.disk).free
        (self.disk / "filler").write_bytes(bytes(max(0, free - 8192)))


def test_the_disk_of_the_checkpoints_is_full(folder: Path, client: Any, mount: Mount) -> None:
    """The checkpoint that does not fit is not there, not even half of it; the run is FAILED and says why."""
    mount(folder / "checkpoints", "1m")
    report = layerlab.run(
        plugin="optim", **{**TINY, "hidden": 500}, checkpoint_every=5, observer=Fill(folder / "checkpoints")
    )
    (run,) = report.runs
    assert run.status == "FAILED"
    assert (
        run.error
        == f"checkpoint checkpoints/{run.run_id}/step-5.ckpt cannot be written: No space left on device"
    )
    assert [path.name for path in (folder / "checkpoints" / run.run_id).iterdir()] == []
    assert losses(client, run.run_id) == list(range(5))
    assert client.get_run(run.run_id).info.status == "FAILED"
    (folder / "checkpoints" / "filler").unlink()
    resumed = layerlab.resume(run.run_id).runs[0]
    assert (resumed.status, losses(client, run.run_id)) == ("FINISHED", list(range(12)))


def test_the_disk_of_the_models_is_full(folder: Path, client: Any, mount: Mount) -> None:
    """No file, whole or half; the run is FAILED with its losses; resumed, it only exports."""
    mount(folder / "models", "1m")
    options = {**TINY, "hidden": 500}
    report = layerlab.run(plugin="nn", **options, observer=Fill(folder / "models"))
    (run,) = report.runs
    assert run.status == "FAILED"
    assert run.error is not None
    assert "No space left on device" in run.error
    assert [path.name for path in (folder / "models").iterdir()] == ["filler"]
    assert losses(client, run.run_id) == list(range(12))
    (folder / "models" / "filler").unlink()
    resumed = layerlab.resume(run.run_id).runs[0]
    assert (resumed.status, resumed.steps) == ("FINISHED", 12)
    assert resumed.onnx is not None
    assert Path(resumed.onnx["path"]).is_file()
    assert losses(client, run.run_id) == list(range(12))
