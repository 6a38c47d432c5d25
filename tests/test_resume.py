"""Runs that are broken off and gone on with: the same run, to the same bits, nothing missing or doubled."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

import layerlab
from helpers import recorders, recorders_waited_for
from layerlab import checkpoint, journal, registry, saving
from layerlab.errors import DataError, Interrupted, JournalError, SpecError, TrackingError
from layerlab.folder import remembered as remembered_run
from layerlab.progress import Progress
from layerlab.reference import initial_params
from layerlab.report import Observer, RunReport
from layerlab.training import TierModule, TrainingData, make_trainer, quiet_lightning

if TYPE_CHECKING:
    from helpers import Site

TIERS = [*registry.builtin_names(), "fused", "jax", "compiled"]
FULL = {"steps": 60, "n": 16, "d_in": 5, "hidden": 7, "d_out": 3, "val_fraction": 0.25}
# 120 rows to train on: 18 batches of 7 an epoch, the last of them with 1 row
MINI = {"epochs": 3, "data": "iris", "batch_size": 7, "hidden": 5}
# A learning rate at which no tier diverges, and at which a wrong bit would grow.
COMMON = {"lr": 1e-4, "init": "linear", "checkpoint_every": 10}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused,layerlab-jax,layerlab-compiled")


class StopAt(Observer):
    """Presses Ctrl-C once so many steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def advanced(self, step: int, loss: float) -> None:
        if step >= self.step:
            os.kill(os.getpid(), signal.SIGINT)
            self.step = sys.maxsize


