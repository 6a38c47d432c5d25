"""The export gate: what passes is right, and what is wrong does not pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch

import layerlab
from helpers import BUILTINS, TINY, problem
from layerlab import export as gate
from layerlab import registry
from layerlab.data.dataset import Scaler
from layerlab.errors import ModelError
from layerlab.reference import forward
from layerlab.tiers.custom_module import DoubleLayerNet

if TYPE_CHECKING:
    import onnx

    from layerlab.tier import Params


def exported(
    tmp_path: Path, params: Params, rows: Any, scaler: Any = None, predict: Any = None, name: str = "m"
):
    own = predict or (lambda x: forward(params.map(lambda p: p.astype(np.float64)), x))
    features = tuple(f"f{i}" for i in range(rows.shape[1]))
    path = tmp_path / f"{name}.onnx"
    return gate.export(
        params, scaler, path=path, predict=own, rows=rows, features=features, metadata={"tier": "test"}
    )


def onnx_run(path: Path, x: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32)})[0]


@pytest.mark.parametrize("bias", [True, False])
def test_all_tiers_export_the_same_answers_for_the_same_parameters(
    tmp_path: Path, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of all seven tiers and of `fused` hold the same weights and give the same bits."""
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")
    params, x, _ = problem(9, 6, 5, 3, bias=bias, dtype=np.float32)
    answers = {}
    for name in [*BUILTINS, "fused"]:
        tier = registry.load(registry.find(name))(
            params, lr=0.1, device=torch.device("cpu"), dtype=torch.float32
        )

        def predict(rows: Any, tier: Any = tier) -> Any:
            with torch.no_grad():
                return np.asarray(torch.as_tensor(tier.forward(torch.from_numpy(rows.astype(np.float32)))))

        result = exported(tmp_path, tier.params(), x, predict=predict, name=name)
        answers[name] = onnx_run(result.path, x)
        assert result.batch_sizes == [1, 2, 7, 9]
    for name, answer in answers.items():
        assert (answer == answers["numpy"]).all(), name
    np.testing.assert_allclose(answers["numpy"], forward(params, x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("default")  # torch's exporter uses what torch deprecates
@pytest.mark.parametrize("bias", [True, False])
def test_torchs_own_exporter_agrees(tmp_path: Path, bias: bool) -> None:
    """A second opinion: `torch.onnx.export` of the same `DoubleLayerNet` answers the same."""
    params, x, _ = problem(9, 6, 5, 3, bias=bias, dtype=np.float32)
    net = DoubleLayerNet(6, 5, 3, bias=bias)
    with torch.no_grad():
        for layer, w, b in ((net.linear1, params.w1, params.b1), (net.linear2, params.w2, params.b2)):
            layer.weight.copy_(torch.from_numpy(w.T.copy()))
            if b is not None:
                layer.bias.copy_(torch.from_numpy(b))
    theirs = torch.onnx.export(
        net.eval(), (torch.from_numpy(x),), dynamo=True, dynamic_shapes=({0: "N"},), verbose=False
    )
    theirs.save(tmp_path / "theirs.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "theirs.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x})
    ours = onnx_run(exported(tmp_path, params, x).path, x)
    np.testing.assert_allclose(ours, answer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_standardisation_is_folded_in(tmp_path: Path, bias: bool) -> None:
    """The model takes raw columns and gives the target's own units, a constant column included."""
    params, _, _ = problem(1, 4, 5, 2, bias=bias, dtype=np.float32)
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((50, 4)) * [1, 100, 0.01, 0] + [0, 5000, -0.1, 3]
    targets = rng.standard_normal((50, 2)) * [1e-3, 1e6] + [0, 1e7]
    scaler = Scaler.fit(rows, targets, np.arange(len(rows)), scale_targets=True)
    result = exported(tmp_path, params, rows, scaler)
    expected = scaler.restore_y(forward(params, scaler.standardise_x(rows)))
    np.testing.assert_allclose(
        onnx_run(result.path, rows), expected, rtol=1e-3, atol=1e-3 * scaler.y_std.min()
    )
    nodes = [node.op_type for node in result.proto.graph.node]
    assert nodes == ["Gemm", "Relu", "Gemm"]


def test_small_outputs_are_held_to_their_own_size(tmp_path: Path) -> None:
    """An error in an output of small units is seen beside one of large units."""
    params, _, _ = problem(1, 4, 5, 2, bias=True, dtype=np.float32)
    rng = np.random.default_rng(1)
    rows, targets = rng.standard_normal((50, 4)), rng.standard_normal((50, 2)) * [1e-6, 1e6]
    scaler = Scaler.fit(rows, targets, np.arange(len(rows)), scale_targets=True)

    def off(x: Any) -> Any:
        return forward(params, x) + np.array([0.01, 0.0])

    with pytest.raises(ModelError, match="disagree"):
        exported(tmp_path, params, rows, scaler, predict=off)


def test_a_column_that_float32_cannot_hold_is_named(tmp_path: Path) -> None:
    """Times in seconds since 1970 lose what tells them apart; in 64 bits they do not."""
    params, _, _ = problem(1, 2, 5, 1, bias=True)
    rng = np.random.default_rng(1)
    rows = np.column_stack([rng.standard_normal(50), 1.7e9 + rng.standard_normal(50) * 100])
    scaler = Scaler.fit(rows, rng.standard_normal((50, 1)), np.arange(50), scale_targets=True)
    with pytest.raises(ModelError, match="disagree") as raised:
        exported(tmp_path, params.map(lambda p: p.astype(np.float32)), rows, scaler)
    assert raised.value.hint.startswith("column 'f1' lies")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weight", ["w1", "w2", "b1", "b2"])
def test_one_wrong_weight_is_seen_and_leaves_no_file(tmp_path: Path, weight: str) -> None:
    """The gate compares with the tier: one weight in the file that is off by a hundredth is enough."""
    params, x, _ = problem(40, 6, 5, 3, bias=True, dtype=np.float32)
    wrong = params.map(np.copy)
    getattr(wrong, weight).flat[0] += 0.01
    with pytest.raises(ModelError, match="onnxruntime and the tier disagree at a batch of"):
        exported(tmp_path, wrong, x, predict=lambda rows: forward(params, rows))
    assert list(tmp_path.iterdir()) == []


def without_relu(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Identity"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Rleu"


def other_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[2].output[0] = "z"


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


@pytest.mark.parametrize("corrupt", [without_relu, unknown_operator, other_name, fixed_batch])
def test_a_corrupted_graph_fails_the_run(
    folder: Path, client: Any, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch, corrupt: Any
) -> None:
    """The run is FAILED, the exit code 1, and no file is left, neither here nor in MLflow."""
    build = gate.build_model

    def corrupted(*arguments: Any) -> onnx.ModelProto:
        model = build(*arguments)
        corrupt(model)
        return model

    monkeypatch.setattr(gate, "build_model", corrupted)
    flags = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]
    result = layerlab_cli("run", "--plugin", "tensors", *flags, "--json")
    (run,) = json.loads(result.stdout)["runs"]
    assert (result.code, run["status"], run["onnx"]) == (1, "FAILED", None)
    assert run["steps"] == 12, "the training itself went well"
    assert client.get_run(run["run_id"]).info.status == "FAILED"
    assert list((folder / "models").iterdir()) == []
    assert client.search_logged_models([client.get_run(run["run_id"]).info.experiment_id]) == []


def test_a_folder_that_cannot_be_written_fails_the_run(folder: Path) -> None:
    """A file in the place of the folder for models: FAILED, with the path named."""
    (folder / "models").write_text("in the way")
    run = layerlab.run(plugin="nn", **TINY).runs[0]
    assert run.status == "FAILED"
    assert "models/nn-" in run.error
    assert (folder / "models").read_text() == "in the way"


def test_the_file_says_what_it_is(folder: Path) -> None:
    """Tier, run, data, columns and classes are in the metadata; nothing of this machine's paths is."""
    run = layerlab.run(plugin="optim", data="wine", epochs=2).runs[0]
    model = layerlab.ModelFile(Path(run.onnx["path"]))
    assert model.metadata["tier"] == "optim"
    assert model.metadata["run_id"] == run.run_id
    assert model.metadata["task"] == "classification"
    assert model.metadata["features"][0] == "alcohol"
    assert model.metadata["classes"] == ["class_0", "class_1", "class_2"]
    assert str(folder).encode() not in Path(run.onnx["path"]).read_bytes()


def test_files_of_the_same_run_are_the_same_bytes(tmp_path: Path) -> None:
    """Nothing in the file depends on when it was written."""
    params, x, _ = problem(9, 6, 5, 3, bias=True, dtype=np.float32)
    first, second = (exported(tmp_path, params, x, name=name).path for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
