"""What the command line costs before it does anything: the modules that a fresh interpreter imports."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import layerlab
from helpers import run_python

HEAVY = ["torch", "pytorch_lightning", "mlflow", "onnx", "onnxruntime", "pandas", "sklearn"]
MAIN = """
import json, sys
sys.argv = ["layerlab", *{arguments!r}]
from layerlab.cli import main
try:
    main()
except SystemExit as ended:
    print()
    print(json.dumps([ended.code, [name for name in {watched!r} if name in sys.modules]]))
"""
IMPORT = """
import json, sys
import layerlab
print(json.dumps([name for name in {watched!r} if name in sys.modules]))
"""


def imported_by(
    command: str, folder: Path, env: dict[str, str] | None = None, also: tuple[str, ...] = ()
) -> tuple[int, list[str]]:
    """The exit code of a command line, and which heavy modules it imported, or others of these."""
    code = MAIN.format(arguments=shlex.split(command), watched=[*HEAVY, *also])
    result = run_python(code, cwd=folder, env=env)
    assert result.code == 0, result.stderr
    exit_code, found = json.loads(result.stdout.splitlines()[-1])
    return exit_code or 0, found


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("run --help", 0),
        ("plugins --help", 0),
        ("plugins show --help", 0),
        ("verify --help", 0),
        ("predict --help", 0),
        ("plugins", 0),
        ("plugins --json", 0),
    ],
)
def test_help_and_listings_import_nothing_heavy(empty_folder: Path, command: str, exit_code: int) -> None:
    """They answer from metadata and text alone; NumPy, which reads the environment, comes with a command."""
    assert imported_by(command, empty_folder, also=("numpy",)) == (exit_code, [])


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("", id="no command"),
        pytest.param("train", id="unknown command"),
        pytest.param("run --stesp 5", id="unknown flag"),
        pytest.param("run --steps abc", id="flag of the wrong type"),
        pytest.param("run --plugin nope", id="unknown tier"),
        pytest.param("plugins show nope", id="show of an unknown tier"),
        pytest.param("plugins new nn", id="new tier of a taken name"),
        pytest.param("run --config unknown.yaml", id="unknown key"),
        pytest.param("run --config no.yaml", id="missing config"),
        pytest.param("run --set train.stesp=5", id="setting of an unknown key"),
        pytest.param("run --steps 0", id="no steps"),
        pytest.param("run --lr nan", id="lr NaN"),
        pytest.param("run --experiment Default", id="experiment Default"),
        pytest.param("run --data digts", id="unknown data"),
        pytest.param("run --data no.csv --target price", id="missing data file"),
        pytest.param("run --data digits --target price", id="target on digits"),
        pytest.param("run --data houses.csv", id="no target"),
        pytest.param("run --data houses.csv --target price", id="text in a column"),
        pytest.param("run --batch-size 65", id="batch too large for random data"),
        pytest.param("run --plugin numpy --accelerator gpu", id="numpy on a GPU"),
        pytest.param("run --plugin numpy --precision bf16-mixed", id="numpy in bf16"),
        pytest.param("verify no.onnx", id="verify of a missing file"),
        pytest.param("predict no.onnx houses.csv", id="predict with a missing model"),
        pytest.param("predict no.onnx no.csv", id="predict of missing rows"),
    ],
)
def test_usage_errors_import_nothing_heavy(empty_folder: Path, command: str) -> None:
    """What can be known to be wrong without torch is told without torch: exit code 2."""
    Path("unknown.yaml").write_text("train:\n  stesp: 5\n")
    Path("houses.csv").write_text("area,price\n1,2\nbig,4\n")
    assert imported_by(command, empty_folder) == (2, [])


def test_a_listing_with_plugins_imports_nothing_heavy(empty_folder: Path) -> None:
    """A third party's tier in the list costs no import either, of it or of what it needs."""
    site = empty_folder / "site"
    info = site / "heavy_dist-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[layerlab.tiers]\nheavy = heavy_tier:Heavy\n")
    (site / "heavy_tier.py").write_text("import torch, pandas\n")
    env = {"PYTHONPATH": str(site), "LAYERLAB_PLUGINS": "heavy-dist"}
    assert imported_by("plugins", empty_folder, env) == (0, [])
    code = MAIN.format(arguments=["plugins"], watched=["heavy_tier"])
    result = run_python(code, cwd=empty_folder, env=env)
    assert "heavy-dist" in result.stdout
    assert json.loads(result.stdout.splitlines()[-1]) == [0, []]


def test_import_layerlab_costs_nothing(empty_folder: Path) -> None:
    """``import layerlab`` imports no dependency at all."""
    watched = [*HEAVY, "numpy", "pydantic", "typer", "rich", "yaml", "pyarrow", "filelock"]
    result = run_python(IMPORT.format(watched=watched), cwd=empty_folder)
    assert json.loads(result.stdout) == []


def test_every_public_name_resolves() -> None:
    """Each name of ``__all__`` is there once, and leads to something of layerlab's own."""
    assert len(layerlab.__all__) == len(set(layerlab.__all__))
    for name in layerlab.__all__:
        thing = getattr(layerlab, name)
        assert thing.__name__ == name
        assert thing.__module__.startswith("layerlab.")
    assert dir(layerlab) == sorted(layerlab.__all__)


def test_a_name_that_is_not_public_is_not_there() -> None:
    """The usual error, so that ``hasattr`` and typos behave as everywhere."""
    assert not hasattr(layerlab, "runn")
    with pytest.raises(AttributeError, match="module 'layerlab' has no attribute 'runn'"):
        layerlab.runn  # noqa: B018


