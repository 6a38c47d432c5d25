"""The recording process: what it writes is what MLflow would write, and who dies first does not matter."""

from __future__ import annotations

import base64
import errno
import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking._tracking_service.client import TrackingServiceClient

import layerlab
from helpers import TINY, recorders, recorders_waited_for
from layerlab import journal
from layerlab.errors import JournalError, TrackingError
from layerlab.export import build_model
from layerlab.progress import Progress
from layerlab.reference import initial_params
from layerlab.report import Observer
from layerlab.syncing import is_held
from layerlab.tracking import Recorder, RunInfo, delivery
from layerlab.tracking.bulk import POINTS_AT_ONCE
from layerlab.tracking.delivery import POINTS_A_CALL, Delivery
from layerlab.tracking.store import Store

INFO = RunInfo("bulk", "a run", {}, {})
TINY_MODEL = build_model(initial_params(3, 2, 1, init="linear", bias=True, seed=0), np.float32, {})
MODEL = {"model": base64.b64encode(TINY_MODEL.SerializeToString()).decode(), "name": "tiny", "step": 1}
ODD = [1.5, math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, 5e-324]


def history(client: Any, run_id: str, key: str) -> list[tuple[int, int, float]]:
    return sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, key))


def killed(process: subprocess.Popen[bytes]) -> None:
    """Kills a process, and then one that is no more."""
    process.kill()
    process.wait()
    os.kill(process.pid, signal.SIGKILL)


def append(kept: Delivery, *entries: dict[str, Any]) -> None:
    """Writes entries into the journal of a run, as its trainer does."""
    with journal.Journal(journal.path_of(kept.run_id)) as written:
        for entry in entries:
            written.append(entry)


def left_behind(client: Any, *entries: dict[str, Any]) -> Path:
    """The journal of a run that is RUNNING, as processes leave it that are killed."""
    run = client.create_run("0").info
    known = journal.Header(run.run_id, run.experiment_id, "sqlite:///mlflow.db", asdict(INFO), "here", 1)
    with journal.Journal.create(known) as written:
        for entry in entries:
            written.append(entry)
    return written.shown


def same(a: Any, b: Any) -> bool:
    """Equal, where NaN is equal to NaN."""
    return bool(np.array_equal(np.array(a, float), np.array(b, float), equal_nan=True))


