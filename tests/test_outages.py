"""Stores that are gone, slow or in trouble, trainers that are killed: nothing is lost, nothing doubled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import layerlab
from helpers import TINY, recorders_waited_for, run_command
from layerlab import journal, syncing
from layerlab.console import sync_text
from layerlab.errors import Interrupted, JournalError, TrackingError
from layerlab.progress import Progress
from layerlab.report import Observer
from layerlab.tracking import OfflineRecorder, Recorder, RunInfo, opening
from servers import MlflowServer, Trouble

# One worker, so that one server of each kind is enough.
pytestmark = pytest.mark.xdist_group("server")

LONG = {**TINY, "steps": 2000}


@pytest.fixture
def doomed(migrated_db: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    """A server of this test's own."""
    home = tmp_path / "doomed"
    home.mkdir()
    shutil.copy(migrated_db, home / "mlflow.db")
    server = MlflowServer(home)
    server.start()
    yield server
    server.end(signal.SIGKILL)


@pytest.fixture
def trouble(server: str) -> Iterator[Trouble]:
    """Trouble on the way to the server."""
    proxy = Trouble(server)
    yield proxy
    proxy.end()


class At(Observer):
    """Does something once after the first block, and something else once all steps are done."""

    def __init__(
        self, *, first: Callable[[], Any] = lambda: None, end: Callable[[], Any] = lambda: None
    ) -> None:
        self._actions = [first]
        self._end = end

    def advanced(self, step: int, loss: float) -> None:
        if self._actions:
            self._actions.pop()()
        if step == LONG["steps"]:
            self._end()


def assert_whole(client: MlflowClient, run_id: str, steps: int = 2000) -> None:
    """Every step once, the model once, and the run closed."""
    history = client.get_metric_history(run_id, "loss")
    assert sorted(point.step for point in history) == list(range(steps))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    (output,) = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "READY"
    assert journal.journals() == []


def test_a_server_that_is_gone_and_comes_back_during_the_run(folder: Path, doomed: MlflowServer) -> None:
    """Killed after the first block, there again before the end: nobody notices."""
    observer = At(first=lambda: doomed.end(signal.SIGKILL), end=doomed.start)
    report = layerlab.run(plugin="nn", **LONG, tracking_uri=doomed.uri, observer=observer)
    assert report.ok
    assert_whole(MlflowClient(doomed.uri), report.runs[0].run_id)


@pytest.mark.slow
def test_a_server_that_is_gone_and_comes_back_later(
    folder: Path, doomed: MlflowServer, layerlab_cli: Any
) -> None:
    """The run ends with its file, says what is where, and `layerlab sync` delivers it; exit 1 until then."""
    observer = At(first=lambda: doomed.end(signal.SIGKILL))
    report = layerlab.run(plugin="nn", **LONG, tracking_uri=doomed.uri, observer=observer)
    (run,) = report.runs
    assert (run.status, run.steps, run.error) == ("FINISHED", 2000, None)
    assert Path(run.onnx["path"]).is_file()
    assert not report.ok
    kept = list(journal.entries(Path(run.unsent["path"])))
    points = [point for _, entry in kept for point in journal.points(entry)]
    assert [step for key, _, _, step in points if key == "loss"] == list(range(2000))
    assert 2000 - 16 <= run.unsent["points"] <= len(points), "it was gone after the first block"

    result = layerlab_cli("sync", "--quiet")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {run.run_id}: tracking store {doomed.uri} cannot be opened")
    assert len(result.stderr.splitlines()) == 1

    doomed.start()
    result = layerlab_cli("sync", "--json")
    (sent,) = json.loads(result.stdout)["runs"]
    assert (result.code, sent["unsent"], sent["reason"]) == (0, 0, None)
    assert sent["points"] == run.unsent["points"]
    assert_whole(MlflowClient(doomed.uri), run.run_id)
    assert layerlab_cli("sync").stdout == "nothing to send\n"


