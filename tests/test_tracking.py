"""The record in MLflow, read back from a real SQLite store and from a real server."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

import layerlab
from helpers import TINY, run_python
from layerlab import storeuri
from layerlab.errors import TrackingError
from layerlab.spec import build_spec
from layerlab.tracking import opening
from servers import free_port

# One worker, so that one server is enough.
pytestmark = pytest.mark.xdist_group("server")

FLOWERS = {"plugin": "optim", "data": "iris", "epochs": 2, "batch_size": 16, "hidden": 5}


@pytest.fixture(params=["sqlite", "server", "postgres_server"])
def store(request: pytest.FixtureRequest, folder: Path) -> tuple[str | None, MlflowClient]:
    """Where to record, as ``tracking_uri``, and MLflow's own view of it."""
    if request.param == "sqlite":
        return None, MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    uri = request.getfixturevalue(request.param)
    return uri, MlflowClient(uri)


def losses(client: MlflowClient, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def test_the_whole_record_is_there(store: tuple[str | None, MlflowClient], folder: Path) -> None:
    """Parameters, tags, losses, validation figures, data set, spec, status: as it was done."""
    uri, client = store
    report = layerlab.run(**FLOWERS, tracking_uri=uri, experiment="whole", name="mine")
    (single,) = report.runs
    assert report.tracking_uri == (uri or "sqlite:///mlflow.db")
    run = client.get_run(single.run_id)
    spec = yaml.safe_load(Path(client.download_artifacts(single.run_id, "spec.yaml", folder)).read_text())
    flat = {f"{a}.{b}": v for a, inner in spec.items() if isinstance(inner, dict) for b, v in inner.items()}

    assert client.get_experiment(run.info.experiment_id).name == "whole"
    assert run.info.experiment_id != "0"
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.info.start_time <= run.info.end_time
    recorded = {key: value for key, value in run.data.params.items() if "." in key}
    assert recorded == {k: v if isinstance(v, str) else json.dumps(v) for k, v in flat.items()}
    assert run.data.params["optimizer"] == "adam"
    assert run.data.params["train.lr"] == "0.0001"

    tags = run.data.tags
    assert (tags["layerlab.tier"], tags["layerlab.distribution"]) == ("optim", "layerlab")
    assert (tags["layerlab.device"], tags["layerlab.task"]) == ("cpu", "classification")
    assert tags["layerlab.onnx"] == single.onnx["path"]
    from importlib.metadata import version

    assert tags["layerlab.version"] == version("layerlab")
    assert tags["layerlab.device_name"]
    assert tags["mlflow.user"] == getpass.getuser()
    for name in ("layerlab", "torch", "pytorch-lightning", "mlflow", "onnx", "onnxruntime", "numpy"):
        assert tags[f"version.{name}"] == version(name)
    assert "mlflow.source.git.commit" not in tags

    history = losses(client, single.run_id)
    assert [step for step, _ in history] == list(range(2 * 8))
    assert (history[0][1], history[-1][1]) == (single.first_loss, single.final_loss)
    for key, value in single.val.items():
        points = losses(client, single.run_id, key)
        assert [step for step, _ in points] == [8, 16]
        assert points[-1][1] == value

    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("iris", "training")
    assert json.loads(data.dataset.profile)["num_rows"] == 150


def test_the_spec_of_a_run_runs_again(folder: Path, client: Any) -> None:
    """``spec.yaml`` of a run is a file for ``--config``, and gives the same run."""
    first = layerlab.run(**FLOWERS, export=False).runs[0]
    path = client.download_artifacts(first.run_id, "spec.yaml", folder)
    second = layerlab.run(config=path).runs[0]
    assert (second.final_loss, second.val) == (first.final_loss, first.val)
    assert build_spec(config=path).as_yaml() == Path(path).read_text()


def test_the_model_is_there_with_its_signature(
    store: tuple[str | None, MlflowClient], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logged model is READY, linked to its run, and predicts what the file predicts."""
    import mlflow

    uri, client = store
    single = layerlab.run(**FLOWERS, tracking_uri=uri).runs[0]
    (output,) = client.get_run(single.run_id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("optim", "READY", single.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri or f"sqlite:///{folder / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    (given,), (gives,) = loaded.metadata.signature.inputs, loaded.metadata.signature.outputs
    assert (given.name, given.shape, gives.name, gives.shape) == ("x", (-1, 4), "y_pred", (-1, 3))
    rows = np.random.default_rng(0).uniform(0, 7, (5, 4)).astype(np.float32)
    expected = layerlab.ModelFile(Path(single.onnx["path"])).run(rows)
    assert (loaded.predict({"x": rows})["y_pred"] == expected).all()


def test_the_ui_shows_the_run(any_server: str, folder: Path, layerlab_cli: Any) -> None:
    """The server's page answers, and its REST API finds the run and its losses; stdout stays pure JSON."""
    server = any_server
    flags = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]
    options = ("--experiment", "rest", "--tracking-uri", server, "--json")
    result = layerlab_cli("run", "-p", "nn", *flags, *options)
    (run,) = json.loads(result.stdout)["runs"]
    assert result.code == 0
    with urllib.request.urlopen(server) as page:
        assert b"MLflow" in page.read()
    address = f"{server}/api/2.0/mlflow/metrics/get-history?run_id={run['run_id']}&metric_key=loss"
    with urllib.request.urlopen(address) as answer:
        steps = [m.get("step", 0) for m in json.load(answer)["metrics"]]
    assert sorted(steps) == list(range(12))
    query = {"experiment_ids": [experiment_id(server, "rest")], "filter": "attributes.status = 'FINISHED'"}
    search = urllib.request.Request(
        f"{server}/api/2.0/mlflow/runs/search",
        data=json.dumps(query).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(search) as answer:
        assert run["run_id"] in [found["info"]["run_id"] for found in json.load(answer)["runs"]]


def experiment_id(server: str, name: str) -> str:
    return str(MlflowClient(server).get_experiment_by_name(name).experiment_id)


# A password may hold an "@": only the last one ends the credentials.
@pytest.mark.parametrize("password", ["secret", "se@cret"])
def test_credentials_are_in_nothing_that_is_printed_or_kept(
    folder: Path, any_server: str, layerlab_cli: Any, password: str
) -> None:
    """A server behind ``user:password@`` is recorded to; the password is in no output, record or file."""
    server = any_server
    uri = server.replace("://", f"://user:{password}@")
    result = layerlab_cli(
        *("run", "-p", "nn", "--steps", 3, "--n", 4, "--d-in", 3, "--checkpoint-every", 2),
        *("--tracking-uri", uri, "--json"),
    )
    report = json.loads(result.stdout)
    assert (result.code, report["tracking_uri"]) == (0, server)
    record = MlflowClient(server).get_run(report["runs"][0]["run_id"])
    assert "cret" not in f"{result.stdout}{result.stderr}{record.to_dictionary()}"
    written = [path for path in folder.rglob("*") if path.is_file() and path.name != "mlflow.db"]
    assert any(path.suffix == ".ckpt" for path in written)
    assert [path for path in written if b"cret@" in path.read_bytes()] == []


def test_the_environment_names_the_store(
    folder: Path, server: str, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """``MLFLOW_TRACKING_URI`` is used where no flag is given, and a flag wins over it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    remote = layerlab.run(plugin="nn", **TINY, export=False)
    local = layerlab.run(plugin="nn", **TINY, export=False, tracking_uri="sqlite:///mlflow.db")
    assert remote.tracking_uri == server
    assert MlflowClient(server).get_run(remote.runs[0].run_id).info.status == "FINISHED"
    assert client.get_run(local.runs[0].run_id).info.status == "FINISHED"


def test_the_commit_is_recorded(folder: Path, client: Any) -> None:
    """In a git repository the run names its commit, and whether files were changed since."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    (folder / "notes").write_text("one")
    for command in (["init", "-q"], ["add", "notes"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True, cwd=folder)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (folder / "notes").write_text("two")
    run = client.get_run(layerlab.run(plugin="nn", **TINY, export=False).runs[0].run_id)
    assert run.data.tags["mlflow.source.git.commit"] == head
    assert run.data.tags["layerlab.git_dirty"] == "true"


def test_equal_data_has_an_equal_digest(folder: Path, client: Any) -> None:
    """The same data under two tiers is one data set; another seed draws another one."""
    runs = layerlab.run(plugin=["nn", "optim"], **TINY, export=False).runs
    runs += layerlab.run(plugin="nn", **TINY, seed=1, export=False).runs
    first, same, other = (client.get_run(r.run_id).inputs.dataset_inputs[0].dataset.digest for r in runs)
    assert first == same != other


def test_the_process_that_trains_has_no_mlflow(folder: Path, client: Any) -> None:
    """MLflow, its import and its interpreter lock are another process's; what it records is whole."""
    code = (
        "import sys, threading, layerlab\n"
        f"run = layerlab.run(plugin='nn', **{ {**TINY, 'steps': 2500}!r}).runs[0]\n"
        "print(run.run_id, [name for name in ('mlflow', 'pandas', 'sqlalchemy') if name in sys.modules])"
    )
    result = run_python(code, cwd=folder)
    assert result.code == 0, result.stderr
    run_id, _, found = result.stdout.strip().partition(" ")
    assert found == "[]"
    assert [step for step, _ in losses(client, run_id)] == list(range(2500))


def test_a_folder_of_its_own_for_each_working_folder(folder: Path, tmp_path: Path, client: Any) -> None:
    """After a change of folder, in one process, runs go to the store of the new folder."""
    first = layerlab.run(plugin="nn", **TINY, export=False).runs[0]
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "mlflow.db", other / "mlflow.db")
    os.chdir(other)  # the fixture's monkeypatch goes back
    second = layerlab.run(plugin="nn", **TINY, export=False).runs[0]
    there = MlflowClient(f"sqlite:///{other / 'mlflow.db'}")
    assert there.get_run(second.run_id).info.status == "FINISHED"
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert len(client.search_runs([client.get_run(first.run_id).info.experiment_id])) == 1


def refused(layerlab_cli: Any, *arguments: object) -> str:
    """The one line of a command that is refused before it has begun."""
    result = layerlab_cli("run", "--plugin", "nn", "--steps", 3, "--n", 4, "--d-in", 3, "--quiet", *arguments)
    assert (result.code, result.stdout) == (2, "")
    first, *rest = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in rest] in ([], ["hint"])
    return f"{first} {' '.join(rest)}"


@pytest.mark.parametrize("password", ["secret", "se@cret"])
def test_a_server_that_is_not_there_is_one_line(
    empty_folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """Exit 2, nothing trained, a hint, and no credentials in what is said."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    line = refused(layerlab_cli, "--tracking-uri", f"http://user:{password}@127.0.0.1:{port}")
    assert line.startswith(f"error: tracking store http://127.0.0.1:{port} cannot be opened")
    assert "mlflow server" in line
    assert "cret" not in line
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [("sqlite:///no/mlflow.db", "there is no folder no"), ("nonsense://x", "cannot be opened")],
)
def test_a_store_that_cannot_be_opened_is_one_line(
    empty_folder: Path, layerlab_cli: Any, uri: str, said: str
) -> None:
    """The URI and what is wrong with it."""
    line = refused(layerlab_cli, "--tracking-uri", uri)
    assert uri in line
    assert said in line


@pytest.mark.parametrize("name", ["exp?1", "My%20Repo"])
def test_a_folder_that_no_uri_names_is_refused(
    empty_folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """SQLAlchemy would make the database elsewhere: nothing is written, neither here nor there."""
    (empty_folder / name).mkdir()
    monkeypatch.chdir(empty_folder / name)
    line = refused(layerlab_cli)
    assert f"no URI can name {Path.cwd()}/mlflow.db" in line
    assert "--tracking-uri" in line
    assert list(empty_folder.rglob("*")) == [empty_folder / name]


@pytest.mark.parametrize("kind", ["folder", "link", "gone"])
def test_a_database_that_never_opens_is_given_up_soon(empty_folder: Path, kind: str) -> None:
    """One line after a few tries, where MLflow alone makes ten; it has its own number back afterwards."""
    from mlflow.store.db import utils
    from sqlalchemy import Engine, event

    from layerlab.tracking.store import Store

    uri = "sqlite:///mlflow.db"
    if kind == "folder":
        (empty_folder / "mlflow.db").mkdir()
    elif kind == "link":
        (empty_folder / "mlflow.db").symlink_to("no/mlflow.db")
    else:  # there is something at the port, and it hangs up
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        uri = f"postgresql+psycopg2://me:secret@127.0.0.1:{listener.getsockname()[1]}/mlflow"
    tries: list[object] = []
    usual = utils.MAX_RETRY_COUNT

    def tried(*arguments: object) -> None:
        tries.append(arguments)

    event.listen(Engine, "do_connect", tried)
    try:
        with pytest.raises(TrackingError, match="cannot be opened"):
            Store(uri)
    finally:
        event.remove(Engine, "do_connect", tried)
        if kind == "gone":
            listener.close()
    assert 1 <= len(tries) <= opening.TRIES < usual == utils.MAX_RETRY_COUNT


def hang_up(listener: socket.socket) -> None:
    """Takes connections, and ends them, until there is no listener."""
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def test_an_old_file_store_is_named_with_its_cure(empty_folder: Path, layerlab_cli: Any) -> None:
    """``mlflow ui`` would not start beside it: said before anything is written."""
    (empty_folder / "mlruns" / "0").mkdir(parents=True)
    (empty_folder / "mlruns" / "0" / "meta.yaml").write_text("name: Default\n")
    assert "mlflow migrate-filestore" in refused(layerlab_cli)
    assert not (empty_folder / "mlflow.db").exists()


def test_a_database_of_another_version_is_named(folder: Path, layerlab_cli: Any) -> None:
    """A schema that this MLflow does not know, as a newer one leaves it."""
    import sqlite3

    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    database.close()
    assert "another version of MLflow wrote the database" in refused(layerlab_cli)


def test_a_deleted_experiment_is_refused(folder: Path, client: Any, layerlab_cli: Any) -> None:
    """Nothing is trained into an experiment that nobody would see."""
    client.delete_experiment(client.create_experiment("gone"))
    assert "experiment 'gone' is deleted" in refused(layerlab_cli, "--experiment", "gone")
    with pytest.raises(TrackingError, match="experiment 'gone' is deleted"):
        layerlab.compare(plugin=["nn", "numpy"], **TINY, experiment="gone")


@pytest.mark.parametrize("uri", ["sqlite:///:memory:", "sqlite://", "sqlite+pysqlite:///:memory:"])
def test_a_record_in_memory_is_refused(empty_folder: Path, layerlab_cli: Any, uri: str) -> None:
    """It would be gone with the command that made it."""
    assert "would be gone when the command ends" in refused(layerlab_cli, "--tracking-uri", uri)


@pytest.mark.parametrize("uri", ["sqlite:///./mlflow.db", "sqlite+pysqlite:///mlflow.db"])
def test_another_spelling_of_the_default_is_the_default(
    folder: Path, client: Any, layerlab_cli: Any, uri: str
) -> None:
    """The same file, with the same lock, and the same refusal beside an old file store."""
    run = layerlab.run(plugin="nn", **TINY, export=False, tracking_uri=uri).runs[0]
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert (folder / "mlflow.db.lock").exists()
    old = folder / "mlruns" / "0"
    old.mkdir(parents=True)
    (old / "meta.yaml").write_text("experiment_id: '0'\n")
    assert "mlflow migrate-filestore" in refused(layerlab_cli, "--tracking-uri", uri)


@pytest.mark.parametrize("rest", ["user:s3cret/pw@127.0.0.1:1", "user:p@ss#s3cret@127.0.0.1:1"])
@pytest.mark.parametrize("more", [(), ("--offline",)])
def test_a_password_that_would_be_taken_for_a_place_is_refused(
    empty_folder: Path, layerlab_cli: Any, rest: str, more: tuple[str, ...]
) -> None:
    """Nothing of it is said or kept."""
    line = refused(layerlab_cli, "--tracking-uri", f"http://{rest}", *more)
    assert "has an '@' after what should be its host" in line
    assert "cret" not in line
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:s3cret[pw@127.0.0.1:1/db",
        "http://me:s3cret]pw@127.0.0.1:1",
        "http://me:[s3cret]@127.0.0.1:1",
        "http://me:s3cret\u2100@127.0.0.1:1",
        "//me:s3cret[pw@127.0.0.1:1",
    ],
)
@pytest.mark.parametrize("more", [(), ("--offline",)])
def test_a_password_that_no_uri_has_is_refused(
    empty_folder: Path, layerlab_cli: Any, uri: str, more: tuple[str, ...]
) -> None:
    """With how to write it, and without it."""
    line = refused(layerlab_cli, "--tracking-uri", uri, *more)
    assert "://...) has a character before its path that must not be there" in line
    assert "write '[' and ']' of a password as %5B and %5D" in line
    assert "cret" not in line
    assert list(empty_folder.iterdir()) == []


def test_a_query_is_not_said(empty_folder: Path, layerlab_cli: Any) -> None:
    """A password may be in it."""
    line = refused(layerlab_cli, "--tracking-uri", "sqlite:////nofolder/x.db?password=s3cret")
    assert "there is no folder /nofolder" in line
    assert "s3cret" not in line


def test_credentials_are_cut_from_what_is_shown() -> None:
    """User, password and query of a URI go nowhere."""
    cut = storeuri.without_credentials
    assert cut("https://me:secret@example.org:5000/path?token=1") == "https://example.org:5000/path"
    assert cut("postgresql://me:secret@db/mlflow") == "postgresql://db/mlflow"
    assert cut("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    assert cut("databricks") == "databricks"


def test_a_store_that_refuses_at_the_start_raises_its_own_words(folder: Path) -> None:
    """`TrackingError` is an input error: nothing was recorded."""
    with pytest.raises(TrackingError, match="there is no folder"):
        layerlab.run(plugin="nn", **TINY, tracking_uri="sqlite:///no/such/mlflow.db")