def points(client: Any, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every point of a run but the times that its parts took, by metric."""
    keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("seconds/")]
    return {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key)) for key in sorted(keys)
    }


def model_bytes(run: RunReport) -> bytes:
    """The exported file, with the one thing that two runs never share left out: their id."""
    assert run.onnx is not None
    return Path(run.onnx["path"]).read_bytes().replace(run.run_id.encode(), b"")


def assert_same(client: Any, run: RunReport, unbroken: RunReport) -> None:
    """Two runs have the same points, figures and file, bit by bit."""
    assert points(client, run.run_id) == points(client, unbroken.run_id)
    found = (run.status, run.steps, run.first_loss, run.final_loss, run.val, run.error)
    assert found == (
        "FINISHED",
        unbroken.steps,
        unbroken.first_loss,
        unbroken.final_loss,
        unbroken.val,
        None,
    )
    assert model_bytes(run) == model_bytes(unbroken)
    kept = client.get_run(run.run_id)
    assert (kept.info.status, kept.data.tags.get("layerlab.reason")) == ("FINISHED", None)
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1


def broken_off(at: int, **options: Any) -> str:
    """The id of a run that Ctrl-C ended once so many steps were done."""
    with pytest.raises(Interrupted) as interrupted:
        layerlab.run(**options, observer=StopAt(at))
    (run,) = interrupted.value.report.runs
    assert run.status == "KILLED"
    return str(run.run_id)


# torch.compile uses what torch deprecates
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("job", [FULL, MINI], ids=["full-batch", "mid-epoch"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_run_that_is_gone_on_with_is_the_unbroken_one(
    folder: Path, client: Any, tier: str, job: dict[str, Any]
) -> None:
    """Broken off twice, once at a validation: losses, validations, figures and file are the same bits."""
    options = {"plugin": tier, **job, **COMMON}
    unbroken = layerlab.run(**options).runs[0]
    run_id = broken_off(18, **options)
    assert client.get_run(run_id).info.status == "KILLED"
    with pytest.raises(Interrupted):
        layerlab.resume(run_id, observer=StopAt(30))
    assert len(points(client, run_id)["loss"]) < unbroken.steps
    resumed = layerlab.resume(run_id).runs[0]
    assert resumed.run_id == run_id
    assert_same(client, resumed, unbroken)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("tier", ["nn", "optim", "fused", "compiled"])
def test_on_cuda_it_is_the_unbroken_one_to_rounding(folder: Path, client: Any, tier: str) -> None:
    """A step is captured anew, in a training that begins in the middle; each step is recorded once."""
    options = {"plugin": tier, **MINI, **COMMON, "accelerator": "gpu"}
    unbroken = layerlab.run(**options).runs[0]
    assert unbroken.status == "FINISHED", unbroken.error
    run_id = broken_off(18, **options)
    resumed = layerlab.resume(run_id).runs[0]
    assert (resumed.status, resumed.device, resumed.steps) == ("FINISHED", "cuda:0", unbroken.steps)
    (steps, losses), (expected_steps, expected) = (
        zip(*points(client, run.run_id)["loss"], strict=True) for run in (resumed, unbroken)
    )
    assert steps == expected_steps
    assert losses == pytest.approx(expected, rel=1e-4)
    assert resumed.val == pytest.approx(unbroken.val, rel=1e-4)


def test_without_a_checkpoint_it_begins_again_and_records_nothing_twice(folder: Path, client: Any) -> None:
    """The points that are there stay, with the times at which they were made."""
    options = {"plugin": "optim", **MINI}
    unbroken = layerlab.run(**options).runs[0]
    run_id = broken_off(18, **options)
    before = {m.step: m.timestamp for m in client.get_metric_history(run_id, "loss")}
    shutil.rmtree("checkpoints")
    resumed = layerlab.resume(run_id).runs[0]
    assert_same(client, resumed, unbroken)
    after = {m.step: m.timestamp for m in client.get_metric_history(run_id, "loss")}
    assert before.items() <= after.items()


def test_what_an_earlier_journal_left_costs_no_record(folder: Path, client: Any) -> None:
    """It was killed while it removed the journal of a run, which is gone on with: every step is recorded."""
    run_id = layerlab.run(plugin="nn", **FULL, **COMMON).runs[0].run_id
    Progress(journal.path_of(run_id)).write(10**6)
    assert layerlab.resume(run_id, steps=80).ok
    assert [step for step, _ in points(client, run_id)["loss"]] == list(range(80))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert list(journal.RUNS.iterdir()) == []


@pytest.mark.parametrize("tier", ["custom-module", "optim"])
def test_a_finished_run_is_extended(folder: Path, client: Any, tier: str) -> None:
    """30 steps and 30 more are 60; the spec that is kept says 60."""
    options = {"plugin": tier, **FULL, **COMMON, "val_fraction": 0.0}
    unbroken = layerlab.run(**options).runs[0]
    run_id = layerlab.run(**{**options, "steps": 30}).runs[0].run_id
    with pytest.raises(SpecError, match="is finished after 30 steps"):
        layerlab.resume(run_id)
    with pytest.raises(SpecError, match="has 30 steps, and 20 are asked for"):
        layerlab.resume(run_id, steps=20)
    left = Path("checkpoints", run_id, "step-40.new")
    left.touch()  # as by a process that was killed while it wrote
    resumed = layerlab.resume(run_id, steps=60).runs[0]
    assert not left.exists()
    assert points(client, run_id)["loss"] == points(client, unbroken.run_id)["loss"]
    assert model_bytes(resumed) == model_bytes(unbroken)
    kept = Path(client.download_artifacts(run_id, "spec.yaml")).read_text()
    assert "steps: 60" in kept
    assert client.get_run(run_id).data.tags["layerlab.steps"] == "60"


@pytest.mark.parametrize("every", [None, 10])
def test_an_extended_run_validates_as_often_as_it_did(folder: Path, client: Any, every: int | None) -> None:
    """Of 200 steps every fourth is validated, and of 100 every second: it stays with every second."""
    options = {**FULL, "steps": 100, "checkpoint_every": every}
    run_id = layerlab.run(plugin="nn", **options).runs[0].run_id
    assert layerlab.resume(run_id, steps=200).ok
    assert [step for step, _ in points(client, run_id)["val_loss"]] == list(range(2, 201, 2))


def test_a_checkpoint_holds_tensors_and_plain_values(folder: Path) -> None:
    """``weights_only=True`` opens it; it knows its run, its store and its resolved spec. Two are kept."""
    run = layerlab.run(plugin="optim", **MINI, **COMMON).runs[0]
    kept = checkpoint.of_run(run.run_id)
    assert [path.name for path in kept] == ["step-54.ckpt", "step-50.ckpt"]
    assert str(kept[0]) == run.checkpoint
    content = torch.load(kept[0], weights_only=True)
    about = content["layerlab_run"]
    assert (about["run_id"], about["tracking_uri"]) == (run.run_id, "sqlite:///mlflow.db")
    assert about["spec"]["train"]["batch_size"] == 7
    assert content["global_step"] == 54
    assert [p.name for p in Path("checkpoints", run.run_id).iterdir() if p.suffix != ".ckpt"] == []


def test_a_short_run_leaves_no_checkpoint_unless_asked(folder: Path) -> None:
    """One a minute is the default."""
    assert layerlab.run(plugin="nn", **FULL).runs[0].checkpoint == ""
    assert not Path("checkpoints").exists()


def test_a_signal_in_a_validation_is_looked_at_after_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would end the training at once, in a state that no checkpoint could be made of."""
    begin, sent = TierModule.on_validation_epoch_start, []

    def stopped(module: TierModule) -> None:
        begin(module)
        if not sent:
            sent.append(module.global_step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TierModule, "on_validation_epoch_start", stopped)
    with pytest.raises(Interrupted) as interrupted:
        layerlab.run(plugin="optim", **MINI)
    (run,) = interrupted.value.report.runs
    assert (run.status, run.steps > sent[0]) == ("KILLED", True)
    assert run.checkpoint == f"checkpoints/{run.run_id}/step-{run.steps}.ckpt"
    assert layerlab.resume(run.run_id).runs[0].status == "FINISHED"


def test_an_interrupt_is_one_whatever_the_tiers_state_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that cannot be made is not there; where nobody interrupts, it is the run's failure."""

    def state(_: Any) -> None:
        raise ValueError("lost")

    monkeypatch.setattr(registry.load(registry.find("nn")), "state", state)
    with pytest.raises(Interrupted) as interrupted:
        layerlab.run(plugin="nn", **FULL, observer=StopAt(10))
    (run,) = interrupted.value.report.runs
    assert (run.status, run.error, run.checkpoint) == ("KILLED", "stopped by SIGINT", "")
    (run,) = layerlab.run(plugin="nn", **FULL, checkpoint_every=20).runs
    assert (run.status, run.steps) == ("FAILED", 20)
    assert "tier 'nn': state failed: ValueError: lost" in str(run.error)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks /proc to sync a folder")
def test_a_file_system_that_syncs_no_folder_fails_no_run() -> None:
    """By then the checkpoint is whole and has its name."""
    opened = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(opened)
    os.close(opened)
    saving._sync_folder(Path("/proc"))


def test_a_checkpoint_is_written_where_it_is_to_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's folder for temporary files may be of another disk, and small: nothing goes there."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "no-such-folder"))
    module = TierModule(
        registry.load(registry.find("nn")),
        initial_params(3, 4, 2, init="linear", bias=True, seed=0),
        TrainingData(np.ones((8, 3)), np.ones((8, 2)), np.ones((0, 3)), np.ones((0, 2))),
        lr=1e-3,
        batch_size=8,
    )
    with quiet_lightning():
        trainer = make_trainer(
            accelerator="cpu", precision="32-true", max_steps=5, validate=False, plugins=[saving.WholeFile()]
        )
        trainer.fit(module)
        trainer.save_checkpoint("here.ckpt")
    assert torch.load("here.ckpt", weights_only=True)["global_step"] == 5


def test_the_time_to_the_first_checkpoint_runs_from_the_start_of_the_training(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a minute until the store has the run: a short training then still leaves none."""
    now, saved = [0.0], []
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def save_checkpoint(path: Path, **_: Any) -> None:
        path.touch()
        saved.append(now[0])

    trainer: Any = SimpleNamespace(global_step=0, save_checkpoint=save_checkpoint)
    saver = saving.Saver(cast("Any", SimpleNamespace(run_id="0" * 32)), {})
    now[0] = 100.0
    saver.on_fit_start(trainer, cast("Any", None))
    for seconds in (1, 59, 60, 61, 121):
        now[0], trainer.global_step = 100.0 + seconds, seconds
        saver.on_train_batch_end(trainer)
    assert saved == [160.0, 221.0]


class TestRefused:
    """What cannot be gone on with is refused in one line, before anything is recorded."""

    @pytest.fixture
    def run_id(self, folder: Path) -> str:
        return broken_off(38, plugin="nn", **FULL, **COMMON)

    def refusal(self, layerlab_cli: Any, *arguments: object) -> str:
        """The error and its hint."""
        result = layerlab_cli("resume", *arguments, "--quiet")
        assert (result.code, result.stdout) == (2, ""), result.stderr
        first, *rest = result.stderr.splitlines()
        assert first.startswith("error: ")
        assert len(rest) == 1, rest
        return f"{first} {rest[0]}"

    @pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "garbage"])
    def test_damaged(self, run_id: str, client: Any, layerlab_cli: Any, damage: str) -> None:
        """The one before it is offered, and does."""
        newest, before = checkpoint.of_run(run_id)
        data = bytearray(newest.read_bytes())
        if damage == "one bit":
            data[data.index(b"layerlab_run") - 40] ^= 1
        newest.write_bytes({"truncated": data[:-100], "empty": b"", "garbage": b"x" * 999}.get(damage, data))
        said = self.refusal(layerlab_cli, run_id)
        assert f"checkpoint {newest} is damaged" in said
        assert f"layerlab resume {before}" in said
        assert layerlab.resume(before).ok
        assert [step for step, _ in points(client, run_id)["loss"]] == list(range(60))

    def test_one_bit_of_a_parameter(self, run_id: str, layerlab_cli: Any) -> None:
        """Every byte of the tensors is under a checksum."""
        newest, _ = checkpoint.of_run(run_id)
        weights = torch.load(newest, weights_only=True)["layerlab"]["tier"]
        tensor = next(value for value in weights.values() if torch.is_tensor(value))
        data = bytearray(newest.read_bytes())
        data[data.index(tensor.contiguous().numpy().tobytes())] ^= 1
        newest.write_bytes(data)
        assert "is damaged" in self.refusal(layerlab_cli, newest)

    def test_a_pickle(self, run_id: str, layerlab_cli: Any, tmp_path: Path) -> None:
        """Code in a checkpoint is not run."""
        newest, _ = checkpoint.of_run(run_id)

        class Evil:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "was-run",)

        torch.save({"layerlab_run": Evil()}, newest)
        assert "holds more than tensors and numbers" in self.refusal(layerlab_cli, run_id)
        assert not (tmp_path / "was-run").exists()

    def test_not_ours(self, run_id: str, layerlab_cli: Any) -> None:
        """A checkpoint of somebody else's Lightning."""
        newest, _ = checkpoint.of_run(run_id)
        torch.save({"global_step": 3, "state_dict": {}}, newest)
        assert "is none of a layerlab run" in self.refusal(layerlab_cli, newest)

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("version", "99.0", "was written by layerlab 99.0, and this is"),
            ("run_id", "0" * 32, "is of run 00000000000000000000000000000000, not of"),
            ("run_id", "../../etc", "is none of a layerlab run"),
            ("tier_version", "7.0", "is of layerlab 7.0, and 'nn' is now of layerlab"),
        ],
    )
    def test_altered(self, run_id: str, layerlab_cli: Any, field: str, value: str, said: str) -> None:
        newest, before = checkpoint.of_run(run_id)
        content = torch.load(newest, weights_only=True)
        content["layerlab_run"][field] = value
        torch.save(content, newest)
        result = layerlab_cli("resume", run_id, "--quiet")
        assert result.code == 2
        assert said in result.stderr
        assert f"the one before it: layerlab resume {before}" in result.stderr

    def test_of_another_run(self, run_id: str, layerlab_cli: Any) -> None:
        """Copied into the folder of a run that is not its own: another tier, another spec."""
        other = broken_off(38, plugin="optim", **{**FULL, "hidden": 9}, **COMMON)
        newest, before = checkpoint.of_run(run_id)
        content = torch.load(checkpoint.of_run(other)[0], weights_only=True)
        content["layerlab_run"]["run_id"] = run_id
        torch.save(content, newest)
        result = layerlab_cli("resume", run_id, "--quiet")
        assert result.code == 2
        assert "is of another spec: name is optim, and in the run nn" in result.stderr
        assert f"the one before it: layerlab resume {before}" in result.stderr

    def test_a_store_that_is_not_there_is_not_made(self, empty_folder: Path, layerlab_cli: Any) -> None:
        """There is nothing to go on with in it; `compare --runs` says it in the same words."""
        assert "there is no tracking store sqlite:///mlflow.db" in self.refusal(layerlab_cli, "f" * 32)
        assert list(empty_folder.iterdir()) == []

    def test_a_run_that_is_not_there(self, folder: Path, layerlab_cli: Any) -> None:
        """By id, by --last, by path, and by nothing at all."""
        for wrong in ("abc", "0" * 300, "a\nb"):  # none of them is asked for in the store
            shown = wrong.replace("\n", " ")
            assert f"no run in this folder begins with '{shown}'" in self.refusal(layerlab_cli, wrong)
        assert f"has no run '{'f' * 32}'" in self.refusal(layerlab_cli, "f" * 32)
        assert "no run began in this folder" in self.refusal(layerlab_cli, "--last")
        result = layerlab_cli("resume", "checkpoints/x/step-3.ckpt")
        assert (result.code, result.stderr) == (
            2,
            "error: checkpoint checkpoints/x/step-3.ckpt: No such file or directory\n",
        )
        assert "say which run" in self.refusal(layerlab_cli)
        assert "a run and --last exclude each other" in self.refusal(layerlab_cli, "abc", "--last")

    def test_other_data(self, folder: Path, layerlab_cli: Any) -> None:
        """A table that changed since is not the data of the run."""
        rows = np.random.default_rng(0).normal(size=(40, 3))
        np.savetxt("rows.csv", rows, delimiter=",", header="a,b,c", comments="")
        run_id = broken_off(18, plugin="nn", data="rows.csv", target=["c"], epochs=40, **COMMON)
        rows[3, 1] += 1
        np.savetxt("rows.csv", rows, delimiter=",", header="a,b,c", comments="")
        with pytest.raises(DataError, match=r"rows.csv is not what the run saw"):
            layerlab.resume(run_id)

    def test_a_run_of_something_else(self, folder: Path, client: Any, layerlab_cli: Any) -> None:
        """A run that another program recorded has no spec to go on with."""
        experiment = client.create_experiment("other")
        run_id = client.create_run(experiment).info.run_id
        client.set_terminated(run_id, "FAILED")
        assert "has no spec.yaml: it is no training" in self.refusal(layerlab_cli, run_id)

    def test_a_spec_of_another_version(self, run_id: str, client: Any, layerlab_cli: Any) -> None:
        """What is not known of it is named; a process id that is none is no traceback."""
        client.set_tag(run_id, "layerlab.pid", "abc")
        client.log_text(run_id, "plugins: nn\nfuture: 1\n", "spec.yaml")
        result = layerlab_cli("resume", run_id, "--quiet")
        assert result.code == 2
        assert f"spec.yaml of run {run_id}: unknown key 'future'" in result.stderr

    def test_a_tier_that_cannot_be_saved(self, folder: Path, site: Site, layerlab_cli: Any) -> None:
        """Asked for checkpoints it is refused; broken off it begins again."""
        site.add("plain-plugin", {"good": "MODULE:Good"})
        site.allow("plain-plugin")
        result = layerlab_cli("run", "-p", "good", "--checkpoint-every", 5, "--quiet")
        assert result.code == 2
        assert "tier 'good' cannot be saved: it has no state() and load_state()" in result.stderr


