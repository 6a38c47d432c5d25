"""Tiers in lockstep, finished runs by their records, and what both leave in MLflow."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

import layerlab
from helpers import TINY, Site
from layerlab.errors import Interrupted, PluginError, SpecError, TierError, TrackingError

ALL = ["loss", "y_pred", "gradients", "parameters"]
FLAGS = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]


@pytest.fixture
def wrong(site: Site) -> Site:
    """Installed tiers that are wrong, each in its own way, and one that is right and only has `step`."""
    names = {
        "forgetful": "ForgottenMask",
        "late": "WrongFromStep20Unseen",
        "whole": "Whole",
        "adam": "ByHandAdam",
        "adamw": "AdamW",
        "raising": "GivesUp",
    }
    site.add("gallery-dist", {name: f"gallery:{target}" for name, target in names.items()}, "")
    site.allow("gallery-dist")
    return site


def picture(path: str) -> Any:
    """The pixels of a PNG, which must not be blank, and light at the corners."""
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 300
    assert pixels.std() > 0.01
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1], :3] > 0.95).all()
    return pixels


# --- tiers --------------------------------------------------------------------------------------------------


def test_tiers_that_agree(folder: Path, client: Any) -> None:
    """They agree at every step, on minibatches; losses, differences, report and picture are in MLflow."""
    report = layerlab.compare(plugin=["numpy", "tensors", "nn"], batch_size=3, **TINY)
    assert (report.tiers, report.steps, report.agree) == (["numpy", "tensors", "nn"], 12, True)
    assert [(p.leader, p.follower, p.steps, p.compared) for p in report.pairs] == [
        ("numpy", "tensors", 12, ALL),
        ("numpy", "nn", 12, ALL),
    ]
    assert all(0 < pair.worst < 1 and 0 < pair.resolution < 1e-2 for pair in report.pairs)
    run = client.get_run(report.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "compare numpy, tensors, nn")
    assert run.data.params["plugins"] == "numpy, tensors, nn"
    assert run.data.tags["layerlab.agree"] == "true"
    assert (run.data.params["train.lr"], run.data.params["net.init"]) == ("1e-06", "normal")
    for name in report.tiers:
        history = client.get_metric_history(report.run_id, f"loss/{name}")
        assert [point.step for point in history] == list(range(12))
        assert history[-1].value == report.final_losses[name]
    shares = [p.value for p in client.get_metric_history(report.run_id, "share_of_bound/nn")]
    assert max(shares) == report.pairs[1].worst
    kept = Path(client.download_artifacts(report.run_id, "", str(folder)))
    assert json.loads((kept / "comparison.json").read_text())["agree"] is True
    assert (kept / "spec.yaml").is_file()
    assert (kept / Path(report.picture).name).read_bytes() == Path(report.picture).read_bytes()
    picture(report.picture)


def test_the_losses_are_those_of_a_run(folder: Path) -> None:
    """What a tier does in a comparison, trained on its own, is what it does under `layerlab run`."""
    same = {"batch_size": 3, "lr": 1e-3, "init": "linear", "bias": True, **TINY}
    compared = layerlab.compare(plugin=["nn", "optim"], **same)
    for run in layerlab.run(plugin=["nn", "optim"], export=False, **same).runs:
        assert run.final_loss == compared.final_losses[run.tier]


def test_the_first_tier_leads(folder: Path) -> None:
    """Its recipe says what the flags leave open, and both start from the same weights."""
    report = layerlab.compare(plugin=["nn", "numpy"], **{**TINY, "steps": 1})
    first = layerlab.run(plugin="nn", export=False, **{**TINY, "steps": 1}).runs[0]
    assert report.final_losses["nn"] == first.final_loss
    assert report.final_losses["numpy"] == pytest.approx(first.final_loss, rel=1e-6)


def test_a_wrong_tier_parts_at_once(wrong: Site, folder: Path, layerlab_cli: Any) -> None:
    """Exit code 1; step, tensor, place, both values and the bound, on the terminal and as JSON."""
    arguments = ("compare", "-p", "nn", "-p", "forgetful", *FLAGS)
    result = layerlab_cli(*arguments, "--json")
    assert result.code == 1
    (pair,) = json.loads(result.stdout)["pairs"]
    part = pair["part"]
    assert (part["step"], part["tensor"], pair["steps"]) == (0, "grad_w1", 0)
    assert abs(part["actual"] - part["expected"]) > part["bound"] > 0
    text = layerlab_cli(*arguments)
    assert text.code == 1
    assert pair["said"] in text.stdout
    assert "step 0, grad_w1[" in text.stdout


def test_a_tier_that_parts_late(wrong: Site, folder: Path) -> None:
    """The first step that parts is found, though neither value is the oracle's, and other tiers go on."""
    size = {"steps": 30, "n": 8, "d_in": 6, "hidden": 5, "d_out": 3, "lr": 1e-2}
    report = layerlab.compare(plugin=["nn", "late", "whole"], precision="64-true", **size)
    late, whole = report.pairs
    assert late.part is not None
    assert (late.part["step"], late.part["tensor"], late.steps) == (20, "w1", 20)
    assert (whole.part, whole.steps, whole.compared) == (None, 30, ["loss", "parameters"])
    assert whole.notes == ["gradients are not compared: the step is not split by whole"]
    assert report.steps == 30


