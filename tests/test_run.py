"""The main job: train, record, export, report."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import layerlab
from helpers import BUILTINS, TINY
from layerlab.data.random import random_dataset
from layerlab.errors import TierError
from layerlab.reference import Adam, gradients, initial_params, sgd
from layerlab.spec import DataSpec
from layerlab.tiers.nn import NnTier

if TYPE_CHECKING:
    from layerlab.data.dataset import Dataset


def oracle_losses(
    tier: str, steps: int, *, n: int = 64, d_in: int = 1000, d_out: int = 10, hidden: int = 100
):
    """The losses of a tier's own recipe on the random problem, in float64."""
    from layerlab import registry

    recipe = registry.load(registry.find(tier)).recipe
    data: Dataset = random_dataset(DataSpec(n=n, d_in=d_in, d_out=d_out), seed=0)
    params = initial_params(d_in, hidden, d_out, init=recipe.init, bias=recipe.bias, seed=0)
    adam = Adam(recipe.lr)
    losses = []
    for _ in range(steps):
        loss, grads = gradients(params, data.x, data.y)
        losses.append(loss)
        params = (
            adam.update(params, grads) if recipe.optimizer == "adam" else sgd(params, grads, lr=recipe.lr)
        )
    return losses


@pytest.fixture(scope="module")
def default_runs(tmp_path_factory: pytest.TempPathFactory, migrated_db: Path):
    """All seven tiers on the default problem, 500 steps each, once."""
    import shutil

    folder = tmp_path_factory.mktemp("default")
    shutil.copy(migrated_db, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, layerlab.run(plugin="all")


@pytest.mark.parametrize("tier", BUILTINS)
def test_default_problem_falls_as_the_mathematics_says(default_runs, tier: str) -> None:
    """First and last loss of 500 steps are those of the float64 oracle under the tier's recipe.

    The first loss is one evaluation: float32 holds it to 1e-5. Rounding grows over 500 steps, and the last
    losses are themselves near 0, so the last is held to its place: below 1e-3, as the oracle's is.
    """
    run = next(r for r in default_runs[1].runs if r.tier == tier)
    oracle = oracle_losses(tier, 500)
    assert (run.status, run.steps, run.error) == ("FINISHED", 500, None)
    assert run.first_loss == pytest.approx(oracle[0], rel=1e-5)
    assert oracle[-1] < 1e-3
    assert run.final_loss < 1e-3


def test_first_losses_are_of_the_size_that_is_known(default_runs) -> None:
    """About 3e7 for weights drawn standard normal, about 630 for those of `nn.Linear`."""
    first = {r.tier: r.first_loss for r in default_runs[1].runs}
    assert all(2e7 < first[t] < 5e7 for t in BUILTINS[:4])
    assert all(550 < first[t] < 720 for t in BUILTINS[4:])


@pytest.mark.parametrize("tier", BUILTINS)
def test_every_loss_is_a_point_at_its_step(default_runs, tier: str) -> None:
    """MLflow holds 500 losses at the steps 0 to 499, and they are the oracle's while rounding is small."""
    from mlflow import MlflowClient

    folder, report = default_runs
    run = next(r for r in report.runs if r.tier == tier)
    history = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_metric_history(run.run_id, "loss")
    history.sort(key=lambda m: m.step)
    assert [m.step for m in history] == list(range(500))
    assert history[0].value == run.first_loss
    assert history[-1].value == run.final_loss
    np.testing.assert_allclose([m.value for m in history[:50]], oracle_losses(tier, 50), rtol=1e-3)


def test_the_report_has_the_promised_shape(folder: Path, layerlab_cli) -> None:
    """``--json`` prints the report, and nothing else, on stdout."""
    arguments = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]
    result = layerlab_cli("run", "--plugin", "nn", *arguments, "--val-fraction", 0.25, "--json")
    report = json.loads(result.stdout)
    assert result.code == 0, result.stdout
    assert set(report) == {"runs", "tracking_uri"}
    (run,) = report["runs"]
    promised = {
        *("tier", "distribution", "version", "status", "run_id", "experiment", "steps", "first_loss"),
        *("final_loss", "val", "device", "seconds", "onnx"),
    }
    assert promised <= set(run)
    assert set(run["seconds"]) == {"setup", "train", "export", "total"}
    assert set(run["onnx"]) == {"path", "max_abs_diff", "atol", "rtol", "batch_sizes"}
    assert set(run["val"]) == {"val_loss", "val_r2"}
    assert (run["tier"], run["distribution"], run["status"], run["device"]) == (
        "nn",
        "layerlab",
        "FINISHED",
        "cpu",
    )
    assert run["onnx"]["batch_sizes"] == [1, 2, 7, 8]
    assert Path(run["onnx"]["path"]).is_file()
    assert report["tracking_uri"] == "sqlite:///mlflow.db"


