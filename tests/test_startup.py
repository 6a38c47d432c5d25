"""What a process that is layerlab's own sets, and what it leaves alone in somebody else's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers import KEEPS_BLOCKS, run_python
from layerlab import startup

PAUSED = """
import gc, json
from layerlab import startup
if {own}:
    startup.claim()
if not {on}:
    gc.disable()
before = gc.get_freeze_count()
with startup.collector_paused():
    within = gc.isenabled()
    kept = [[] for _ in range(10_000)]
print(json.dumps([within, gc.isenabled(), gc.get_freeze_count() - before > 10_000]))
"""
HUGE = """
import re
from layerlab import startup
startup.claim()
import torch
there = torch.ones(3 << 20)  # 12 MB
for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read()):
    bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", block)
    if bounds and int(bounds[1], 16) <= there.data_ptr() < int(bounds[2], 16):
        print("hg" in re.search(r"VmFlags: (.*)", block)[1].split())
"""

# Seconds of processors' time that go by in the 50 ms after a large product, in which nobody asks for more;
# None where NumPy has not the OpenBLAS of its wheels, or one processor.
SPUN = """
import json, os, statistics, time
from layerlab import startup
startup.claim()
import numpy as np
a, spun = np.ones((500, 500)), []
for _ in range(5):
    a @ a
    before = time.process_time()
    time.sleep(0.05)
    spun.append(time.process_time() - before)
there = "scipy_openblas" in open("/proc/self/maps").read() and len(os.sched_getaffinity(0)) > 1
print(json.dumps(statistics.median(spun) if there else None))
"""

# The pages that Linux fills in when 48 MB are asked for, written to and freed, by malloc and as torch does,
# for the first time and for the second.
FAULTS = """
import ctypes, json, resource
from layerlab import startup
if {own}:
    startup.claim()
startup.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.aligned_alloc.restype = ctypes.c_void_p
libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
faults = []
for ask in (lambda: libc.malloc(48 << 20), lambda: libc.aligned_alloc(2 << 20, 48 << 20)):
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ask()
        libc.memset(block, 1, 48 << 20)
        libc.free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([startup.allocator(), faults]))
"""
# What a run is, offline, as the command makes it and as somebody's program does.
RUN = """
import layerlab
from layerlab import startup
if {own}:
    startup.claim()
(run,) = layerlab.run(plugin="numpy", steps=1, export=False, offline=True).runs
print(run.status, startup.allocator())
"""
THRESHOLD = {"MALLOC_TRIM_THRESHOLD_": "131072"}
glibc = pytest.mark.skipif(not KEEPS_BLOCKS, reason="older glibcs keep no large blocks, and others nothing")


@pytest.fixture
def _nothing_is_said_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "GLIBC_TUNABLES", *startup._THRESHOLDS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("own", "on", "expected"),
    [
        (True, True, [False, True, True]),
        (False, True, [False, True, False]),  # somebody else's garbage is still found
        (True, False, [False, False, False]),  # whoever turned it off wants it off
    ],
)
def test_the_collector_rests_and_goes_on(
    empty_folder: Path, own: bool, on: bool, expected: list[bool]
) -> None:
    """Off within; as it was afterwards; what is there is out of its sight only in a process of our own."""
    result = run_python(PAUSED.format(own=own, on=on), cwd=empty_folder)
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout) == expected


def test_what_is_made_after_the_first_pause_is_looked_through(empty_folder: Path) -> None:
    """A second pause puts nothing out of sight: what a run has left may be garbage."""
    code = """
import gc
from layerlab import startup
startup.claim()
with startup.collector_paused():
    pass
before = gc.get_freeze_count()
kept = [[] for _ in range(10_000)]
with startup.collector_paused():
    pass