@pytest.mark.slow
def test_a_server_that_answers_500_for_a_while(folder: Path, server: str, trouble: Trouble) -> None:
    """Asked again until it is well."""

    def sick() -> None:
        trouble.mode = "500"

    report = layerlab.run(
        plugin="nn", **LONG, tracking_uri=trouble.uri, observer=At(first=sick, end=trouble.relent)
    )
    assert report.ok
    assert_whole(MlflowClient(server), report.runs[0].run_id)


def test_answers_that_get_lost_double_nothing(
    folder: Path, any_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does what it is asked and its answers are cut off: asked again, it has it already."""
    trouble = Trouble(any_server)

    def cut() -> None:
        trouble.mode = "cut"

    try:
        observer = At(first=cut, end=lambda: None)
        report = layerlab.run(plugin="nn", **LONG, tracking_uri=trouble.uri, observer=observer)
        (run,) = report.runs
        assert not report.ok
        assert trouble.seen["cut"] > 0
        trouble.relent()
        assert layerlab.sync().ok
        assert_whole(MlflowClient(any_server), run.run_id)
    finally:
        trouble.end()


def test_a_slow_server_costs_the_training_nothing(folder: Path, server: str, trouble: Trouble) -> None:
    """5 s an answer: the training is over before two answers came."""
    during: list[int] = []

    def slow() -> None:
        trouble.mode = "slow"

    def over() -> None:
        during.append(trouble.answered.get("slow", 0))
        trouble.relent()

    report = layerlab.run(plugin="nn", **LONG, tracking_uri=trouble.uri, observer=At(first=slow, end=over))
    assert report.ok
    assert len(during) == 1
    assert during[0] <= 1
    assert_whole(MlflowClient(server), report.runs[0].run_id)


def test_an_interrupt_does_not_wait_for_a_slow_server(folder: Path, server: str, trouble: Trouble) -> None:
    """The run is handed to the recording process, which goes on; what it has not sent is named."""

    def slow() -> None:
        trouble.mode = "slow"
        trouble.delay = 1000.0
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as interrupted:
        layerlab.run(plugin="nn", **LONG, tracking_uri=trouble.uri, observer=At(first=slow))
    (run,) = interrupted.value.report.runs
    assert (run.status, run.unsent["reason"]) == ("KILLED", "the store is slow, and is still being sent to")
    assert Path(run.checkpoint).is_file()
    trouble.relent()
    resumed = layerlab.resume(run.run_id).runs[0]  # which waits until all is sent
    assert (resumed.run_id, resumed.steps) == (run.run_id, 2000)
    assert_whole(MlflowClient(server), run.run_id)


def test_a_server_that_never_answers_is_refused(empty_folder: Path, layerlab_cli: Any) -> None:
    """It takes the connection and says nothing: exit 2, one line, nothing trained, nothing written."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(50)
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        result = layerlab_cli("run", "-p", "nn", "--steps", 3, "--tracking-uri", uri, "--quiet")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: tracking store {uri} cannot be opened")
    assert list(empty_folder.iterdir()) == []


def test_how_long_a_server_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store that is opened in a process has to answer soon, not the first alone; its user is heard."""
    timeout, retries = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.setattr(opening, "_set_here", {})
    monkeypatch.setenv(timeout, "so that it is put back")
    monkeypatch.delenv(timeout)
    monkeypatch.setenv(retries, "3")
    for _ in range(2):
        with opening.soon():
            assert (os.environ[timeout], os.environ[retries]) == ("6", "3")
        assert (os.environ[timeout], os.environ[retries]) == ("20", "3")
    # the recording process, which takes over its trainer's environment each time, is told what is the user's
    assert timeout not in opening.environment()
    assert opening.environment()[retries] == "3"
    monkeypatch.delenv(timeout)
    with opening.soon():
        assert os.environ[timeout] == "6"


def test_offline_needs_no_store(
    folder: Path, client: MlflowClient, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded in the folder, sent later: then it is a run like any other, under an id of the store's own."""
    flags = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]
    before = Path("mlflow.db").read_bytes()
    result = layerlab_cli("run", "-p", "nn", *flags, "--offline", "--checkpoint-every", 5, "--json")
    (run,) = json.loads(result.stdout)["runs"]
    assert (result.code, run["status"], run["unsent"], run["offline"]) == (0, "FINISHED", None, True)
    assert Path("mlflow.db").read_bytes() == before
    extended = layerlab.resume(run["run_id"], steps=20)
    assert extended.ok
    assert extended.runs[0].offline
    journal_file = journal.path_of(run["run_id"])
    whole = journal_file.read_bytes()
    report = layerlab.sync()
    assert report.ok
    (found,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert found.data.tags["layerlab.offline_id"] == run["run_id"]
    assert [one.stored_as for one in report.runs] == [found.info.run_id]
    assert sync_text(report).endswith(
        f"run {run['run_id']} was recorded offline; the store has it as {found.info.run_id}"
    )
    assert found.data.params["train.steps"] == "12"
    assert [d.dataset.name for d in found.inputs.dataset_inputs] == ["random"]
    losses = sorted(m.step for m in client.get_metric_history(found.info.run_id, "loss"))
    assert losses == list(range(20))

    # a sync that was killed before it could remove the journal
    journal_file.write_bytes(whole)
    assert layerlab.sync().ok
    assert len(client.search_runs([found.info.experiment_id])) == 1
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 20

    # a sync to another store, broken off: what that one has got says nothing of what this one lacks
    journal_file.write_bytes(whole)
    Progress(journal_file).write(len(whole), "0" * 32)
    with sqlite3.connect("mlflow.db") as database:
        gone = database.execute("DELETE FROM metrics WHERE key = 'loss' AND step >= 10").rowcount
    database.close()
    assert gone == 10
    assert layerlab.sync().ok
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 20

    # the id that it had before still finds it
    again = layerlab.resume(run["run_id"], steps=25)
    assert again.runs[0].run_id == found.info.run_id
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 25


def test_a_database_that_is_not_there_is_refused(empty_folder: Path, layerlab_cli: Any) -> None:
    """In one line, where MLflow would try ten times in a minute and a half; and without the password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"postgresql+psycopg2://me:secret@127.0.0.1:{free.getsockname()[1]}/mlflow"
        result = layerlab_cli("run", "-p", "nn", "--steps", 3, "--tracking-uri", uri, "--quiet")
    assert (result.code, result.stdout) == (2, "")
    first, hint = result.stderr.splitlines()
    assert first.endswith("cannot be opened: Connection refused")
    assert "is the database running?" in hint
    assert "secret" not in result.stderr
    assert list(empty_folder.iterdir()) == []


def test_an_interrupt_while_the_record_is_closed_does_not_wait_either(
    folder: Path, server: str, trouble: Trouble
) -> None:
    """The run is FINISHED; a store that has become slow gets its end later, and the command is over: 130."""

    class AtTheEnd(Observer):
        def stage(self, text: str) -> None:
            if text == "sending the rest of the record":
                trouble.delay, trouble.mode = 1000.0, "slow"
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as interrupted:
        layerlab.run(plugin="nn", **LONG, tracking_uri=trouble.uri, observer=AtTheEnd())
    (run,) = interrupted.value.report.runs
    assert (run.status, run.unsent["reason"]) == ("FINISHED", "the store is slow, and is still being sent to")
    trouble.relent()
    while journal.journals():  # the recording process goes on by itself
        time.sleep(0.05)
    assert_whole(MlflowClient(server), run.run_id)


def test_a_journal_left_behind_doubles_nothing(
    folder: Path, tmp_path: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody went on with the run from another folder: the journal adds what is missing, and no more."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"

    class Leave(Observer):
        """Keeps a copy of the journal, as if its processes had been killed."""

        kept = b""

        def advanced(self, step: int, loss: float) -> None:
            if step >= 500 and not self.kept:
                (path,) = journal.journals()
                type(self).kept = path.read_bytes()
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as interrupted:
        layerlab.run(plugin="nn", **LONG, tracking_uri=uri, observer=Leave())
    (run,) = interrupted.value.report.runs
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    time.sleep(1.1)  # so that the other process is another one: tests share theirs
    assert layerlab.resume(run.run_id, tracking_uri=uri).ok
    monkeypatch.chdir(folder)
    path = journal.path_of(run.run_id)
    path.write_bytes(Leave.kept.replace(b'"layerlab.pid": "', b'"layerlab.pid": "1'))
    assert layerlab.sync().ok
    assert_whole(client, run.run_id)


def test_a_journal_that_is_removed_meanwhile_leaves_no_run_open(folder: Path, client: MlflowClient) -> None:
    """`rm -r .layerlab` in the middle of a run: what was in it is lost, and the run is closed and says so."""
    observer = At(first=lambda: shutil.rmtree(".layerlab"))
    report = layerlab.run(plugin="nn", **LONG, observer=observer)
    (run,) = report.runs
    assert run.status == "FINISHED"
    assert not report.ok
    assert "No such file" in run.unsent["reason"]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_an_interrupt_of_sync_is_one(folder: Path) -> None:
    """Ctrl-C while a store that never answers is asked: exit 130, and the journal stays."""
    run = layerlab.run(plugin="nn", **TINY, offline=True).runs[0]
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(50)
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        process = subprocess.Popen([sys.executable, "-m", "layerlab", "sync", "--tracking-uri", uri])
        deaf.accept()[0].close()  # the look whether somebody is there
        connection, _ = deaf.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    assert journal.path_of(run.run_id).exists()


def test_two_cannot_go_on_with_a_run_at_once(folder: Path, client: MlflowClient) -> None:
    """Whoever knew the run before somebody else went on with it is told so."""
    info = RunInfo("e", "n", {}, {}, "a: 1\n")
    with Recorder() as first, Recorder() as second:
        for recorder in (first, second):
            recorder.open(None)
        for recorder in (first, second):
            recorder.opened()
        record = first.start_run(info)
        run_id = record.started()
        record.finish("KILLED", "x").unsent()
        known = [recorder.known(run_id) for recorder in (first, second)]
        going_on = first.resume_run(known[0], info)
        going_on.started()
        with pytest.raises(JournalError, match="is there already"):
            second.resume_run(known[1], info).started()
        going_on.finish("FINISHED").unsent()
        with pytest.raises(TrackingError, match="somebody else works on it"):
            second.resume_run(known[1], info).started()
    assert client.get_run(run_id).info.status == "FINISHED"


def test_an_offline_run_goes_to_any_store_whole(folder: Path, migrated_db: Path) -> None:
    """What one store got of it does not count for another; nor do two go on with it at once."""
    run = layerlab.run(plugin="nn", **TINY, offline=True).runs[0]
    path = journal.path_of(run.run_id)
    Progress(path).write(path.stat().st_size, "f" * 32)
    shutil.copy(migrated_db, "other.db")
    offline = OfflineRecorder()
    known = offline.known(run.run_id)
    info = RunInfo("e", "n", {}, {})
    with journal.Journal(path, alone=True), pytest.raises(TrackingError, match="somebody else works on it"):
        offline.resume_run(known, info).started()
    with pytest.raises(TrackingError, match="somebody else works on it"):
        offline.resume_run(replace(known, state="1"), info).started()
    assert not syncing.is_held(path)
    assert layerlab.sync(tracking_uri="sqlite:///other.db").ok
    other = MlflowClient("sqlite:///other.db")
    (found,) = other.search_runs([other.get_experiment_by_name("layerlab").experiment_id])
    assert len(other.get_metric_history(found.info.run_id, "loss")) == TINY["steps"]


def offline_runs(number: int) -> list[Path]:
    """The journals of so many runs that no store knows."""
    made = list[Path]()
    with OfflineRecorder() as recorder:
        recorder.open(None)
        for i in range(number):
            record = recorder.start_run(RunInfo("e", f"run {i}", {}, {}))
            made.append(journal.path_of(record.started()))
            record.log_metrics(0, {"loss": 1.0})
            record.finish("FINISHED")
    return made


def test_a_journal_that_vanishes_hides_no_other(folder: Path) -> None:
    """Listed, and gone when it is looked at, as one is that was sent in this moment."""
    (made,) = offline_runs(1)
    (made.parent / f"{'0' * 32}.jsonl").symlink_to("nowhere")
    assert journal.journals() == [made]


def test_what_somebody_else_sent_meanwhile_is_nothing_left(folder: Path, client: MlflowClient) -> None:
    """Two at once send the same journals: both say that nothing is left, and each run is there once."""

    other: list[syncing.SyncReport] = []

    class Faster(Observer):
        """Somebody else, once the journals were looked through."""

        def stage(self, text: str) -> None:
            if not other:
                other.append(layerlab.sync())

    offline_runs(2)
    report = layerlab.sync(observer=Faster())
    assert (report.ok, other[0].ok) == (True, True)
    assert [(run.points, run.unsent) for run in report.runs] == [(0, 0)] * 2
    assert len(client.search_runs([client.get_experiment_by_name("e").experiment_id])) == 2
    assert journal.journals() == []


def test_what_somebody_else_sent_before_it_was_looked_at_is_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a failure of sync, nor a run that was killed, nor one to go on with."""
    (made,) = offline_runs(1)
    made.unlink()
    said: list[str] = []
    monkeypatch.setattr(journal, "journals", lambda: [made])
    report = layerlab.sync()
    assert (report.runs, report.running) == ([], [])
    syncing.close_killed(said.append)
    assert said == []
    with pytest.raises(TrackingError, match="is waiting here for its store"):
        OfflineRecorder().known(made.stem)


def test_a_journal_without_a_store_is_never_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first moment on: another command would take its run for one that was killed."""
    let_go: list[journal.Journal] = []
    close = journal.Journal.close

    def watched(held: journal.Journal) -> None:
        let_go.append(held)
        close(held)

    with OfflineRecorder() as recorder, monkeypatch.context() as patch:
        recorder.open(None)
        patch.setattr(journal.Journal, "close", watched)
        record = recorder.start_run(RunInfo("e", "n", {}, {}))
        path = journal.path_of(record.started())
        assert let_go == []
        with pytest.raises(BlockingIOError):
            journal.Journal(path)
    record.finish("FINISHED")


def test_a_killed_run_is_held_until_its_store_knows(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody goes on with it, or sends it, between the two."""
    run = client.create_run("0").info
    info = {"experiment": "Default", "name": "n", "tags": {}}
    known = journal.Header(run.run_id, "0", "sqlite:///mlflow.db", info, "here", 1)
    journal.Journal.create(known).close()
    tell = Recorder.close_killed
    held: list[bool] = []

    def watched(recorder: Recorder, run_id: str, reason: str) -> None:
        held.append(syncing.is_held(journal.path_of(run_id)))
        tell(recorder, run_id, reason)

    monkeypatch.setattr(Recorder, "close_killed", watched)
    said: list[str] = []
    syncing.close_killed(said.append)
    assert held == [True]
    assert client.get_run(run.run_id).info.status == "KILLED"
    assert said == [f"run {run.run_id} was killed; go on with it: layerlab resume {run.run_id}"]
    assert not syncing.is_held(journal.path_of(run.run_id))


ENDLESS = [
    *("run", "-p", "nn", "--steps", "1000000000", "--n", "4", "--d-in", "3", "--hidden", "3"),
    "--quiet",
]


def until_recorded(client: MlflowClient) -> Any:
    """The one run of the store, once it has losses."""
    while True:
        experiment = client.get_experiment_by_name("layerlab")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        if runs and runs[0].data.metrics:
            return runs[0]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_a_run_whose_processes_are_all_gone_is_closed_by_the_next_command(
    folder: Path, client: MlflowClient
) -> None:
    """Any command: the run is KILLED, and the way to go on with it is named; once."""
    process = subprocess.Popen([sys.executable, "-m", "layerlab", *ENDLESS], cwd=folder)
    run = until_recorded(client)
    tags = run.data.tags
    assert (tags["layerlab.host"], tags["layerlab.pid"]) == (socket.gethostname(), str(process.pid))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for victim in [*map(int, children), process.pid]:
        os.kill(victim, signal.SIGKILL)
    process.wait()
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    said = run_command("plugins", cwd=folder)
    notice = f"run {run.info.run_id} was killed; go on with it: layerlab resume {run.info.run_id}\n"
    assert (said.code, said.stderr) == (0, notice)
    closed = client.get_run(run.info.run_id)
    assert (closed.info.status, closed.data.tags["layerlab.reason"]) == ("KILLED", journal.GONE)
    assert run_command("plugins", cwd=folder).stderr == ""
    assert layerlab.sync().ok, "what was not sent when it was killed is in its journal"
    steps = sorted(m.step for m in client.get_metric_history(run.info.run_id, "loss"))
    assert steps == list(range(len(steps)))
    assert len(steps) > 0
    assert client.get_run(run.info.run_id).info.status == "KILLED"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_a_killed_trainer_is_told_of_by_the_next_command(folder: Path, client: MlflowClient) -> None:
    """Its recording process closed the run at once; the way to go on is named all the same."""
    process = subprocess.Popen([sys.executable, "-m", "layerlab", *ENDLESS], cwd=folder)
    run = until_recorded(client)
    with recorders_waited_for(process.pid):
        process.kill()
        process.wait()
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    result = run_command("resume", run.info.run_id, "--steps", "10", cwd=folder)
    assert result.stderr.startswith(f"run {run.info.run_id} was killed; go on with it: layerlab resume ")
    assert result.code == 2, "it has more steps than 10 already"


def test_a_run_that_goes_on_is_left_alone(folder: Path, client: MlflowClient, layerlab_cli: Any) -> None:
    """Neither closed, nor sent, nor resumed by somebody else."""
    process = subprocess.Popen([sys.executable, "-m", "layerlab", *ENDLESS], cwd=folder)
    try:
        run_id = until_recorded(client).info.run_id
        result = layerlab_cli("resume", run_id)
        assert result.code == 2
        assert f"run {run_id} is still running, as process {process.pid} on" in result.stderr
        assert layerlab_cli("sync").stdout.endswith(f"run {run_id} is still running, and sends by itself\n")
        assert client.get_run(run_id).info.status == "RUNNING"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert client.get_run(run_id).info.status == "KILLED"


PRODUCER = """
import sys, time, numpy as np
from layerlab.tracking import Recorder, RunInfo
with Recorder() as recorder:
    recorder.open(None, "crowd")
    recorder.opened()
    record = recorder.start_run(RunInfo("crowd", sys.argv[1], {}, {}))
    record.started()
    for first in range(0, 10_000, 500):
        now = time.time()
        record.log_losses(first, np.full(500, float(sys.argv[1])), now, now + 0.5)
    unsent = record.finish("FINISHED").unsent()
sys.exit(unsent is not None)
"""


@pytest.mark.slow
def test_sixteen_processes_at_once_lose_nothing(empty_folder: Path) -> None:
    """10,000 points each, into one SQLite store that is not there yet."""
    processes = [subprocess.Popen([sys.executable, "-c", PRODUCER, str(i)]) for i in range(16)]
    assert [process.wait(280) for process in processes] == [0] * 16
    with sqlite3.connect("mlflow.db") as database:
        counted = database.execute(
            "SELECT r.name, r.status, COUNT(*), COUNT(DISTINCT m.step), MIN(m.value), MAX(m.value) "
            "FROM runs r JOIN metrics m ON m.run_uuid = r.run_uuid GROUP BY r.run_uuid"
        ).fetchall()
    database.close()
    expected = [(str(i), "FINISHED", 10_000, 10_000, float(i), float(i)) for i in range(16)]
    assert sorted(counted, key=lambda row: int(row[0])) == expected
