"""``layerlab plugins --check`` outlives every plugin: one that hangs or crashes is a row with a reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import BUILTINS, Site

# A tier that imports nothing heavy: what is inspected here is how its module behaves.
LIGHT = """
from layerlab import Params, Recipe, Tier


class Good(Tier):
    contract_version = 1
    recipe = Recipe(optimizer="sgd", lr=1e-4, init="linear", bias=False)

    def __init__(self, params, *, lr, device, dtype): ...
    def forward(self, x): ...
    def params(self): ...
    def step(self, x, y): ...
"""
# Its recipe has something that no JSON has a word for.
NOTED = """
from dataclasses import dataclass

from layerlab import Recipe


@dataclass(frozen=True)
class Noted(Recipe):
    note: object = object()
""" + LIGHT.replace("Recipe(optimizer", "Noted(optimizer")
# What a module does before, or after, its class is there; and what its row says.
MODULES = {
    "exits": (f"import sys; sys.exit(3)\n{LIGHT}", "cannot be loaded: SystemExit: 3"),
    "raises-no-exception": (f"raise GeneratorExit('odd')\n{LIGHT}", "cannot be loaded: GeneratorExit: odd"),
    "leaves": (f"import os; os._exit(0)\n{LIGHT}", "cannot be loaded: it ends its process with code 0"),
    "leaves-with-a-code": (f"import os; os._exit(7)\n{LIGHT}", "it ends its process with code 7"),
    "aborts": (f"import os; os.abort()\n{LIGHT}", "cannot be loaded: its process is ended by SIGABRT"),
    "crashes": (f"import ctypes; ctypes.string_at(0)\n{LIGHT}", "its process is ended by SIGSEGV"),
    "kills-its-group": (f"import os; os.killpg(0, 9)\n{LIGHT}", "its process is ended by SIGKILL"),
    "says-much-and-fails": ("raise RuntimeError('no\\n' * 10**6)", "RuntimeError: no no"),
    "has-another-bias": (LIGHT.replace("bias=False", "bias=1"), "recipe.bias is 1, neither True nor False"),
    "cannot-be-described": (NOTED, "cannot be described: TypeError"),
    "prints": (f"import os\nfor _ in range(2000):\n    print('#' * 99); os.write(1, b'x')\n{LIGHT}", "ok"),
    "asks": (f"import sys; assert sys.stdin.read() == ''\n{LIGHT}", "ok"),
    "starts-a-thread": (
        f"import threading; threading.Thread(target=threading.Event().wait).start()\n{LIGHT}",
        "ok",
    ),
    "has-an-exit-handler-that-hangs": (
        f"import atexit\n{LIGHT}\n@atexit.register\ndef f():\n while 1: ...",
        "ok",
    ),
}


def statuses(result: Any) -> dict[str, str]:
    assert result.code == 0
    return {entry["name"]: entry["status"] for entry in json.loads(result.stdout)}


def test_whatever_a_plugin_does_it_is_a_row(site: Site, layerlab_cli: Any) -> None:
    """All of them at once: each has its own status, and the built-ins and a good plugin are ok."""
    for name, (code, _) in MODULES.items():
        site.add(f"inspected-{name}", {name: "MODULE:Good"}, code)
    site.add("inspected-good", {"good": "MODULE:Good"}, LIGHT)
    site.allow("inspected-good", *(f"inspected-{name}" for name in MODULES))
    found = statuses(layerlab_cli("plugins", "--check", "--json"))
    assert set(found) == {*BUILTINS, *MODULES, "good"}
    assert {found[name] for name in [*BUILTINS, "good"]} == {"ok"}
    wrong = {
        name: found[name]
        for name, (_, said) in MODULES.items()
        if not (found[name] == said == "ok" or (found[name].startswith("broken: ") and said in found[name]))
    }
    assert wrong == {}
    assert max(map(len, found.values())) <= 2000


HANGS = """
import os
pipe = open({fifo!r}, "w")
print("began", file=pipe, flush=True)
if {forks}:
    os.fork()
while True:
    pass
"""


def test_what_hangs_is_killed_with_its_children_when_its_time_is_over(
    site: Site, tmp_path: Path, layerlab_cli: Any
) -> None:
    """The tier says so; the one before it is ok, the one after it was not loaded; nothing runs on."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    module = site.add("inspected-slow", {"a-quick": "MODULE:Good", "c-after": "MODULE:Good"}, LIGHT)
    (site.path / "module_of_hanging.py").write_text(HANGS.format(fifo=str(fifo), forks=True))
    points = site.path / "inspected_slow-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"{points.read_text()}b-hangs = module_of_hanging:Good\n")
    site.add("inspected-good", {"good": "MODULE:Good"}, LIGHT)
    site.allow("inspected-slow", "inspected-good")
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # so that the plugin does not wait for a reader
    found = statuses(layerlab_cli("plugins", "--check", "--timeout", 5, "--json"))
    late = "its distribution took more than 5 seconds"
    assert {name: status for name, status in found.items() if name not in BUILTINS} == {
        "a-quick": "ok",
        "b-hangs": f"broken: tier 'b-hangs' of inspected-slow 1.0 cannot be loaded: {late}",
        "c-after": f"broken: tier 'c-after' of inspected-slow 1.0 was not loaded: {late}",
        "good": "ok",
    }
    assert module not in sys.modules, "nothing of it was loaded here"
    os.set_blocking(reading, True)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "began\n", "the end comes when all who held the other side are gone"


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_command_that_is_stopped_leaves_no_process(
    site: Site, empty_folder: Path, tmp_path: Path, signum: int, code: int
) -> None:
    """However the command ends, what it started to load a plugin ends too."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    site.add("inspected-endless", {"endless": "MODULE:Good"}, HANGS.format(fifo=str(fifo), forks=False))
    site.allow("inspected-endless")
    path = os.pathsep.join([str(site.path), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-m", "layerlab", "plugins", "--check"],
        cwd=empty_folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with fifo.open() as pipe:
        assert pipe.readline() == "began\n"
        process.send_signal(signum)
        assert process.wait(60) == code
        assert pipe.read() == ""


def test_a_signal_during_an_import_is_no_fault_of_the_plugin(site: Site, layerlab_cli: Any) -> None:
    """Ctrl-C while a chosen tier is loaded ends the command as a signal does, not as bad input."""
    site.add("inspected-here", {"here": "MODULE:Good"}, "import os\nos.kill(os.getpid(), 2)\n")
    site.allow("inspected-here")
    result = layerlab_cli("plugins", "show", "here")
    assert (result.code, result.stderr) == (130, "error: stopped by SIGINT\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--timeout", 5), "--timeout belongs to --check"),
        (("--check", "--timeout", 0), "--timeout 0: should be a finite number of seconds above 0"),
        (("--check", "--timeout", "nan"), "--timeout nan: should be a finite number of seconds above 0"),
        (("--check", "--timeout", "inf"), "--timeout inf: should be a finite number of seconds above 0"),
    ],
)
def test_a_limit_that_is_none_is_refused(layerlab_cli: Any, arguments: tuple[Any, ...], said: str) -> None:
    """Exit code 2, before anything is loaded."""
    result = layerlab_cli("plugins", *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {said}"