print(gc.get_freeze_count() - before < 10_000, gc.isenabled())
"""
    assert run_python(code, cwd=empty_folder).stdout == "True True\n"


def test_the_recording_process_is_claimed_whoever_trains(empty_folder: Path) -> None:
    """It takes over the environment of its trainer, which may be somebody else's process."""
    code = """
import os
from layerlab import startup
from layerlab.tracking.process import Recording
startup.claim()
users = {key: value for key, value in os.environ.items() if key not in startup.ENVIRONMENT}
Recording().open("sqlite:///mlflow.db", None, ".", users)
print([os.environ[key] for key in startup.ENVIRONMENT])
"""
    result = run_python(code, cwd=empty_folder)
    assert result.stdout == "['__all__', '1', '20', 'true']\n", result.stderr


def test_the_collector_goes_on_after_a_failure(empty_folder: Path) -> None:
    """An import that fails leaves it on."""
    code = """
import gc
from layerlab import startup
try:
    with startup.collector_paused():
        raise ImportError
except ImportError:
    print(gc.isenabled())
"""
    assert run_python(code, cwd=empty_folder).stdout == "True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_threads_of_numpy_leave_the_processors_alone(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a product they do not look out for more for long; where the user said so, they do."""
    monkeypatch.delenv(startup.BLAS_TIMEOUT, raising=False)
    spun = []
    for users in ({}, {startup.BLAS_TIMEOUT: "28"}):
        result = run_python(SPUN, cwd=empty_folder, env={"OPENBLAS_NUM_THREADS": "2", **users})
        assert result.code == 0, result.stderr
        spun.append(json.loads(result.stdout))
    if None in spun:
        pytest.skip("NumPy has no threads of OpenBLAS here")
    assert spun[0] < spun[1] / 3


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason=f"no huge pages on {sys.platform}"
)
@pytest.mark.parametrize(("env", "expected"), [({}, "True\n"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "False\n")])
def test_large_tensors_ask_for_huge_pages(empty_folder: Path, env: dict[str, str], expected: str) -> None:
    """Torch asks Linux for them, unless the user said that it should not."""
    result = run_python(HUGE, cwd=empty_folder, env=env)
    assert (result.stdout, result.code) == (expected, 0), result.stderr


@glibc
@pytest.mark.usefixtures("_nothing_is_said_of_the_allocator")
@pytest.mark.parametrize(
    ("own", "env", "said"),
    [
        (True, {}, "keeps freed memory"),
        (True, {"GLIBC_TUNABLES": "glibc.rtld.nns=4"}, "keeps freed memory"),  # of something else
        (False, {}, "default"),  # somebody else's process
        (True, THRESHOLD, "MALLOC_TRIM_THRESHOLD_=131072"),
        (True, {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, "GLIBC_TUNABLES=glibc.malloc.perturb=0"),
    ],
)
def test_a_large_block_that_was_freed_is_had_again(
    empty_folder: Path, own: bool, env: dict[str, str], said: str
) -> None:
    """In a process of our own, unless the user said otherwise; pages may be of 4 KB, or of 2 MB."""
    result = run_python(FAULTS.format(own=own), cwd=empty_folder, env=env)
    assert result.code == 0, result.stderr
    allocator, (first, again, first_aligned, again_aligned) = json.loads(result.stdout)
    assert allocator == said
    if said == "keeps freed memory":
        assert max(again, again_aligned) < first / 2
    else:
        assert min(again, again_aligned) > first_aligned / 2


@glibc
@pytest.mark.usefixtures("_nothing_is_said_of_the_allocator")
@pytest.mark.parametrize(("own", "said"), [(True, "keeps freed memory"), (False, "default")])
def test_a_run_of_the_command_keeps_freed_memory(empty_folder: Path, own: bool, said: str) -> None:
    """And one in somebody's own process does not."""
    result = run_python(RUN.format(own=own), cwd=empty_folder)
    assert result.stdout == f"FINISHED {said}\n", result.stderr


@pytest.mark.parametrize("module", ["layerlab.comparison.runs", "layerlab.tracking.delivery"])
def test_telemetry_is_off_before_mlflow_is_imported(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """In whatever process, and whoever imports it; what the user says of it stays."""
    code = f"""
import os, sys
class Witness:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Witness())
import {module}
"""
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    assert run_python(code, cwd=empty_folder).stdout == "true\n"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    assert run_python(code, cwd=empty_folder).stdout == "false\n"
