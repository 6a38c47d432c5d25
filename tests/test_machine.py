"""What a worker of the bench says of its process: who is at work in it, and what it holds."""

from __future__ import annotations

import gc
import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from layerlab.benchmarking import machine


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no system call tells who runs")
class TestSettling:
    """What a thread of the process is still busy with is waited for, and not for ever."""

    @pytest.fixture
    def busy(self) -> Iterator[Callable[[], float]]:
        """A thread at work in C; the function waits for it, and gives the seconds that it worked."""
        spent: list[float] = []

        def work() -> None:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000)
            spent.append(time.thread_time())

        thread = threading.Thread(target=work)
        thread.start()

        def end() -> float:
            thread.join()
            return spent[0]

        yield end
        thread.join()

    def test_a_busy_thread_is_waited_for(
        self, busy: Callable[[], float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has done its work when the wait is over."""
        monkeypatch.setattr(machine, "_LONGEST", 60.0)
        began = time.monotonic()
        assert machine.settle()
        waited = time.monotonic() - began
        assert waited > 0.9 * busy()

    def test_a_thread_that_does_not_end_is_not(
        self, busy: Callable[[], float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The wait ends before its work does."""
        monkeypatch.setattr(machine, "_LONGEST", 0.0)
        began = time.thread_time()
        assert not machine.settle()
        assert time.thread_time() - began < busy()


def test_who_cannot_look_takes_it_that_all_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A thread that ended between two looks is at rest; where there are no threads to see, nobody runs."""
    assert not machine._runs(tmp_path / "gone")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "none")
    monkeypatch.setattr(machine, "_SPINNING", 0.0)
    assert machine.settle()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no high-water mark to put back")
class TestPeak:
    """What is held at once counts, whoever held the memory before."""

    SIZE = 12_000_000

    def block(self) -> np.ndarray:
        """So many bytes, every page of them written."""
        return np.ones(self.SIZE, dtype=np.uint8)

    def test_memory_from_the_reserve_of_the_allocator_is_held(self) -> None:
        """A block that was freed before, and is handed out again, is no less memory than a new one."""
        first = self.block()
        del first  # glibc takes blocks of this size from the heap from now on
        below, above = self.block(), [bytes(100_000) for _ in range(10)]
        del below  # and keeps this one, as it is not the last of the heap
        machine.give_back()
        peak = machine.Peak(torch.device("cpu"))
        held = self.block()
        assert peak.grown() > 0.95 * held.nbytes
        assert above

    def test_what_was_held_before_does_not_count(self) -> None:
        """Neither what is still held, nor a peak that is over."""
        held = self.block()
        before = np.ones(3 * self.SIZE, dtype=np.uint8)
        del before
        machine.give_back()
        assert machine.Peak(torch.device("cpu")).grown() < 0.5 * held.nbytes


def test_what_was_kept_is_not_looked_through_and_what_comes_later_is_given_back() -> None:
    """Modules stay out of every collection; a cycle that was made after them does not."""

    class Holds:
        def __init__(self) -> None:
            self.itself = self

    machine.keep_modules()
    try:
        looked_through = len(gc.get_objects())
        assert gc.get_freeze_count() > 10 * looked_through
        seen = weakref.ref(Holds())
        machine.give_back()
        assert seen() is None
    finally:
        gc.unfreeze()
