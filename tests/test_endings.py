"""However a run ends, its record says so: signals, tiers that fail, processes that start at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import layerlab
from helpers import TINY, Result, recorders_waited_for
from layerlab.console import report_text
from layerlab.errors import Interrupted
from layerlab.execution import Execution
from layerlab.journal import journals
from layerlab.report import Observer
from layerlab.signals import StopSignals
from layerlab.tracking import record

ENDLESS = (
    "run",
    "--plugin",
    "nn",
    "--steps",
    10**9,
    "--n",
    4,
    "--d-in",
    3,
    "--d-out",
    2,
    "--hidden",
    3,
    "--json",
)


def start(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "layerlab", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def until_it_trains(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert process.stderr.readline() == f"nn: {10**9} steps\n"


@pytest.mark.parametrize("offline", [False, True])
def test_a_run_that_fails_before_its_record_is_there(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch, *, offline: bool
) -> None:
    """Nobody had asked for its journal: it has one, or its run, that says FAILED."""

    def module(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Execution, "_module", module)
    with pytest.raises(MemoryError):
        layerlab.run(plugin="nn", **TINY, offline=offline)
    if offline:
        layerlab.sync()
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert (run.info.status, run.data.tags["layerlab.reason"]) == ("FAILED", "MemoryError:")
    assert journals() == []


def test_a_run_that_is_stopped_before_its_record_is_there_names_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no id: no command goes on with it."""
    module = Execution._module

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return module(*arguments)

    monkeypatch.setattr(Execution, "_module", stopped)
    with pytest.raises(Interrupted) as interrupted:
        layerlab.run(plugin="nn", **TINY)
    report = interrupted.value.report
    assert [(run.status, run.run_id) for run in report.runs] == [("KILLED", "")]
    assert "resume" not in report_text(report)


def test_a_run_whose_journal_could_not_be_made_names_none(empty_folder: Path) -> None:
    """Its folder became a file after it was looked at: the run is FAILED, and nothing is to be sent."""

    class Taken(Observer):
        def stage(self, text: str) -> None:
            if text == "opening the tracking store":
                Path(".layerlab").write_text("")

    report = layerlab.run(plugin="nn", **TINY, offline=True, observer=Taken())
    (run,) = report.runs
    assert (run.status, run.run_id, run.offline) == ("FAILED", "", True)
    assert "offline" not in report_text(report)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_killed_with_all_it_did(
    folder: Path, client: Any, signum: signal.Signals, code: int
) -> None:
    """The block in hand is finished, every loss is recorded, the run is KILLED, nothing is exported."""
    process = start(*ENDLESS, cwd=folder)
    until_it_trains(process)
    with recorders_waited_for(process.pid):
        process.send_signal(signum)
        result = finish(process)
    (run,) = json.loads(result.stdout)["runs"]
    assert (result.code, run["status"], run["error"]) == (code, "KILLED", f"stopped by {signum.name}")
    kept = client.get_run(run["run_id"])
    assert kept.info.status == "KILLED"
    assert kept.info.end_time is not None
    assert kept.data.tags["layerlab.reason"] == run["error"]
    steps = sorted(m.step for m in client.get_metric_history(run["run_id"], "loss"))
    assert steps == list(range(run["steps"]))
    assert run["onnx"] is None
    assert not (folder / "models").exists()


def test_a_second_interrupt_stops_at_once_and_still_closes_the_record(folder: Path, client: Any) -> None:
    """Two SIGINTs: exit 130, and the run is KILLED, not RUNNING for ever."""
    process = start(*ENDLESS, cwd=folder)
    until_it_trains(process)
    with recorders_waited_for(process.pid):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert finish(process).code == 130
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert run.info.status == "KILLED"


def test_a_signal_before_training_leaves_nothing_behind(empty_folder: Path) -> None:
    """While torch is still being imported there is no run to close: exit 130, and no run is RUNNING."""
    process = start(*ENDLESS, cwd=empty_folder)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.code, result.stderr) == (130, "error: stopped by SIGINT\n")
    assert not (empty_folder / "mlruns").exists()


def test_signals_are_only_noted_and_given_back() -> None:
    """Inside the context a signal waits until it is asked for; outside the old handlers are there again."""
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as raised:
            stop.check()
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