def test_the_last_run_and_the_beginning_of_an_id(folder: Path, layerlab_cli: Any) -> None:
    """``--last`` is the run that began last here; eight digits are enough of an id."""
    first = broken_off(18, plugin="nn", **FULL, **COMMON)
    last = broken_off(18, plugin="nn", **FULL, **COMMON)
    result = layerlab_cli("resume", "--last", "--quiet")
    assert (result.code, result.stderr) == (0, ""), "no bar of MLflow's either"
    with pytest.raises(SpecError, match=f"run {last} is finished"):
        layerlab.resume(last)
    result = layerlab_cli("resume", first[:8], "--json")
    step = checkpoint.read(checkpoint.of_run(last)[1]).step
    assert result.code == 0
    assert result.stderr.splitlines()[0].startswith("nn: goes on after step ")
    shutil.rmtree(checkpoint.folder_of(first))
    result = layerlab_cli("resume", first, "--steps", 70)
    assert result.stderr.splitlines()[0] == "nn: has no checkpoint: begins again, records the rest"
    assert step == 50, "the last but one of a run of 60 steps"
    with pytest.raises(TrackingError, match="has no run"):
        layerlab.resume("f" * 32)


# Epochs of a training that takes about as long as the time in which it is killed; so many more where it is
# over before that, so that kills come in the training, in checkpoints, in the export and at the end.
EPOCHS = 16