def test_adam_against_adam_and_against_descent(wrong: Site, folder: Path) -> None:
    """Adam's update is compared; a decay of weights parts; sgd against adam is said not to be compared."""
    report = layerlab.compare(plugin=["optim", "adam", "adamw", "nn"], lr=1e-2, **TINY)
    right, decayed, descent = report.pairs
    assert (right.part, right.compared) == (None, ALL)
    assert "Adam remembers" in right.notes[0]
    assert decayed.part is not None
    assert decayed.part["tensor"] in {"w1", "w2", "b1", "b2"}
    assert (descent.part, descent.compared) == (None, ALL[:3])
    assert descent.notes == ["updates are not compared: adam against sgd"]


def test_real_data(folder: Path) -> None:
    """Standardised, in minibatches, the last of an epoch shorter."""
    report = layerlab.compare(
        plugin=["custom-module", "tensors"], data="iris", epochs=2, batch_size=50, hidden=4
    )
    assert (report.agree, report.steps) == (True, 6)


def test_a_tier_that_raises_fails_the_comparison(
    wrong: Site, folder: Path, client: Any, layerlab_cli: Any
) -> None:
    """Exit code 1, the tier named; the MLflow run is FAILED with the reason, and no picture is left."""
    result = layerlab_cli(
        "compare", "-p", "nn", "-p", "raising", *FLAGS, "--lr", 1, "--init", "normal", "--d-in", 900
    )
    assert result.code == 1
    assert "tier 'raising': FloatingPointError: loss too large" in result.stderr
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert run.info.status == "FAILED"
    assert "loss too large" in run.data.tags["layerlab.reason"]
    assert not Path("comparisons").exists()
    with pytest.raises(TierError, match="loss too large"):
        layerlab.compare(plugin=["raising", "nn"], lr=1, init="normal", **{**TINY, "d_in": 900})


def test_an_interrupt_leaves_a_killed_run(folder: Path, client: Any) -> None:
    """A signal between two steps ends the comparison; its record says so."""

    class Stops(layerlab.Observer):
        def started(self, tier: str, steps: int) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        layerlab.compare(plugin=["nn", "numpy"], observer=Stops(), **TINY)
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert run.info.status == "KILLED"


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        ({"plugin": ["nn"]}, SpecError, "nothing to compare 'nn' with"),
        ({"plugin": ["nn", "nn"]}, SpecError, "nothing to compare 'nn' with"),
        ({"plugin": ["nn", "nope"]}, PluginError, "no tier is called 'nope'"),
        ({"plugin": ["nn", "numpy"], "steps": 0}, SpecError, "at least 1"),
        (
            {"plugin": ["nn", "numpy"], "n": 200_000, "d_in": 1, "hidden": 1},
            SpecError,
            "leave nothing to compare",
        ),
    ],
    ids=["one", "the same twice", "unknown", "no steps", "too long a sum"],
)
def test_bad_comparisons_are_refused(
    empty_folder: Path, flags: dict[str, Any], error: type[Exception], said: str
) -> None:
    """Before anything is recorded or written."""
    with pytest.raises(error, match=said):
        layerlab.compare(**flags)
    assert not list(empty_folder.iterdir())


# --- finished runs ------------------------------------------------------------------------------------------


