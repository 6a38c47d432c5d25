"""The export gate: no ONNX file unless onnxruntime computes from it what the tier computes.

The graph is Gemm, Relu, Gemm. Where inputs and targets were standardised for training, that is folded into
the weights, so that the model takes raw columns and answers in the target's own units.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlab.errors import ModelError, one_line
from layerlab.modelfile import ModelFile, weights_digest, write_metadata

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from layerlab.data.dataset import Scaler
    from layerlab.tier import Array, Params

INPUT, OUTPUT = "x", "y_pred"
# Old enough for every onnxruntime in use, new enough for everything in the graph.
OPSET, IR_VERSION = 17, 8
ODD_BATCH = 7


@dataclass(frozen=True)
class Exported:
    """A file that passed the gate.

    Attributes:
        path: Where it is.
        proto: The model.
        max_abs_diff: The largest difference from the tier's own predictions, in the target's units.
        atol: Absolute tolerance that was applied, in the target's units.
        rtol: Relative tolerance that was applied.
        batch_sizes: The sizes of the batches that were compared.
    """

    path: Path
    proto: onnx.ModelProto
    max_abs_diff: float
    atol: float
    rtol: float
    batch_sizes: list[int]

    def as_dict(self) -> dict[str, Any]:
        """What a report says of the file."""
        names = ("max_abs_diff", "atol", "rtol", "batch_sizes")
        return {"path": str(self.path), **{name: getattr(self, name) for name in names}}


def fold(params: Params, scaler: Scaler | None) -> Params:
    """Folds standardisation into parameters, in float64.

    With ``x' = (x - x_mean) / x_std`` and ``y = y' * y_std + y_mean`` the first layer becomes
    ``w1 / x_std`` and ``b1 - (x_mean / x_std) @ w1``, the second ``w2 * y_std`` and ``b2 * y_std + y_mean``.
    """
    params = params.map(lambda p: p.astype(np.float64))
    if scaler is None:
        return params
    offset = -(scaler.x_mean / scaler.x_std) @ params.w1  # (n_hidden,)
    return params._replace(
        w1=params.w1 / scaler.x_std[:, None],
        w2=params.w2 * scaler.y_std,
        b1=offset if params.b1 is None else params.b1 + offset,
        b2=scaler.y_mean + (0.0 if params.b2 is None else params.b2 * scaler.y_std),
    )


def build_model(params: Params, dtype: Any, metadata: dict[str, Any]) -> onnx.ModelProto:
    """Builds the graph from parameters that already take raw inputs.

    Args:
        params: The parameters.
        dtype: `numpy.float32` or `numpy.float64`.
        metadata: What the file says of itself.
    """
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.DOUBLE if dtype is np.float64 else TensorProto.FLOAT
    present = {name: p for name, p in params._asdict().items() if p is not None}
    layer1 = [INPUT, "w1", *(["b1"] if "b1" in present else [])]
    layer2 = ["h_relu", "w2", *(["b2"] if "b2" in present else [])]
    graph = helper.make_graph(
        nodes=[
            helper.make_node("Gemm", layer1, ["h"], name="layer1"),
            helper.make_node("Relu", ["h"], ["h_relu"], name="relu"),
            helper.make_node("Gemm", layer2, [OUTPUT], name="layer2"),
        ],
        name="DoubleLayerNet",
        inputs=[helper.make_tensor_value_info(INPUT, kind, ["N", params.w1.shape[0]])],
        outputs=[helper.make_tensor_value_info(OUTPUT, kind, ["N", params.w2.shape[1]])],
        initializer=[
            numpy_helper.from_array(np.ascontiguousarray(p, dtype), name) for name, p in present.items()
        ],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], producer_name="layerlab", ir_version=IR_VERSION)
    write_metadata(model, {**metadata, "weights_sha256": weights_digest(model)})
    return model


def export(
    params: Params,
    scaler: Scaler | None,
    *,
    path: Path,
    predict: Callable[[Array], Array],
    rows: Array,
    features: tuple[str, ...],
    metadata: dict[str, Any],
) -> Exported:
    """Writes the model, checks it, and only then gives it its name.

    Args:
        params: Trained parameters, in the precision of the run.
        scaler: The standardisation that was trained with, or None.
        path: Where the file is to be; its folder is made.
        predict: The tier's own predictions, (N, n_in) to (N, n_out), in units of training.
        rows: Raw rows to compare on, shape (M, n_in), M at least 1.
        features: Names of the inputs, for what is said when it fails.
        metadata: What the file says of itself.

    Raises:
        ModelError: A check failed; there is no file.
    """
    aside = path.with_name(f".{path.name}.unchecked")
    model = build_model(fold(params, scaler), _dtype(params), metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.unlink(missing_ok=True)  # left by a process that was killed, or a link that leads elsewhere
            with aside.open("xb") as file:
                file.write(model.SerializeToString(deterministic=True))
                file.flush()
                os.fsync(file.fileno())
            exported = _gate(aside, path, params, predict, scaler, rows, features)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror}") from None
    return exported


def _gate(
    aside: Path,
    path: Path,
    params: Params,
    predict: Callable[[Array], Array],
    scaler: Scaler | None,
    rows: Array,
    features: tuple[str, ...],
) -> Exported:
    """Structure, names, shapes, values, in this order, on the bytes that will be shipped."""
    import onnx

    dtype = _dtype(params)
    try:
        onnx.checker.check_model(str(aside), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported model is not valid ONNX: {one_line(str(error))}") from None
    model = ModelFile(aside)
    if (model.input.name, model.output.name) != (INPUT, OUTPUT):
        raise ModelError(f"the exported model maps {model.input.name} to {model.output.name}")
    if model.input.shape != ["N", rows.shape[1]]:
        raise ModelError(f"the exported model takes {model.input.shape}, not (N, {rows.shape[1]})")
    batch_sizes = sorted({1, 2, ODD_BATCH, len(rows)})
    rtol = 1e-4 if dtype is np.float32 else 1e-12
    atol = 100 * np.finfo(dtype).eps * term_size(params, scaler, rows)  # (n_out,)
    worst = 0.0
    for size in batch_sizes:
        raw = np.resize(rows, (size, rows.shape[1]))  # repeats the rows where there are too few
        expected = _predict_raw(predict, scaler, raw)  # (size, n_out)
        actual = model.run(raw)
        if actual.shape != expected.shape:
            raise ModelError(
                f"a batch of {size}: onnxruntime gives {actual.shape}, the tier {expected.shape}"
            )
        diff = np.abs(actual - expected)
        worst = max(worst, float(diff.max()))
        if not (diff <= atol + rtol * np.abs(expected)).all():
            raise ModelError(
                f"onnxruntime and the tier disagree at a batch of {size}: the largest difference is "
                f"{worst:.3g}, the tolerance {atol.max():.3g} + {rtol:g} of the value",
                hint=_suspect(scaler, features, dtype),
            )
    return Exported(path, model.proto, worst, float(atol.max()), rtol, batch_sizes)


def term_size(params: Params, scaler: Scaler | None, rows: Array) -> Array:
    """How large the terms are that the network adds up, an output each, in the target's units.

    A sum of products carries a rounding error of the size of the products, however small the sum: of each
    output it is about the machine epsilon times the root of the sum of squares of its terms, a small multiple
    of that over thousands of rows (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., 3.1).
    The terms are those of training: what folding a standardisation loses is not forgiven.

    Args:
        params: The parameters, in units of training.
        scaler: The standardisation, or None.
        rows: Raw rows, shape (M, n_in).

    Returns:
        The largest root of the sum of squares over the rows, shape (n_out,).
    """
    w1, w2, b1, b2 = (0.0 if p is None else np.square(p, dtype=np.float64) for p in params)
    x = rows if scaler is None else scaler.standardise_x(rows)
    squares = (np.square(x) @ w1 + b1) @ w2 + b2  # (M, n_out)
    largest: Array = np.sqrt(squares.max(axis=0))
    return largest if scaler is None else largest * scaler.y_std


def _dtype(params: Params) -> Any:
    return np.float64 if params.w1.dtype == np.float64 else np.float32


def _predict_raw(predict: Callable[[Array], Array], scaler: Scaler | None, raw: Array) -> Array:
    return predict(raw) if scaler is None else scaler.restore_y(predict(scaler.standardise_x(raw)))


def _suspect(scaler: Scaler | None, features: tuple[str, ...], dtype: Any) -> str | None:
    """Names the column that float32 holds worst, if one is the likely cause."""
    if scaler is None or dtype is np.float64:
        return None
    offset = np.abs(scaler.x_mean) / scaler.x_std
    worst = int(offset.argmax())
    if offset[worst] < 1e3:
        return None
    return (
        f"column '{features[worst]}' lies {offset[worst]:.0f} standard deviations from 0, which is far for "
        "float32: subtract something from it, or use --precision 64-true"
    )
