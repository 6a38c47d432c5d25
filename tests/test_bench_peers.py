"""The peers of the bench: who is measured, who is refused, who is not there. No test looks at how fast."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest

from helpers import run_python
from layerlab.benchmarking.peers import PEERS
from layerlab.benchmarking.peers.worker import PeerWorker
from layerlab.errors import AcceleratorError

needs_all = pytest.mark.skipif(
    any(importlib.util.find_spec(peer.package) is None for peer in PEERS.values()),
    reason="skorch or keras is not installed: pip install 'layerlab[peers]'",
)
SMALL = ["--batch-size", 8, "--d-in", 6, "--d-out", 3, "--seconds", 0.01]

# One has another rate, one gives its tenth answer for ever, one leaves out the last steps: each by what the
# script itself calls.
CHEATS = """
import importlib, os

def wrong_rate():
    import torch
    first = torch.optim.SGD.__init__
    torch.optim.SGD.__init__ = lambda self, params, lr: first(self, params, lr=0.5 * lr)

def replays():
    from skorch import NeuralNet
    real = NeuralNet.train_step
    seen = []
    def train_step(self, *args, **kwargs):
        if len(seen) < 10:
            seen.append(real(self, *args, **kwargs))
        return seen[-1]
    NeuralNet.train_step = train_step

def stops_early():
    import keras
    real = keras.Sequential.fit
    def fit(self, *args, epochs, **kwargs):
        return real(self, *args, epochs=epochs - 3, **kwargs)
    keras.Sequential.fit = fit

cheats = {"lightning_script": wrong_rate, "skorch_net": replays, "keras_model": stops_early}
real = importlib.import_module

def import_module(name, package=None):
    module = real(name, package)
    cheats.get(name.rpartition(".")[2], lambda: None)()
    return module

importlib.import_module = import_module
"""

BLOCKS = """
import sys

class Blocks:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocks())
"""


@pytest.fixture
def in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has a piece of code run first in every process that is started from here on."""

    def install(code: str) -> None:
        place = tmp_path / "first"
        place.mkdir()
        (place / "sitecustomize.py").write_text(code)
        before = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), *([before] if before else [])]))

    return install


@pytest.mark.slow
@needs_all
def test_peers_beside_a_tier(folder: Path, client: Any, layerlab_cli: Any) -> None:
    """Each has its rounds, beside the tier that does the same."""
    flags = ["--hidden", 5, "--rounds", 2, "--mode", "bare"]
    result = layerlab_cli("bench", "custom-module", *SMALL, *flags, "--peers", "--json")
    report = json.loads(result.stdout)
    assert (result.code, report["ok"], report["peers_missing"]) == (0, True, {})
    metrics = client.get_run(report["run_id"]).data.metrics
    (config,) = report["configs"]
    assert config["peers_refused"] == {}
    rows = {row["peer"]: row for row in config["peers"]}
    assert list(rows) == list(PEERS)
    assert [row["mode"] for row in rows.values()] == ["tracked", "bare", "bare"]
    (tier,) = config["rows"]
    for name, row in rows.items():
        assert len(row["timing"]["rounds"]) == 2
        assert 0 < row["timing"]["low"] <= row["timing"]["median"] <= row["timing"]["high"]
        assert row["distribution"].startswith(PEERS[name].distribution)
        assert "every round" in row["audit"]
        for end, of in (("", "median"), ("_low", "low"), ("_high", "high")):
            assert metrics[f"peers/{name}/{row['mode']}_us{end}"] == row["timing"][of] * 1e6
    assert rows["lightning-script"]["ratio"] is None  # the tier's tracked loop was not measured
    keras = rows["keras"]
    pairs = zip(keras["timing"]["rounds"], tier["timings"]["bare"]["rounds"], strict=True)
    assert keras["ratio"] == pytest.approx(statistics.median(a / b for a, b in pairs))
    ends = [metrics[f"peers/keras/ratio{end}"] for end in ("", "_low", "_high")]
    assert ends == [keras["ratio"], *keras["ratio_ends"]]