def test_two_runs(folder: Path, client: Any, layerlab_cli: Any) -> None:
    """What differs in parameters and losses, and the final figures of both; the comparison is in MLflow."""
    first = layerlab.run(plugin="nn", export=False, **TINY).runs[0]
    second = layerlab.run(plugin="nn", export=False, lr=2e-4, name="faster", **{**TINY, "steps": 20}).runs[0]
    result = layerlab_cli("compare", "--runs", first.run_id, second.run_id, "--json")
    assert result.code == 0
    report = json.loads(result.stdout)
    assert {key: report["params"][key] for key in ("train.lr", "train.steps")} == {
        "train.lr": ["0.0001", "0.0002"],
        "train.steps": ["12", "20"],
    }
    assert "net.hidden" not in report["params"]
    assert report["figures"]["loss"] == [first.final_loss, second.final_loss]
    losses = report["losses"]
    assert (losses["steps"], losses["common"], losses["equal"]) == ([12, 20], 12, 1)
    assert losses["first_difference"]["step"] == 1
    assert losses["first_difference"]["values"][0] > losses["first_difference"]["values"][1]
    run = client.get_run(report["run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "compare nn, faster")
    assert run.data.tags["layerlab.runs"] == f"{first.run_id}, {second.run_id}"
    names = {item.path for item in client.list_artifacts(report["run_id"])}
    assert names == {"comparison.json", Path(report["picture"]).name}
    picture(report["picture"])
    text = layerlab_cli("compare", "--runs", first.run_id, second.run_id).stdout
    assert "losses: 1 of the 12 steps that both have are equal; they part at step 1" in text


def test_equal_runs_and_runs_that_are_not_layerlabs(folder: Path, client: Any) -> None:
    """Equal losses are said to be; a run without losses is compared by what it has."""
    one, two = (layerlab.run(plugin="nn", export=False, name="same", **TINY).runs[0] for _ in range(2))
    report = layerlab.compare_runs(one.run_id, two.run_id)
    assert (report.params, report.losses) == ({}, {"steps": [12, 12], "common": 12, "equal": 12})
    assert all(pair[0] == pair[1] for key, pair in report.figures.items() if not key.startswith("seconds"))
    foreign = client.create_run("0", run_name="by hand")
    client.log_param(foreign.info.run_id, "depth", 3)
    client.set_terminated(foreign.info.run_id)
    strangers = layerlab.compare_runs(foreign.info.run_id, one.run_id)
    assert strangers.params["depth"] == ["3", None]
    assert (strangers.runs[0]["tier"], strangers.losses["common"]) == (None, 0)
    assert strangers.experiment == "layerlab"


def test_a_diverged_run_is_compared_by_what_it_has(folder: Path, layerlab_cli: Any) -> None:
    """Losses that are no numbers break neither the table, the JSON nor the picture."""
    good = layerlab.run(plugin="nn", export=False, **TINY).runs[0]
    bad = layerlab.run(plugin="nn", export=False, lr=1e9, **TINY).runs[0]
    assert bad.status == "FAILED"
    result = layerlab_cli("compare", "--runs", good.run_id, bad.run_id)
    assert result.code == 0
    assert "FAILED" in result.stdout
    report = json.loads(layerlab_cli("compare", "--runs", good.run_id, bad.run_id, "--json").stdout)
    assert np.isfinite(picture(report["picture"])).all()


def test_runs_that_cannot_be_compared(folder: Path, client: Any, layerlab_cli: Any) -> None:
    """No such run, the same run, a deleted one, one that still runs: one line, exit 2, no record."""
    done = layerlab.run(plugin="nn", export=False, **TINY).runs[0].run_id
    experiment = client.get_experiment_by_name("layerlab").experiment_id
    running, deleted = (client.create_run(experiment).info.run_id for _ in range(2))
    client.delete_run(deleted)
    for other, said in (
        ("nope", "has no run 'nope'"),
        (done, "does not differ from itself"),
        (running, "is still running"),
        (deleted, "is deleted"),
    ):
        result = layerlab_cli("compare", "--runs", done, other)
        assert (result.code, result.stdout) == (2, "")
        assert said in result.stderr
    assert "has no run 'nope'" in layerlab_cli("compare", "--runs", running, "nope").stderr  # nor will have
    assert len(client.search_runs([experiment])) == 2
    with pytest.raises(TrackingError, match="no run 'nope'"):
        layerlab.compare_runs(done, "nope")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to compare"),
        (["-p", "nn"], "nothing to compare 'nn' with"),
        (["--runs", "a", "b", "--steps", 3], "--runs and --steps exclude each other"),
        (["-p", "nn", "-p", "numpy", "--runs", "a", "b"], "--runs and --plugin exclude each other"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_2(
    layerlab_cli: Any, empty_folder: Path, arguments: list[Any], said: str
) -> None:
    """Nothing is written."""
    result = layerlab_cli("compare", *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not list(empty_folder.iterdir())
