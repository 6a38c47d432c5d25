"""Fixtures that are the real things: a real store, a real server, the real command line."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import Result, Site
from servers import MlflowServer, PostgresServer, why_no_postgres

# Before anything imports them.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["NO_COLOR"] = "1"
# Tests run side by side: more threads than cores would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "200"
os.environ["LAYERLAB_PLUGINS"] = ""
os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def migrated_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run: making one takes seconds, a copy takes none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def folder(empty_folder: Path, migrated_db: Path) -> Path:
    """A working folder with an empty MLflow store in its default place."""
    shutil.copy(migrated_db, empty_folder / "mlflow.db")
    return empty_folder


@pytest.fixture
def client(folder: Path) -> Any:
    """MLflow's own view of the store in the working folder."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture
def layerlab_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line in this process: ``layerlab_cli("run", "--steps", 5)``."""
    from layerlab.cli import main

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["layerlab", *map(str, arguments)])
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        out, err = capfd.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else int(bool(code)), out, err)

    return call


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Where this test installs distributions."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    yield Site(path, monkeypatch)
    for module in [name for name in sys.modules if name.startswith("module_of_")]:
        del sys.modules[module]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_db: Path) -> Iterator[str]:
    """A real ``mlflow server`` on loopback, with a store and artifacts of its own."""
    home = tmp_path_factory.mktemp("server")
    shutil.copy(migrated_db, home / "mlflow.db")
    mlflow_server = MlflowServer(home)
    try:
        mlflow_server.start()
        yield mlflow_server.uri
    finally:
        mlflow_server.end()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same, with PostgreSQL behind it."""
    if reason := why_no_postgres():
        pytest.skip(reason)
    database = PostgresServer()
    database.start()
    mlflow_server = MlflowServer(tmp_path_factory.mktemp("server"), backend=database.uri)
    try:
        mlflow_server.start()
        yield mlflow_server.uri
    finally:
        mlflow_server.end()
        database.end()


@pytest.fixture(params=["server", "postgres_server"])
def any_server(request: pytest.FixtureRequest) -> str:
    """Each of the two."""
    return str(request.getfixturevalue(request.param))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints how many of the gallery's wrong tiers were caught, whichever process they were tried in."""
    reports = [report for group in ("passed", "failed") for report in terminalreporter.stats.get(group, [])]
    said = [value for report in reports for key, value in report.user_properties if key == "wrong tiers"]
    if said:
        terminalreporter.write_line(f"wrong tiers: caught {said.count('caught')} of {said.count('tried')}")
    # noted when the test is torn down
    reports += terminalreporter.stats.get("", [])
    noted = [pair for report in reports for pair in getattr(report, "user_properties", [])]
    tried = [int(value) for key, value in noted if key == "inputs tried"]
    if tried:
        terminalreporter.write_line(f"inputs tried: {sum(tried)} by {len(tried)} properties")
    for value in dict.fromkeys(value for key, value in noted if key == "kills"):
        terminalreporter.write_line(f"kills: {value}")