def test_the_same_seed_gives_the_same_run(folder: Path) -> None:
    """Two runs of one seed end with the same bits; another seed does not."""
    data = {"data": "iris", "epochs": 2, "hidden": 4}
    first, second = (layerlab.run(plugin="optim", **data).runs[0] for _ in range(2))
    other = layerlab.run(plugin="optim", **data, seed=1).runs[0]
    assert (first.final_loss, first.val) == (second.final_loss, second.val)
    assert other.final_loss != first.final_loss


def test_equal_footing_curves_lie_on_each_other(folder: Path, client: Any) -> None:
    """From the same first weights, without bias and at one rate, the six tiers of gradient descent agree.

    They add up in different orders in float32, and an error of one rounding (6e-8) in the parameters grows
    over the steps: 1e-4 over 100 steps of this problem is far above what is seen and far below any mistake.
    """
    config = Path(__file__).parents[1] / "experiments" / "equal-footing.yaml"
    report = layerlab.run(config=config, steps=100, export=False)
    curves = {}
    for run in report.runs:
        history = sorted(client.get_metric_history(run.run_id, "loss"), key=lambda m: m.step)
        curves[run.tier] = [m.value for m in history]
    assert list(curves) == BUILTINS
    adam = curves.pop("optim")
    for tier, curve in curves.items():
        np.testing.assert_allclose(curve, curves["numpy"], rtol=1e-4, err_msg=tier)
    assert adam[0] == pytest.approx(curves["numpy"][0], rel=1e-6)
    assert adam[-1] > 2 * curves["numpy"][-1]


def test_digits_are_learned_as_by_a_plain_script(folder: Path) -> None:
    """Adam at 1e-3, batch 32, 30 epochs reaches 0.98 of the validation rows; a row is 0.0028 of them."""
    run = layerlab.run(plugin="optim", data="digits", epochs=30, lr=1e-3).runs[0]
    assert run.status == "FINISHED"
    assert run.steps == 30 * math.ceil((1797 - 359) / 32)
    assert run.val["val_accuracy"] >= 0.97
    assert run.val["val_loss"] > 0


@pytest.mark.parametrize(
    ("data", "figure"),
    [
        ("diabetes", "val_r2"),
        ("linnerud", "val_r2"),
        ("breast_cancer", "val_accuracy"),
        ("wine", "val_accuracy"),
        ("iris", "val_accuracy"),
    ],
)
def test_every_bundled_data_set_trains_and_exports(folder: Path, data: str, figure: str) -> None:
    """Each runs from its name alone, with validation figures and a checked file."""
    run = layerlab.run(plugin="custom-module", data=data, epochs=3, hidden=8).runs[0]
    assert (run.status, run.error) == ("FINISHED", None)
    assert figure in run.val
    assert Path(run.onnx["path"]).is_file()


def test_one_failing_tier_does_not_stop_the_others(folder: Path, layerlab_cli, client: Any) -> None:
    """A rate that blows up standard normal weights leaves the others running; the exit code tells."""
    result = layerlab_cli(
        "run", "--plugin", "tensors", "--plugin", "nn", "--lr", "1e-4", "--steps", 30, "--json"
    )
    failed, finished = json.loads(result.stdout)["runs"]
    assert result.code == 1
    assert (failed["tier"], failed["status"], finished["status"]) == ("tensors", "FAILED", "FINISHED")
    assert "loss became" in failed["error"]
    assert failed["onnx"] is None
    record = client.get_run(failed["run_id"])
    assert record.info.status == "FAILED"
    assert record.data.tags["layerlab.reason"] == failed["error"]
    step = int(failed["error"].rpartition(" ")[2])
    steps = [m.step for m in client.get_metric_history(failed["run_id"], "loss")]
    assert sorted(steps) == list(range(step)), "the losses up to the one that is not a number are kept"