@pytest.mark.slow
@needs_all
def test_what_a_peer_computes_in_is_seen(empty_folder: Path) -> None:
    """Float64 is float64, but for Keras, which says so; nobody takes more threads than the others."""
    code = """
import torch
from layerlab.benchmarking.peers.worker import PeerWorker
from layerlab.errors import TierError
for name in ("lightning-script", "skorch", "keras"):
    worker = PeerWorker(name, "64-true", "cpu", name)
    worker.begun()
    try:
        print(worker.time([8, 6, 5, 3], 40, 0)["fault"])
    except TierError as error:
        print(error)
worker = PeerWorker("skorch", "32-true", "cpu", "threads")
worker.begun()
torch.set_num_threads(torch.get_num_threads() + 1)
print(worker.time([8, 6, 5, 3], 40, 0)["fault"])
"""
    script, skorch, keras, more = run_python(code, cwd=empty_folder).stdout.splitlines()
    assert (script, skorch) == ("None", "None")
    assert re.fullmatch(r"Keras \S+ multiplies float64 as float32, and the job is in float64", keras)
    assert more.startswith("changes the settings of its process: threads from ")


@pytest.mark.slow
@needs_all
def test_a_peer_that_does_less_is_refused(folder: Path, layerlab_cli: Any, in_workers: Any) -> None:
    """Another rate, answers given again, steps left out: no row, a reason, exit 1; the tier keeps its row."""
    in_workers(CHEATS)
    quick = ["--hidden", 5, "--rounds", 1, "--mode", "bare"]
    result = layerlab_cli("bench", "numpy", *SMALL, *quick, "--peers", "--json")
    report = json.loads(result.stdout)
    (config,) = report["configs"]
    assert (result.code, report["ok"], config["peers"], config["refused"]) == (1, False, [], {})
    assert [row["tier"] for row in config["rows"]] == ["numpy"]
    refused = config["peers_refused"]
    assert set(refused) == set(PEERS)
    assert re.match(r"fails its audit \(tracked\): timed step \d gave the loss", refused["lightning-script"])
    assert re.match(r"fails its audit \(bare\): timed step 1\d gave the loss", refused["skorch"])
    assert "of 26 steps 23 steps began and 23 losses were kept" in refused["keras"]


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layerlab_cli: Any, in_workers: Any
) -> None:
    """One line, and no failure; who is installed is measured, and leaves no files behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_workers(BLOCKS.format(blocked=["skorch", "keras"]))
    quick = ["--hidden", 5, "--rounds", 1, "--mode", "bare"]
    result = layerlab_cli("bench", "numpy", *SMALL, *quick, "--peers")
    assert result.code == 0, result.stdout
    assert not list(tmp_path.glob("layerlab-peers-*"))
    said = [line for line in result.stdout.splitlines() if "not installed" in line]
    assert said == ["peers not installed: skorch, keras (pip install 'layerlab[peers]')"]
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("lightning-script ")]
    assert "tracked" in row
    assert " x " not in row  # there is nothing of ours to compare with
    assert "refused" not in result.stdout
    report = json.loads(next(folder.glob("mlruns/**/bench.json")).read_text())
    assert report["peers_missing"] == dict.fromkeys(["skorch", "keras"], "pip install 'layerlab[peers]'")
    (config,) = report["configs"]
    assert [(peer["peer"], peer["ratio"]) for peer in config["peers"]] == [("lightning-script", None)]


def test_a_gpu_that_is_not_there_refuses_a_peer(empty_folder: Path) -> None:
    """Before anything is imported for it."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU on this machine")
    with pytest.raises(AcceleratorError, match="there is no CUDA device"):
        PeerWorker("skorch", "32-true", "gpu", str(empty_folder / "new"))
    assert not list(empty_folder.iterdir())