def job(epochs: int) -> list[object]:
    data = ["--data", "digits", "--epochs", epochs, "--batch-size", 32, "--hidden", 20]
    return ["run", "-p", "optim", *data, "--checkpoint-every", 20, "--quiet"]


def command(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "layerlab", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def violence(client: Any, folder: Path, kills: int, *, seed: int) -> tuple[str, int, list[int]]:
    """Kills a run and what goes on with it, so many times, each at a random moment.

    Returns:
        The run, how many epochs it is to have, and how many losses were recorded after each kill.
    """
    draw = random.Random(seed)
    epochs, run_id, progress = EPOCHS, "", list[int]()
    while len(progress) < kills:
        if not run_id:
            process = command(*job(epochs), cwd=folder)
        else:
            process = command("resume", run_id, "--epochs", epochs, "--quiet", cwd=folder)
        while process.poll() is None and not has_begun(process.pid):
            time.sleep(0.002)
        with recorders_waited_for(process.pid):
            time.sleep(draw.uniform(0, 1))
            # every third time nothing is spared, the recording process neither
            for victim in [*(recorders(process.pid) if len(progress) % 3 == 2 else []), process.pid]:
                with suppress(ProcessLookupError):  # it was faster
                    os.kill(victim, signal.SIGKILL)
            _, err = process.communicate(timeout=120)
        remembered = remembered_run()
        assert remembered is not None
        run_id = remembered[0]
        if process.returncode == -signal.SIGKILL:
            progress.append(len(client.get_metric_history(run_id, "loss")))
        else:
            assert process.returncode == 0 or "is finished" in err, err
            epochs += EPOCHS
    return run_id, epochs, progress


def has_begun(trainer: int) -> bool:
    """Whether a process has a journal."""
    for path in journal.journals():
        with suppress(JournalError, FileNotFoundError):
            if journal.header(path).pid == trainer:
                return True
    return False


def check_violence(folder: Path, client: Any, kills: int, record_property: Any) -> None:
    run_id, epochs, progress = violence(client, folder, kills, seed=0)
    last = command("resume", run_id, "--epochs", epochs, cwd=folder)
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0 or "is finished" in err
    record_property("kills", f"{kills}, with so many losses recorded after each: {progress}")

    whole = command(*job(epochs), cwd=folder)
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    remembered = remembered_run()
    assert remembered is not None
    unbroken = remembered[0]
    found, expected = points(client, run_id), points(client, unbroken)
    ends = [one.pop("onnx/max_abs_diff")[-1] for one in (found, expected)]  # at each end that it had
    assert found == expected
    assert ends[0] == ends[1]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert len([o for o in run.outputs.model_outputs if o.step == epochs * 45]) == 1
    models = [next(Path("models").glob(f"*-{one[:8]}.onnx")).read_bytes() for one in (run_id, unbroken)]
    assert models[0].replace(run_id.encode(), b"") == models[1].replace(unbroken.encode(), b"")
    kept = [torch.load(checkpoint.of_run(one)[0], weights_only=True) for one in (run_id, unbroken)]
    first, second = (one["layerlab"]["tier"]["model"] for one in kept)
    assert all(torch.equal(first[key], second[key]) for key in {**first, **second})
    assert journal.journals() == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_violence(folder: Path, client: Any, record_property: Any) -> None:
    """SIGKILL at random moments, resumed each time: one comparison at the end."""
    check_violence(folder, client, 2, record_property)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_much_violence(folder: Path, client: Any, record_property: Any) -> None:
    """At least 20 of them."""
    check_violence(folder, client, 24, record_property)