@pytest.mark.slow
def test_the_benchmark_of_entry_costs_runs(empty_folder: Path) -> None:
    """``benchmarks/entry_cost.py`` measures every command against the bare imports."""
    script = Path(__file__).parents[1] / "benchmarks" / "entry_cost.py"
    done = subprocess.run(
        [sys.executable, script, "--rounds", "1"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line for line in done.stdout.splitlines() if line.startswith("layerlab ")]
    assert len(rows) >= 4
    assert all(float(line.split()[-1]) > 0 for line in rows)


def test_lightning_comes_without_what_no_training_needs(empty_folder: Path) -> None:
    """What torchmetrics imports to repair it, or to plot, is not imported; who wants it gets all of it."""
    code = """
import json, sys
import layerlab.training
before = [name for name in sys.modules if name.partition(".")[0] in ("scipy", "matplotlib")]
import scipy.signal, torch, torchmetrics
from torchmetrics.functional.audio import permutation_invariant_training
metric = torchmetrics.MeanMetric()
metric.update(torch.tensor(3.0))
figure, axis = metric.plot()
from matplotlib.axes import Axes
from torchmetrics.utilities import plot
print(json.dumps([before, scipy.signal.convolve([1, 2], [3]).tolist(), bool(scipy.__version__)]))
print(json.dumps([isinstance(axis, Axes), plot._AX_TYPE is Axes, bool(plot._MATPLOTLIB_AVAILABLE)]))
"""
    result = run_python(code, cwd=empty_folder, env={"MPLBACKEND": "Agg"})
    one, other = map(json.loads, result.stdout.splitlines())
    assert one == [[], [3, 6], True]
    assert other == [True, True, True]


def test_what_was_imported_first_stays(empty_folder: Path) -> None:
    """A program that uses SciPy and Matplotlib keeps their modules, and torchmetrics has them too."""
    code = """
import sys, scipy.signal as signal, matplotlib.axes as axes
import layerlab.training
from torchmetrics.utilities import plot
print(sys.modules["scipy.signal"] is signal, plot._AX_TYPE is axes.Axes)
"""
    assert run_python(code, cwd=empty_folder).stdout == "True True\n"


def test_what_is_executed_later_is_what_it_would_be(empty_folder: Path) -> None:
    """Types hold what they held, whoever asks for more gets it, and a failure is told every time."""
    code = """
import sys
import layerlab.training
import torch, torchmetrics
from torchmetrics.utilities import plot
from torchmetrics.utilities.plot import plot_curve
print(plot_curve.__module__, plot_curve.__name__, hasattr(plot, "__warningregistry__"))
sys.modules["matplotlib"] = None  # there is none to import
for _ in range(2):
    try:
        plot.trim_axs
    except ImportError as error:
        print(error.name)
del sys.modules["matplotlib"]
metric = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])
metric.update(torch.tensor(3.0))
try:
    metric.plot(ax="nonsense", together=True)
except ValueError as error:
    print(error)
from torchmetrics.utilities.plot import trim_axs
print(trim_axs is plot.trim_axs, plot_curve is not plot.plot_curve, hasattr(plot, "nothing"))
print("plot_confusion_matrix" in dir(plot))
"""
    result = run_python(code, cwd=empty_folder, env={"MPLBACKEND": "Agg"})
    said = result.stdout.splitlines()
    assert said[0] == "torchmetrics.utilities.plot plot_curve False", result.stderr
    assert said[1:3] == ["matplotlib", "matplotlib"]
    assert "Expected argument `ax` to be a matplotlib axis object" in said[3]
    assert said[4:] == ["True True False", "True"]


def test_two_threads_execute_it_once(empty_folder: Path) -> None:
    """Whoever comes while it is being executed has what is there before, and what is called waits."""
    code = """
import sys, threading
import layerlab.training
from torchmetrics.utilities import plot
begun, go = threading.Event(), threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            begun.set()
            go.wait(60)
sys.meta_path.insert(0, Slow())
first = threading.Thread(target=lambda: plot.trim_axs)
first.start()
begun.wait(60)
from torchmetrics.utilities.plot import plot_curve
seen = []
second = threading.Thread(target=lambda: seen.append(plot.trim_axs))
second.start()
go.set()
first.join()
second.join()
print(plot_curve.__name__, seen[0] is plot.trim_axs)
"""
    assert run_python(code, cwd=empty_folder).stdout == "plot_curve True\n"


def test_what_torchmetrics_imports_beside_finds_the_real_scipy(empty_folder: Path) -> None:
    """librosa, where it is installed, is imported by torchmetrics too; nothing is left of the stand-in."""
    Path("librosa-1.0.dist-info").mkdir()
    Path("librosa-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: librosa\nVersion: 1.0\n")
    Path("librosa.py").write_text("import scipy.sparse, scipy.signal\nfrom scipy.fft import fft\n")
    code = """
import json, sys
import layerlab.training
import librosa, scipy.signal, torchmetrics.functional.audio.nisqa as nisqa
held = [m.__name__ for m in list(sys.modules.values()) if vars(m).get("scipy", scipy) is not scipy]
real = scipy.signal.convolve([1, 2], [3]).tolist()
print(json.dumps([nisqa.librosa is librosa, librosa.scipy is scipy, real, held]))
"""
    result = run_python(code, cwd=empty_folder, env={"PYTHONPATH": _path_with(empty_folder)})
    assert json.loads(result.stdout or "null") == [True, True, [3, 6], []], result.stderr


def _path_with(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
