"""What a worker's process says of itself: machine, settings, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from layerlab import startup

# How long the threads of a library are waited for, how often they are looked at, and how long they are given
# where nobody can look.
_LONGEST, _LOOK, _SPINNING = 1.0, 0.005, 0.2
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def settings() -> dict[str, Any]:
    """What makes everybody faster or slower: the same for all tiers, and not theirs to change."""
    return {
        "threads": torch.get_num_threads(),
        "blas_threads": max((pool["num_threads"] for pool in _blas().info()), default="unknown"),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "huge_pages": _huge_pages(),
        "openblas_thread_timeout": os.environ.get(startup.BLAS_TIMEOUT, "default"),
        "cuda_allocator": next((os.environ[key] for key in _ALLOCATOR if key in os.environ), "default"),
    }


@cache
def _blas() -> ThreadpoolController:
    """NumPy's BLAS, found once: to look through what is loaded takes milliseconds."""
    return ThreadpoolController().select(user_api="blas")


def changed(before: dict[str, Any]) -> str | None:
    """Which settings are no longer what they were, or None."""
    now = settings()
    said = [f"{key} from {before[key]} to {now[key]}" for key in before if now[key] != before[key]]
    return f"changes the settings of its process: {', '.join(said)}" if said else None


def machine(device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    """The machine, the settings with which everybody began, and the versions."""
    clock = time.get_clock_info("perf_counter")
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        **settings,
        "cpu_allocator": startup.allocator(),
        "clock": f"{clock.implementation}, {clock.resolution:g} s",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def settle() -> bool:
    """Waits until no other thread of this process runs, for a second at most; whether they rest.

    A library's threads look out for more work for a while after they had some, OpenBLAS's for a tenth of a
    second where nothing else is said (`startup.ENVIRONMENT`): where there are as many of torch's as there are
    processors, they take turns with these. The oracle's work before a clock starts must not be in what the
    clock shows.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # there is no such folder on this system: nobody can look
        time.sleep(_SPINNING)
        return True
    late = time.monotonic() + _LONGEST
    own = str(threading.get_native_id())
    while any(task.name != own and _runs(task) for task in tasks.iterdir()):
        if time.monotonic() >= late:
            return False
        time.sleep(_LOOK)
    return True


def _runs(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # the thread has ended
        return False


def give_back() -> None:
    """Has garbage collected, and the allocator give back what it keeps of freed memory.

    glibc keeps freed blocks in the process, see malloc_trim(3) and `startup.keep_freed_memory`. Whoever gets
    such a block again holds memory, and the process does not grow; and where a round's tensors lie would
    depend on the rounds before it.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_modules() -> None:
    """Takes what is alive now, modules above all, from what `give_back` looks through.

    With Lightning and MLflow that is half a million objects, and a quarter of a second before every mode.
    """
    gc.collect()
    gc.freeze()


class Peak:
    """The most memory that is held from here on beyond what is held now; made after `give_back`.

    On CUDA that of the tensors, and of what cuBLAS takes to work in: 32 MiB a thread and stream on Hopper, at
    the first product after it was given back, which is here. On Linux the pages of the process, whose
    high-water mark is put back here. Where that cannot be done, only what goes beyond the highest mark of the
    process's life is seen.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # no public name; every round takes them anew, and alike
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)
        except OSError:
            self._before = _highest()
        else:
            self._before = _status("VmRSS") or _highest()

    def grown(self) -> int:
        """The bytes by which it grew."""
        if self._device.type == "cuda":
            return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)
        return max(0, (_status("VmHWM") or _highest()) - self._before)


def _highest() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def _huge_pages() -> bool:
    """Whether torch asks for huge pages, and Linux has them for whoever asks."""
    try:
        never = "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:  # another system
        return False
    return os.environ.get(startup.HUGE_PAGES) == "1" and not never


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
