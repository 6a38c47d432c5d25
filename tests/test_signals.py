"""Signals that come again, and while the record is being closed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import recorders_waited_for
from layerlab import cli
from layerlab.conformance.world import Kept
from layerlab.modelfile import ModelFile
from layerlab.tiers.tensors import TensorsTier

STEPS = 10**9
ENDLESS = f"run -p nn --steps {STEPS} --n 4 --d-in 3 --d-out 2 --hidden 3 --json".split()
# A training computes: so many looks in a row, a millisecond apart, find it asleep only when it waits.
ASLEEP = 200


@pytest.fixture
def training(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a training that would take days."""
    process = subprocess.Popen(
        [sys.executable, "-m", "layerlab", *ENDLESS],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"nn: {STEPS} steps\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def until_it_waits(process: subprocess.Popen[str]) -> None:
    """Returns when the main thread of a process no longer computes."""
    stat = Path(f"/proc/{process.pid}/task/{process.pid}/stat")
    pause, asleep = threading.Event(), 0
    while asleep < ASLEEP:
        assert process.poll() is None, "it ended although its store takes nothing"
        asleep = asleep + 1 if stat.read_text().rpartition(")")[2].split()[0] == "S" else 0
        pause.wait(0.001)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("check", "within", "at"),
    [
        ("full-batch", (TensorsTier, "backward"), 5),
        ("params-are-copies", (TensorsTier, "backward"), 5),
        ("export-agrees", (ModelFile, "run"), 1),
    ],
)
def test_a_signal_ends_a_check(
    empty_folder: Path,
    layerlab_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
    check: str,
    within: tuple[type, str],
    at: int,
) -> None:
    """Wherever it comes: it is no verdict on the tier, and no file has one."""
    made = signalled(monkeypatch, *within, at, signum)
    result = layerlab_cli("check", "tensors", "--only", check, "--junit", "checks.xml")
    assert (result.code, result.stdout) == (128 + signum, "")
    assert result.stderr.splitlines()[-1] == f"error: stopped by {signum.name}"
    assert len(made) == at
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_no_verdict_on_a_file(
    folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    """Of `verify`, in the midst of onnxruntime."""
    assert layerlab_cli("run", "-p", "nn", "--steps", 3, "--n", 4, "--d-in", 3).code == 0
    (model,) = Path("models").glob("*.onnx")

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None:
            signal.raise_signal(signum)

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    result = layerlab_cli("verify", model)
    assert (result.code, result.stdout) == (128 + signum, "")
    assert result.stderr == f"error: stopped by {signum.name}\n"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_while_the_first_is_told_is_let_be(
    empty_folder: Path,
    layerlab_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
    first: signal.Signals,
    second: signal.Signals,
) -> None:
    """Of either kind: the command is ending."""
    signalled(monkeypatch, TensorsTier, "backward", 1, first)
    told = cli.complain
    monkeypatch.setattr(cli, "complain", lambda error: (signal.raise_signal(second), told(error)))
    result = layerlab_cli("check", "tensors", "--only", "full-batch")
    assert result.code == 128 + first
    assert result.stderr.splitlines()[-1] == f"error: stopped by {first.name}"


def test_what_a_signal_breaks_on_its_way_out_is_not_told(
    empty_folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cleans up may need what was half imported when it came."""
    signalled(monkeypatch, TensorsTier, "backward", 1, signal.SIGTERM)
    restore = Kept.restore

    def broken(self: Kept) -> None:
        restore(self)
        raise AttributeError("partially initialized module")

    monkeypatch.setattr(Kept, "restore", broken)
    result = layerlab_cli("check", "tensors", "--only", "full-batch")
    assert (result.code, result.stdout, result.stderr) == (143, "", "error: stopped by SIGTERM\n")


def signalled(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, at: int, signum: signal.Signals
) -> list[int]:
    """Has a signal come with one of the calls of a method; the calls."""
    made, method = list[int](), getattr(owner, name)

    def called(*args: Any) -> Any:
        made.append(1)
        if len(made) == at:
            signal.raise_signal(signum)
        return method(*args)

    monkeypatch.setattr(owner, name, called)
    return made


def recorded(client: Any) -> Any:
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    return run


def test_an_interrupt_while_the_record_is_closed_leaves_it_killed(
    training: subprocess.Popen[str], folder: Path, client: Any
) -> None:
    """A locked store holds up the closing; a second SIGINT during it does not leave a RUNNING run."""
    with recorders_waited_for(training.pid):
        lock = sqlite3.connect(folder / "mlflow.db", isolation_level=None, timeout=30)
        try:
            lock.execute("BEGIN IMMEDIATE")
            training.send_signal(signal.SIGINT)
            until_it_waits(training)
            training.send_signal(signal.SIGINT)
            lock.execute("ROLLBACK")
        finally:
            lock.close()
        _, err = training.communicate(timeout=60)
    run = recorded(client)
    assert (training.returncode, run.info.status) == (130, "KILLED")
    assert run.info.end_time is not None
    assert run.data.tags["layerlab.reason"] == "stopped by SIGINT"
    assert "Traceback" not in err


def test_an_impatient_user_gets_what_a_patient_one_gets(training: subprocess.Popen[str], client: Any) -> None:
    """SIGINT again and again until the process is gone: exit 130, KILLED, the report, no traceback."""
    with recorders_waited_for(training.pid):
        while training.poll() is None:
            training.send_signal(signal.SIGINT)
            try:
                training.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
    out, err = training.communicate(timeout=60)
    assert (training.returncode, recorded(client).info.status) == (130, "KILLED")
    assert "Traceback" not in err
    assert err.splitlines()[-1:] == ["error: stopped by SIGINT"]
    assert [run["status"] for run in json.loads(out)["runs"]] == ["KILLED"]
