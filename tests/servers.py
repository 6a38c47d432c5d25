"""Real servers on loopback: MLflow's, PostgreSQL's, and a proxy that makes trouble on the way to MLflow's."""

from __future__ import annotations

import getpass
import http.client
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class MlflowServer:
    """A ``mlflow server`` that can be stopped, killed and started again in the same place."""

    home: Path
    backend: str = "sqlite:///mlflow.db"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.home / "log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                    *("--port", str(self.port), "--workers", "1", "--backend-store-uri", self.backend),
                    *("--artifacts-destination", str(self.home / "artifacts")),
                ],
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # eight processes that nothing here needs
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"the MLflow server did not start:\n{(self.home / 'log').read_text()[-2000:]}")

    def end(self, signum: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signum)
            self.process.wait(30)


@dataclass
class PostgresServer:
    """A PostgreSQL of its own, in a folder, as a user that it accepts: it does not run as root."""

    # pytest's folders are for one user alone
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="layerlab-postgres-")))
    port: int = field(default_factory=free_port)

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://lab:secret@127.0.0.1:{self.port}/postgres"

    def _command(self, tool: str, *arguments: str) -> None:
        as_user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
        found = postgres_tool(tool)
        assert found is not None
        done = subprocess.run(
            [found, *arguments], check=False, capture_output=True, text=True, cwd="/", **as_user
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        data = self.home / "data"
        data.mkdir()
        (self.home / "password").write_text("secret\n")
        if os.getuid() == 0:
            for path in (self.home, data, self.home / "password"):
                shutil.chown(path, "postgres")
        self._command(
            *("initdb", "-D", str(data), "-U", "lab", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"),
            *("--locale", "C", "--pwfile", str(self.home / "password")),
        )
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.home} -F"
        self._command("pg_ctl", "-D", str(data), "-o", options, "-l", str(self.home / "log"), "-w", "start")

    def end(self) -> None:
        self._command("pg_ctl", "-D", str(self.home / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.home)


def postgres_tool(name: str) -> str | None:
    """Where a tool of PostgreSQL's is: Debian keeps those of the server out of the path."""
    return shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )


def why_no_postgres() -> str | None:
    """Why PostgreSQL cannot be run here, or None."""
    missing = [tool for tool in ("initdb", "pg_ctl") if postgres_tool(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: PostgreSQL is not installed"
    if os.getuid() == 0:
        import pwd

        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return f"PostgreSQL does not run as {getpass.getuser()}, and there is no user postgres"
    return None


NOT_PASSED_ON = {"content-length", "transfer-encoding", "connection", "date", "server"}


class Trouble:
    """A proxy in front of a server: it passes requests on, or does what `mode` says.

    Attributes:
        mode: "pass"; "500", every request is answered so; "cut", the server gets the request and nobody gets
            its answer; "slow", an answer takes `delay` seconds.
        delay: As said.
        seen: Requests that came in each mode.
    """

    def __init__(self, target: str) -> None:
        self.mode, self.delay = "pass", 5.0
        self.seen: dict[str, int] = {}
        self.answered: dict[str, int] = {}
        self._released = threading.Event()
        trouble, address = self, target.removeprefix("http://")

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                mode = trouble.mode
                trouble.seen[mode] = trouble.seen.get(mode, 0) + 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if mode == "500":
                    self._answer(500, [], b"trouble")
                    return
                upstream = http.client.HTTPConnection(address, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                upstream.request(self.command, self.path, body, headers)
                response = upstream.getresponse()
                content = response.read()
                upstream.close()
                if mode == "cut":
                    self.close_connection = True
                    return
                if mode == "slow":
                    trouble._released.wait(trouble.delay)
                self._answer(response.status, response.getheaders(), content)
                trouble.answered[mode] = trouble.answered.get(mode, 0) + 1

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                for key, value in headers:
                    if key.lower() not in NOT_PASSED_ON:
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 -- http.server's names

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that went away is what is tried here."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def relent(self) -> None:
        """Passes on everything, what waits as well."""
        self.mode = "pass"
        self._released.set()

    def end(self) -> None:
        self.relent()
        self._server.shutdown()
        self._server.server_close()