def test_points_written_at_once_are_those_that_mlflow_writes(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, steps, times, duplicates, NaN, infinities, the latest value: equal, as MLflow reads them."""
    store = Store()
    found = {}
    points = [("odd", value, 1_700_000_000_000 + step, step) for step, value in enumerate(ODD)]
    points += [("loss", 1 / (step + 1), 1_700_000_000_000 + step, step) for step in range(2500)]
    points += points[:20]  # sent again, as after an answer that was lost
    for way in ("bulk", "one by one"):
        if way == "one by one":
            monkeypatch.setattr(delivery, "bulk_writer", lambda _: None)
        kept = store.start_run(INFO)
        assert (kept._bulk is None) == (way == "one by one")
        with journal.Journal(journal.path_of(kept.run_id)) as written:
            for key, value, timestamp, step in points:
                written.append({"metrics": {key: value}, "step": step, "time": timestamp})
        assert kept.end("FINISHED", None) is None
        assert journal.journals() == [], "what is in the store is nowhere else"
        latest = client.get_run(kept.run_id).data.metrics
        found[way] = [history(client, kept.run_id, key) for key in ("odd", "loss")], latest
    (bulk, bulk_latest), (ordinary, ordinary_latest) = found["bulk"], found["one by one"]
    assert [len(series) for series in bulk] == [len(ODD), 2500]
    assert all(same(a, b) for a, b in zip(bulk, ordinary, strict=True))
    assert bulk_latest.keys() == ordinary_latest.keys()
    assert same(list(bulk_latest.values()), list(ordinary_latest.values()))


def test_points_go_out_by_a_thread_a_limited_number_at_a_time(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25,000 losses: no call of MLflow's brings more than it takes, no statement more than its bound."""
    store = Store()
    for bulk in (True, False):
        if not bulk:
            monkeypatch.setattr(delivery, "bulk_writer", lambda _: None)
        kept = store.start_run(INFO)
        sizes: list[int] = []
        send = kept._send

        def watched(points: Any, tags: Any, send: Any = send, sizes: list[int] = sizes) -> None:
            sizes.append(len(points))
            send(points, tags)

        monkeypatch.setattr(kept, "_send", watched)
        with journal.Journal(journal.path_of(kept.run_id)) as written:
            for first in range(0, 25_000, 5_000):
                written.append(journal.series("loss", first, np.arange(5_000.0) + first, 1e9 + first, 1e-4))
        assert kept.end("FINISHED", None) is None
        assert max(sizes) <= (POINTS_AT_ONCE if bulk else POINTS_A_CALL)
        steps = [(step, value) for step, _, value in history(client, kept.run_id, "loss")]
        assert steps == [(step, float(step)) for step in range(25_000)]


def test_a_run_that_was_deleted_takes_no_points(folder: Path, client: Any) -> None:
    """MLflow's own check comes before the bulk: what it refuses is kept, and named."""
    kept = Store().start_run(INFO)
    client.delete_run(kept.run_id)
    with journal.Journal(journal.path_of(kept.run_id)) as written:
        written.append(journal.series("loss", 0, np.ones(50), 1.0, 0.02))
    unsent = kept.end("FINISHED", None)
    assert unsent is not None
    assert unsent.points == 50
    assert "deleted" in unsent.reason
    assert journal.count_points(Path(unsent.path)) == 50
    client.restore_run(kept.run_id)
    sent = Store().deliver(Path(unsent.path))
    assert sent == (kept.run_id, None), "once it may be written to, nothing is missing"
    assert len(history(client, kept.run_id, "loss")) == 50
    assert client.get_run(kept.run_id).info.status == "FINISHED"


def test_a_model_requires_what_is_installed_and_nobody_asks(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's search of everything that is installed is not made, and can be made again afterwards."""
    from mlflow.utils import environment

    def asked(_: Any) -> None:
        raise AssertionError("MLflow looked through what is installed")

    monkeypatch.setattr(environment, "warn_dependency_requirement_mismatches", asked)
    kept = Store().start_run(INFO)
    append(kept, MODEL)
    assert kept.end("FINISHED", None) is None
    assert environment.warn_dependency_requirement_mismatches is asked
    (output,) = client.get_run(kept.run_id).outputs.model_outputs
    logged = Path(client.get_logged_model(output.model_id).artifact_location)
    required = (logged / "requirements.txt").read_text().split()
    names = ("mlflow", "onnx", "onnxruntime", "numpy")
    assert sorted(required) == sorted(f"{name}=={version(name)}" for name in names)


def test_a_model_whose_answer_was_lost_is_there_once(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was linked to it and nobody heard of that: it is not kept again, and it is READY."""
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_CALLS", 1000.0)  # it delivers when it is told to
    store = Store()
    kept = store.start_run(INFO)
    append(kept, MODEL)
    link = store.client.log_outputs

    def lost(*arguments: Any) -> None:
        link(*arguments)
        raise ConnectionError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(store.client, "log_outputs", lost)
        kept._deliver()
    assert kept.reason == "ConnectionError: cut off"
    (output,) = client.get_run(kept.run_id).outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "FAILED"
    assert kept.end("FINISHED", None) is None
    assert [one.model_id for one in client.get_run(kept.run_id).outputs.model_outputs] == [output.model_id]
    assert client.get_logged_model(output.model_id).status == "READY"


def test_neighbours_go_out_in_one_call(folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags, losses and figures that follow upon each other are one call of MLflow's, however many."""
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_CALLS", 1000.0)  # all of it is sent at the end
    store = Store()
    kept = store.start_run(INFO)
    calls: list[Any] = []
    log_batch = store.client.log_batch

    def watched(*arguments: Any, **named: Any) -> None:
        calls.append(named)
        log_batch(*arguments, **named)

    monkeypatch.setattr(store.client, "log_batch", watched)
    tags = {f"tag {i}": str(i) for i in range(150)}  # more than MLflow takes in one request
    append(
        kept,
        {"tags": {"device": "cpu"}},
        journal.series("loss", 0, np.arange(1500.0), 1e9, 1e-4),
        {"metrics": {"val": 0.5}, "step": 1500, "time": 1},
        {"tags": tags},
    )
    assert kept.end("FINISHED", None) is None
    assert len(calls) == 1
    run = client.get_run(kept.run_id)
    assert {"device": "cpu", **tags}.items() <= run.data.tags.items()
    assert (run.data.metrics, run.info.status) == ({"loss": 1499.0, "val": 0.5}, "FINISHED")
    assert len(history(client, kept.run_id, "loss")) == 1500


def test_nothing_is_sent_while_a_run_is_held(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the journal is looked into; what there is goes out before, and the rest after it."""
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_CALLS", 1e-6)
    kept = Store().start_run(INFO)
    append(kept, journal.series("loss", 0, np.ones(3), 1.0, 0.1))
    kept.hold()
    assert len(history(client, kept.run_id, "loss")) == 3
    append(kept, journal.series("loss", 3, np.ones(4), 2.0, 0.1))
    assert [len(history(client, kept.run_id, "loss")) for _ in range(20)] == [3] * 20
    kept.let_go()
    assert len(history(client, kept.run_id, "loss")) == 7
    kept.hold()
    append(kept, journal.series("loss", 7, np.ones(5), 3.0, 0.1))
    assert kept.end("FINISHED", None) is None  # of whoever holds it nobody is left
    assert len(history(client, kept.run_id, "loss")) == 12


def test_a_recorder_that_is_held_has_sent_all(folder: Path, client: Any) -> None:
    """Both ends are waited for: what was recorded by then is in the store."""
    with Recorder() as recorder:
        recorder.open(None, "bulk")
        recorder.opened()
        record = recorder.start_run(INFO)
        run_id = record.started()
        record.log_losses(0, np.ones(3), 1.0, 2.0)
        with recorder.held():
            assert len(history(client, run_id, "loss")) == 3
            record.log_losses(3, np.ones(4), 2.0, 3.0)
        assert len(history(client, run_id, "loss")) == 7
        assert record.finish("FINISHED").unsent() is None


def test_a_store_that_fails_is_told_while_a_run_is_held(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever measures what sending takes must know that nothing was sent; the run is sent in the end."""
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_CALLS", 1000.0)
    store = Store()
    kept = store.start_run(INFO)
    assert kept.hold() is None
    append(kept, journal.series("loss", 0, np.ones(3), 1.0, 0.1))

    def gone(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store.client, "log_batch", gone)
        assert kept.hold() == kept.let_go() == "ConnectionError: gone"
    assert kept.end("FINISHED", None) is None
    assert len(history(client, kept.run_id, "loss")) == 3


def test_a_recorder_that_is_gone_is_told_while_a_run_is_held(folder: Path) -> None:
    """Before it, and after it; what was raised meanwhile is what is seen."""
    with Recorder() as recorder:
        recorder.open(None, "bulk")
        recorder.opened()
        recorder.start_run(INFO).started()
        with pytest.raises(ProcessLookupError), recorder.held():
            killed(recorder._process._popen)
        with pytest.raises(TrackingError, match="the recording process ended"), recorder.held():
            pass


def test_points_that_are_refused_take_no_tags_along(folder: Path, client: Any) -> None:
    """A name that MLflow does not take: the tags beside it are there, and what comes after it."""
    kept = Store().start_run(INFO)
    refused = {"metrics": {"x" * 300: 1.0}, "step": 0, "time": 1}
    append(kept, {"tags": {"device": "cpu"}}, refused, MODEL)
    unsent = kept.end("FINISHED", None)
    assert unsent is not None
    assert unsent.points == 1
    run = client.get_run(kept.run_id)
    assert (run.data.tags["device"], run.data.metrics, run.info.status) == ("cpu", {}, "FINISHED")
    assert len(run.outputs.model_outputs) == 1


@pytest.mark.parametrize("damaged", ["nonsense", '{"tags": null}', '{"tags": {"a": 1}}', '{"metrics": 1}'])
def test_what_comes_before_an_entry_that_is_damaged_is_sent(folder: Path, client: Any, damaged: str) -> None:
    """The entries before it are whole; it is told, and the journal stays."""
    kept = Store().start_run(INFO)
    append(kept, {"tags": {"device": "cpu"}}, journal.series("loss", 0, np.ones(5), 1e9, 1e-4))
    with journal.path_of(kept.run_id).open("a") as file:
        file.write(damaged + "\n")
    unsent = kept.end("FINISHED", None)
    assert unsent is not None
    assert "damaged" in unsent.reason
    assert client.get_run(kept.run_id).data.tags["device"] == "cpu"
    assert len(history(client, kept.run_id, "loss")) == 5
    assert journal.journals() == [journal.path_of(kept.run_id)]


@pytest.mark.parametrize("past", [-3, 1000, 10**30])
def test_what_was_sent_of_another_journal_does_not_count(folder: Path, client: Any, past: int) -> None:
    """Of an earlier one, or of one whose end a power loss took: where no entry ends, all is sent."""
    path = left_behind(client, journal.series("loss", 0, np.ones(50), 1.0, 0.02))
    Progress(path).write(path.stat().st_size + past)
    assert Store().deliver(path)[1] is None
    assert len(history(client, path.stem, "loss")) == 50
    assert client.get_run(path.stem).info.status == "KILLED"


def test_what_was_noted_of_a_journal_is_gone_before_it(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed while a journal is removed leaves one that is sent again, not a note for the next."""
    path = left_behind(client)
    held, noted = journal.Journal(path), Progress(path)
    noted.write(path.stat().st_size)
    unlink = Path.unlink
    removed: list[Path] = []

    def killed_after_one(path: Path, **named: Any) -> None:
        if removed:
            raise SystemExit
        removed.append(path)
        unlink(path, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_after_one)
        with pytest.raises(SystemExit):
            held.discard()
    held.close()
    assert ([one.name for one in removed], path.exists()) == ([noted.path.name], True)
    known = journal.header(path)
    path.unlink()
    noted.write(3)  # as an older layerlab left it
    journal.Journal.create(known).close()
    assert not noted.path.exists()


def test_a_file_that_is_gone_holds_nothing_up(folder: Path, client: Any) -> None:
    """It is told and its entry kept; what comes after it is sent, and the run is closed."""
    Path("folder").mkdir()
    kept = Store().start_run(INFO)
    append(kept, *({"file": name} for name in ("gone.png", "folder", "../elsewhere")), {"tags": {"a": "b"}})
    unsent = kept.end("FINISHED", None)
    assert unsent is not None
    assert (unsent.points, unsent.path) == (0, str(journal.path_of(kept.run_id)))
    assert unsent.reason == "JournalError: gone.png: is no file that can be read, and is not sent"
    run = client.get_run(kept.run_id)
    assert (run.data.tags["a"], run.info.status) == ("b", "FINISHED")
    for name in ("gone.png", "../elsewhere"):
        Path(name).write_text("here")
    assert Store().deliver(Path(unsent.path))[1] is not None, "what is elsewhere is not sent"
    assert [file.path for file in client.list_artifacts(kept.run_id)] == ["gone.png"]
    assert client.get_run(kept.run_id).info.status == "FINISHED"


def test_a_file_that_the_network_did_not_take_is_sent_again(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError of sending it says nothing of the file."""
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_CALLS", 1000.0)  # it delivers when it is told to
    store = Store()
    kept = store.start_run(INFO)
    Path("picture.png").write_text("a picture")
    append(kept, {"file": "picture.png"})

    def lost(*arguments: Any) -> None:
        raise ConnectionError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(store.client, "log_artifact", lost)
        kept._deliver()
    assert kept.reason == "ConnectionError: cut off"
    assert kept.end("FINISHED", None) is None
    assert [file.path for file in client.list_artifacts(kept.run_id)] == ["picture.png"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_journal_needs_no_links(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where the file system has none: it is there whole and held, and of two who begin it one does."""

    def none(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", none)
    path = left_behind(client, {"tags": {"a": "b"}})
    known = journal.header(path)
    assert [entry for _, entry in journal.entries(path)][1:] == [{"tags": {"a": "b"}}]
    with pytest.raises(JournalError, match="is there already"):
        journal.Journal.create(known)
    path.unlink()
    with journal.Journal.create(known, alone=True), pytest.raises(BlockingIOError):
        journal.Journal(path)
    assert list(path.parent.iterdir()) == [path]


def test_a_journal_that_cannot_get_its_name_is_no_fault_of_the_store(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the journal; its run is FAILED."""

    def full(*_: Any) -> None:
        Path(".layerlab").rename("moved")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(JournalError, match="jsonl: cannot be written: No such file or directory"):
        Store().start_run(INFO)
    (run,) = client.search_runs([client.get_experiment_by_name("bulk").experiment_id])
    assert run.info.status == "FAILED"


def refuse(*what: str) -> None:
    """Has the database refuse statements from here on."""
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        for number, statement in enumerate(what):
            refusal = "BEGIN SELECT RAISE(ABORT, 'not now'); END"
            database.execute(f"CREATE TRIGGER refused{number} BEFORE {statement} {refusal}")


def test_a_run_that_cannot_be_begun_is_not_held(folder: Path) -> None:
    """Where its store cannot be told either, its journal stays: for `layerlab sync`, whoever lives on."""
    store = Store()
    refuse("INSERT ON params", "UPDATE ON runs")
    with pytest.raises(TrackingError, match=r"refuses the run: .*not now"):
        store.start_run(replace(INFO, params={"a": "1"}))
    (path,) = journal.journals()
    assert not is_held(path)


@pytest.mark.parametrize(
    "what", [["UPDATE ON runs"], ["INSERT ON tags", "UPDATE ON runs WHEN NEW.status != 'RUNNING'"]]
)
def test_a_run_that_cannot_be_gone_on_with_is_not_held(folder: Path, what: list[str]) -> None:
    """Likewise, be it RUNNING again by then or not."""
    store = Store()
    kept = store.start_run(INFO)
    assert kept.end("FINISHED", None) is None
    known = store.known(kept.run_id)
    refuse(*what)
    with pytest.raises(TrackingError, match="refuses to go on with the run"):
        store.resume_run(known, replace(INFO, tags={"another": "one"}))
    (path,) = journal.journals()
    assert not is_held(path)


def test_a_journal_that_was_sent_between_two_looks_is_gone(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, and removed by whoever held it before it could be held: nobody works on what has no name."""
    store, path = Store(), left_behind(client)
    flock = journal.fcntl.flock

    def late(*arguments: Any) -> None:
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(journal.fcntl, "flock", late)
    assert store.deliver(path)[1] is None
    assert client.get_run(path.stem).info.status == "RUNNING"


def test_an_entry_that_takes_several_writes_is_whole(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system writes 2 GiB at once and no more: here it is 100 bytes."""
    path = left_behind(client)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:100]))
    with journal.Journal(path) as held:
        held.append(MODEL)
    assert [entry for _, entry in journal.entries(path)][1:] == [MODEL]


def test_an_entry_of_which_a_part_was_written_is_taken_off(folder: Path, client: Any) -> None:
    """The system takes 100 bytes of it, and then no more."""
    resource = pytest.importorskip("resource")
    with journal.Journal(left_behind(client)) as held:
        size, before = held.size(), resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
            with pytest.raises(JournalError, match="cannot be written: File too large"):
                held.append(MODEL)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert held.size() == size
        held.append({"tags": {"a": "b"}})
        assert [entry for _, entry in journal.entries(held.path)][1:] == [{"tags": {"a": "b"}}]


def test_where_the_artifacts_of_a_new_run_go_is_not_asked_for(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client would load all of the run, and all of the model, for it."""

    def asked(*arguments: Any, **named: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(TrackingServiceClient, "_get_artifact_repo", asked)
        kept = Store().start_run(replace(INFO, spec_yaml="plugins: nn\n"))
        append(kept, MODEL)
        assert kept.end("FINISHED", None) is None
    assert Path(client.download_artifacts(kept.run_id, "spec.yaml")).read_text() == "plugins: nn\n"
    (output,) = client.get_run(kept.run_id).outputs.model_outputs
    names = {file.path for file in client.list_logged_model_artifacts(output.model_id)}
    assert {"MLmodel", "model.onnx"} <= names


def test_a_run_is_a_call_an_artifact_and_an_end(empty_folder: Path) -> None:
    """What a short run writes has one other entry among points and tags, and that is the last but one."""
    layerlab.run(plugin=["nn"], offline=True, **TINY)
    (path,) = journal.journals()
    parcels = list(delivery._parcels(path, 0, POINTS_A_CALL))
    assert [next(iter(parcel.entry or {"": 0})) for parcel in parcels] == ["", "model", "finish"]
    assert {"loss", "seconds/export", "onnx/max_abs_diff"} <= {point[0] for point in parcels[0].points}


def test_half_a_message_is_the_last_one(empty_folder: Path) -> None:
    """A trainer that is killed while it says something: the process ends, without a traceback."""
    half = pickle.dumps(("start_run", (INFO,)))[:-20]
    command = [sys.executable, "-P", "-m", "layerlab.tracking.process"]
    done = subprocess.run(command, input=half, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_who_reads_stderr_to_the_end_does_not_wait_for_the_record(folder: Path) -> None:
    """It has let go of it once its store is open, and lives on."""
    command = [sys.executable, "-P", "-m", "layerlab.tracking.process"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        pickle.dump(("open", ("sqlite:///mlflow.db", None, str(folder), dict(os.environ))), process.stdin)
        process.stdin.flush()
        assert pickle.load(process.stdout) == ("done", None)
        assert process.stderr.read() == b""
        pickle.dump(("nothing", ()), process.stdin)
        process.stdin.flush()
        kind, said = pickle.load(process.stdout)
    assert (kind, said.splitlines()[-1].partition(":")[0]) == ("failed", "AttributeError")
    assert process.returncode == 0


def started(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """A training that would take days, in the middle of it."""
    command = [
        "run",
        "-p",
        "nn",
        "--steps",
        "1000000000",
        "--n",
        "4",
        "--d-in",
        "3",
        "--d-out",
        "2",
        "--hidden",
        "3",
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "layerlab", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "nn: 1000000000 steps\n"
    return process


def until_recorded(client: Any, points: int) -> Any:
    """The one run of the store, once it has so many losses."""
    while True:
        (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
        if run.data.metrics and len(client.get_metric_history(run.info.run_id, "loss")) >= points:
            return run


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_a_killed_trainer_leaves_a_run_that_says_so(folder: Path, client: Any) -> None:
    """SIGKILL to the trainer's process group: the recording process delivers what it has, and closes."""
    process = started(folder)
    run = until_recorded(client, 8)
    (recorder,) = recorders(process.pid)
    with recorders_waited_for(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    run = client.get_run(run.info.run_id)
    assert process.returncode == -signal.SIGKILL
    assert (run.info.status, run.data.tags["layerlab.reason"]) == (
        "KILLED",
        "the process that trained was gone",
    )
    assert run.info.end_time is not None
    steps = [step for step, _, _ in history(client, run.info.run_id, "loss")]
    assert steps == list(range(len(steps)))
    stat = Path(f"/proc/{recorder}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", "it has ended"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_a_killed_recorder_does_not_stop_the_training(folder: Path, client: Any) -> None:
    """The training ends by itself; what could not be recorded is kept and named, and it is not ok."""

    class Killer(Observer):
        def advanced(self, step: int, loss: float) -> None:
            for recorder in recorders(os.getpid()):
                os.kill(recorder, signal.SIGKILL)

    report = layerlab.run(plugin="nn", **{**TINY, "steps": 3000}, observer=Killer())
    (run,) = report.runs
    assert (run.status, run.steps, run.error) == ("FINISHED", 3000, None)
    assert Path(run.onnx["path"]).is_file()
    assert not report.ok
    assert "the recording process ended with code -9" in run.unsent["reason"]
    assert 0 < run.unsent["points"] <= journal.count_points(Path(run.unsent["path"]))
    assert layerlab.run(plugin="nn", **TINY, export=False).ok, "the next run has another process"
    assert layerlab.sync().ok, "what it could not send is sent later"
    assert [step for step, _, _ in history(client, run.run_id, "loss")] == list(range(3000))
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1


def test_the_next_run_of_an_interpreter_takes_the_same_process(folder: Path) -> None:
    """Importing MLflow once is enough; another environment is another environment."""
    with Recorder() as first:
        process = first._process
    with Recorder() as second, Recorder() as third:
        assert second._process is process
        assert third._process is not process


def test_a_run_that_its_trainer_left_open_is_closed_when_it_begins_another(folder: Path, client: Any) -> None:
    """Nothing of layerlab's does so; a program of somebody's own might."""
    with Recorder() as recorder:
        recorder.open(None, "bulk")
        recorder.opened()
        record = recorder.start_run(INFO)
        left = record.started()
    with Recorder() as recorder:
        recorder.open(None, "bulk")
        recorder.opened()
    assert client.get_run(left).info.status == "KILLED"
