"""The processes of a bench: late, gone, killed, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerlab.benchmarking import processes
from layerlab.benchmarking.processes import Refused, WorkerProcess
from layerlab.errors import Interrupted

HANGS = """
import os, sys, time
from layerlab.benchmarking.processes import serve


class W:
    def begun(self):
        return {}

    def wait(self, seconds=60):
        time.sleep(seconds)
        return {}

    def end(self):
        raise SystemExit("over")

    def environment(self, name):
        return {"value": os.environ.get(name)}

    def close(self):
        os.closerange(0, 100)
        time.sleep(60)

    def fork(self):
        pid = os.fork()
        if pid:
            return {"pid": pid}
        time.sleep(60)
        open("hangs.over", "w").close()
        os._exit(0)

    def crash(self):
        if os.fork():
            os._exit(7)
        time.sleep(60)


serve(W)
"""


@pytest.fixture
def hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A worker that takes a minute for an answer."""
    (tmp_path / "hangs.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return "hangs"


def test_one_that_closed_its_pipe_and_stays_is_ended(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes from it any more, and nobody waits for its end."""
    monkeypatch.setattr(processes, "_LEAVING", 0.2)
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        with pytest.raises(Refused, match="closed its pipe in 'close' and stayed"):
            worker.ask("close")
        assert worker.ended


def test_a_worker_keeps_mlflows_telemetry_off(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of a peer, which imports MLflow itself, whoever starts the bench."""
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        assert worker.ask("environment", name="MLFLOW_DISABLE_TELEMETRY") == {"value": "true"}


def test_an_answer_is_waited_for_with_a_limit(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is late is ended, and a refusal; a stop does not wait for it."""
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        with pytest.raises(Refused, match="end: SystemExit: over"):
            worker.ask("end")
        with monkeypatch.context() as patch:
            patch.setattr(processes, "LONGEST_SECONDS", 0.3)
            with pytest.raises(Refused, match="did not answer 'wait'"):
                worker.ask("wait")
        with pytest.raises(Refused, match="its process ended"):
            worker.ask("end")
        assert worker.ended
        worker.restart()
        assert not worker.ended
        assert worker.ask("begin") == {}
        os.kill(worker._process.pid, signal.SIGKILL)  # while nobody asks it
        with pytest.raises(Refused, match="its process ended in 'wait' with code -9"):
            worker.ask("wait")
        assert worker.ended
    stops: list[int] = []

    def stop() -> None:
        stops.append(1)
        if len(stops) > 2:
            raise Interrupted(signal.SIGINT)

    with WorkerProcess(hangs, check=stop) as worker, pytest.raises(Interrupted):
        worker.ask("wait")


def _is_gone(pid: int) -> bool:
    """It may be there, dead, until somebody takes note."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in ("X", "Z")


def test_one_that_is_gone_is_not_waited_for(hangs: str) -> None:
    """What it forked has its pipe too, and would keep it open for a minute."""
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        began = time.monotonic()
        with pytest.raises(Refused, match="its process ended in 'crash' with code 7"):
            worker.ask("crash")
        assert time.monotonic() - began < 30
        assert worker.ended


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_a_worker_started_ends_with_it(hangs: str, folder: Path) -> None:
    """A process that it forked holds the pipe open, and would go on."""
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        child = worker.ask("fork")["pid"]
        assert not _is_gone(child)
    late = time.monotonic() + 30
    while not _is_gone(child):
        assert time.monotonic() < late
        time.sleep(0.01)
    assert not Path(f"{hangs}.over").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when it has answered")
def test_workers_end_with_a_coordinator_that_is_killed(hangs: str) -> None:
    """In the midst of an answer."""
    code = (
        "from layerlab.benchmarking.processes import WorkerProcess\n"
        f"worker = WorkerProcess({hangs!r}).__enter__()\n"
        "worker.ask('begin')\n"
        "print(worker._process.pid, flush=True)\n"
        "worker.ask('wait')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        pid = int(coordinator.stdout.readline())
        coordinator.kill()
    late = time.monotonic() + 30
    while not _is_gone(pid):
        assert time.monotonic() < late
        time.sleep(0.01)


def test_a_signal_to_the_group_is_not_the_workers(hangs: str) -> None:
    """They are in sessions of their own, and so in no group of whoever asks."""
    with WorkerProcess(hangs) as worker:
        assert worker.ask("begin") == {}
        pid = worker._process.pid
        assert os.getsid(pid) == pid


def test_nobody_is_refused_for_a_stop(hangs: str) -> None:
    """A worker that raises, or is gone, when its coordinator is stopped may have been stopped as well."""
    stops: list[int] = []

    def stop() -> None:
        if stops:
            raise Interrupted(signal.SIGTERM)

    with WorkerProcess(hangs, check=stop) as worker:
        worker.ask("begin")
        line = worker._line

        def stopped(what: str) -> bytes:
            answer = line(what)
            stops.append(1)
            return b"" if what == "wait" else answer

        worker._line = stopped  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            worker.ask("end")
        stops.clear()
        with pytest.raises(Interrupted):
            worker.ask("wait", seconds=0)