@pytest.mark.parametrize("hint", ["apt install what-is-missing", None])
def test_a_tier_that_cannot_be_built_gives_its_own_hint(
    folder: Path, hint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tier says the user can do reaches the user; nothing points at a traceback that is not kept."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise TierError("something is missing", hint=hint)

    monkeypatch.setattr(NnTier, "__init__", refuse)
    run = layerlab.run(plugin="nn", **TINY).runs[0]
    assert (run.status, run.hint) == ("FAILED", hint)
    assert run.error is not None
    assert run.error.startswith("tier 'nn': something is missing (")


def test_a_run_can_leave_out_the_export(folder: Path) -> None:
    """``--no-export`` writes no file."""
    run = layerlab.run(plugin="nn", **TINY, export=False).runs[0]
    assert (run.status, run.onnx) == ("FINISHED", None)
    assert not (folder / "models").exists()


def test_quiet_says_nothing_but_errors(folder: Path, layerlab_cli) -> None:
    """``--quiet`` prints nothing for a run that went well, and one line for one that did not."""
    good = layerlab_cli("run", "--plugin", "nn", "--steps", 3, "--n", 4, "--d-in", 3, "--quiet")
    assert (good.code, good.stdout, good.stderr) == (0, "", "")
    bad = layerlab_cli("run", "--plugin", "tensors", "--steps", 30, "--lr", 1, "--quiet")
    assert (bad.code, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: tensors: loss became")


def test_the_summary_tells_where_to_look_next(folder: Path, layerlab_cli) -> None:
    """The closing lines name the ONNX file and the command that shows the runs."""
    result = layerlab_cli("run", "--plugin", "nn", "--steps", 3, "--n", 4, "--d-in", 3)
    lines = result.stdout.splitlines()
    (model,) = (folder / "models").glob("nn-*.onnx")
    assert f"model:   models/{model.name}" in lines
    assert lines[-1] == "compare: mlflow ui"
    assert result.stderr == "nn: 3 steps\n"


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_precisions_train_and_export(folder: Path, precision: str) -> None:
    """Each precision runs; the gate is as tight as the parameters are precise."""
    run = layerlab.run(plugin="custom-module", data="iris", epochs=2, precision=precision).runs[0]
    assert run.status == "FINISHED"
    assert run.onnx["rtol"] == (1e-12 if precision == "64-true" else 1e-4)
    assert run.onnx["max_abs_diff"] < (1e-12 if precision == "64-true" else 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("tier", BUILTINS[1:])
def test_cuda_computes_what_the_cpu_computes(folder: Path, client: Any, tier: str) -> None:
    """On CUDA the same losses come out, replayed or not, which is recorded, and the file passes the gate."""
    import torch

    on_cpu = layerlab.run(plugin=tier, steps=20, accelerator="cpu").runs[0]
    on_gpu = layerlab.run(plugin=tier, steps=20, accelerator="gpu").runs[0]
    assert (on_gpu.status, on_gpu.device) == ("FINISHED", "cuda:0")
    assert on_gpu.first_loss == pytest.approx(on_cpu.first_loss, rel=1e-4)
    assert on_gpu.final_loss == pytest.approx(on_cpu.final_loss, rel=1e-2)
    tags = client.get_run(on_gpu.run_id).data.tags
    assert tags["layerlab.device_name"] == torch.cuda.get_device_name()
    assert tags["layerlab.replayed"] == str(tier != "optim").lower()
    assert "layerlab.replayed" not in client.get_run(on_cpu.run_id).data.tags


def test_nothing_holds_a_training_that_is_over(folder: Path) -> None:
    """But the cycle that it is: what it has on a device is free for the next one once that is looked for."""
    from layerlab.training import TierModule

    def held() -> int:
        gc.collect()
        return sum(type(it) is TierModule for it in gc.get_objects())

    before = held()
    assert layerlab.run(plugin=["nn", "optim"], steps=5, d_in=20, export=False).ok
    assert held() == before


@pytest.mark.gpu
def test_a_tier_leaves_the_device_to_the_next_one(folder: Path) -> None:
    """Rows, weights and graphs of one are gone when the next one has its own."""
    import torch

    def most(*tiers: str) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        report = layerlab.run(
            plugin=list(tiers), n=200, d_in=100_000, steps=5, lr=1e-12, export=False, accelerator="gpu"
        )
        assert report.ok, [run.error for run in report.runs]
        return torch.cuda.max_memory_allocated() - before

    tiers = ("tensors", "autograd", "nn")
    assert most(*tiers) < 1.2 * max(most(tier) for tier in tiers)