TIER = """
import sys
from layerlab import Params, Recipe, Tier

class {name}(Tier):
    recipe = Recipe(lr=1e-4)
    calls = 0
    def __init__(self, params, *, lr, device, dtype):
        self.p = params
    def forward(self, x):
        return (x.numpy() @ self.p.w1) @ self.p.w2
    def step(self, x, y):
        type(self).calls += 1
        if type(self).calls == 6:
            {fault}
        return 1.0
    def params(self):
        return self.p
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A distribution with tiers that raise at a step, leave by `sys.exit`, and lose their parameters."""
    site = tmp_path / "site"
    info = site / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    points = "[layerlab.tiers]\nraising = faulty_tiers:Raising\nleaving = faulty_tiers:Leaving\n"
    points += "losing = faulty_tiers:Losing\n"
    (info / "entry_points.txt").write_text(points)
    raising = TIER.format(name="Raising", fault="raise ValueError('no more')")
    losing = (
        "class Losing(Leaving):\n    calls = 6\n    def params(self):\n        raise ValueError('lost')\n"
    )
    text = raising + TIER.format(name="Leaving", fault="sys.exit(3)") + losing
    (site / "faulty_tiers.py").write_text(text)
    return {"PYTHONPATH": str(site), "LAYERLAB_PLUGINS": "faulty"}


def test_tiers_that_fail_are_recorded_with_their_reason(
    folder: Path, client: Any, faulty: dict[str, str]
) -> None:
    """An error names tier and step and keeps its traceback; `sys.exit` in a tier is such an error."""
    arguments = ("--n", 4, "--d-in", 3, "--d-out", 2, "--hidden", 3, "--json")
    tiers = ("--plugin", "losing", "--plugin", "raising", "--plugin", "leaving")
    process = start("run", *tiers, *arguments, cwd=folder, env=faulty)
    result = finish(process)
    runs = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    ended = {run.info.run_name: run for run in runs}
    assert result.code == 1
    assert ended["losing"].info.status == "FAILED"
    assert "tier 'losing': params failed: ValueError: lost" in ended["losing"].data.tags["layerlab.reason"]
    assert ended["raising"].info.status == "FAILED"
    assert (
        ended["raising"]
        .data.tags["layerlab.reason"]
        .startswith("tier 'raising': step 5 failed: ValueError: no more (3 hidden, batch 4, cpu, 32-true)")
    )
    path = client.download_artifacts(ended["raising"].info.run_id, "traceback.txt", folder)
    assert "raise ValueError('no more')" in Path(path).read_text()
    assert ended["leaving"].info.status == "FAILED"
    assert "step 5 failed: SystemExit: 3" in ended["leaving"].data.tags["layerlab.reason"]
    assert "raising: FAILED: tier 'raising': step 5 failed" in result.stderr


def test_an_interrupt_after_the_training_takes_nothing_from_it(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is whole: FINISHED, with its model; no other tier begins, and the command is interrupted."""
    monkeypatch.setattr(record, "PATIENCE", 60.0)  # whoever interrupts waits no longer

    class AtTheExport(Observer):
        def stage(self, text: str) -> None:
            if text.startswith("exporting"):
                os.kill(os.getpid(), signal.SIGINT)

    for tiers in (["nn", "optim"], ["nn"]):
        with pytest.raises(Interrupted) as interrupted:
            layerlab.run(plugin=tiers, **TINY, observer=AtTheExport())
        (run,) = interrupted.value.report.runs
        assert (run.tier, run.status, run.unsent) == ("nn", "FINISHED", None)
        assert Path(run.onnx["path"]).is_file()
        assert client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_processes_that_start_at_once_in_a_fresh_folder_all_succeed(empty_folder: Path) -> None:
    """Three processes make the same database at the same time; each ends with its run FINISHED."""
    tiers = ["numpy", "tensors", "nn"]
    small = ("--steps", 5, "--n", 4, "--d-in", 3, "--json")
    processes = [start("run", "--plugin", tier, *small, cwd=empty_folder) for tier in tiers]
    results = [finish(process) for process in processes]
    assert [r.code for r in results] == [0, 0, 0], [r.stderr for r in results]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{empty_folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        (t, "FINISHED") for t in sorted(tiers)
    ]
    assert all(len(client.get_metric_history(run.info.run_id, "loss")) == 5 for run in runs)
