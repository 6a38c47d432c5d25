"""An ONNX file on disk: opened with suspicion, run under onnxruntime, checked again.

Only what is inside the file is used: a model that refers to other files is refused before it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from layerlab.errors import InputError, ModelError, one_line

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

    from layerlab.tier import Array

PREFIX = "layerlab."
# Metadata of these keys is JSON.
_JSON_KEYS = frozenset({"features", "outputs", "classes"})
PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class Check:
    """One check of a model file: its name, whether it passed, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass
class VerifyReport:
    """What `verify` found.

    Attributes:
        path: The file.
        checks: The checks, in order; the ones after a failure may be missing.
        metadata: What the file says of itself.
    """

    path: str
    checks: list[Check] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """What ``layerlab verify --json`` prints."""
        checks = [vars(check) for check in self.checks]
        return {"path": self.path, "ok": self.ok, "checks": checks, "metadata": self.metadata}


class ModelFile:
    """An open ONNX model with one input (N, n_in) and one output (N, n_out).

    Args:
        path: The file.

    Raises:
        InputError: There is no such file.
        ModelError: It is not an ONNX model that can be trusted to stand alone, or onnxruntime refuses it.
    """

    def __init__(self, path: Path) -> None:
        check_is_file(path)
        import onnxruntime

        self.path = path
        self.proto = load_proto(path)
        self.metadata = read_metadata(self.proto, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; it need not be printed too
        try:
            self._session = onnxruntime.InferenceSession(
                self.proto.SerializeToString(), options, providers=[PROVIDER]
            )
        except Exception as error:  # noqa: BLE001 -- onnxruntime's errors have no other common base
            raise ModelError(f"{path}: onnxruntime refuses the model: {error}") from None
        # onnxruntime would fall back to another provider in silence
        if self._session.get_providers() != [PROVIDER]:
            raise ModelError(f"{path}: onnxruntime runs the model on {self._session.get_providers()}")
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(f"{path}: {len(inputs)} inputs and {len(outputs)} outputs, not one of each")
        self.input, self.output = inputs[0], outputs[0]
        kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64}
        if (
            self.input.type not in kinds
            or len(self.input.shape) != 2
            or not isinstance(self.input.shape[1], int)
        ):
            raise ModelError(
                f"{path}: the input is {self.input.type} {self.input.shape}, not numbers of shape (N, n_in)"
            )
        self.dtype: Any = kinds[self.input.type]
        self.n_in: int = self.input.shape[1]

    def run(self, x: Array) -> Array:
        """Predictions of onnxruntime for raw rows: (N, n_in) to (N, n_out)."""
        try:
            (y_pred,) = self._session.run(None, {self.input.name: np.ascontiguousarray(x, self.dtype)})
        except Exception as error:  # noqa: BLE001 -- as above
            raise ModelError(f"{self.path}: onnxruntime fails at a batch of {len(x)}: {error}") from None
        return np.asarray(y_pred)


def load_proto(path: Path) -> onnx.ModelProto:
    """Parses an ONNX file without following any reference out of it.

    Raises:
        InputError: There is no such file.
        ModelError: It is not an ONNX model, or it keeps tensors in other files.
    """
    check_is_file(path)
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not an ONNX file: {error}") from None
    if not proto.graph.node:
        raise ModelError(f"{path}: not an ONNX file, or one without any operation")
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(f"{path}: tensor '{one_line(tensor.name)}' is kept in another file")
    return proto


def check_is_file(path: Path) -> None:
    """Looks whether there is a file, before anything heavy is imported to read it.

    Raises:
        InputError: There is none.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}")


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a model: initializers, constants, sparse ones, subgraphs, functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield cast("onnx.TensorProto", message)
        return
    for field_, value in message.ListFields():
        if field_.message_type is not None:
            for inner in value if isinstance(value, Sequence) else [value]:
                yield from _tensors(inner)


def weights_digest(proto: onnx.ModelProto) -> str:
    """The SHA-256 of all weights of a model, by name and content."""
    digest = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda t: str(t.name)):
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def read_metadata(proto: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """What layerlab wrote into a model's metadata; other keys as they are.

    Raises:
        ModelError: Names of columns or classes that are not a list of texts.
    """
    found: dict[str, Any] = {}
    for entry in proto.metadata_props:
        key = entry.key.removeprefix(PREFIX)
        found[key] = entry.value
        if key in _JSON_KEYS:
            try:
                names = json.loads(entry.value)
            except (ValueError, RecursionError):
                names = None
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ModelError(f"{path}: metadata '{key}' is not a list of names")
            found[key] = names
    return found


def write_metadata(proto: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Adds metadata to a model, lists as JSON."""
    import onnx

    texts = {f"{PREFIX}{k}": json.dumps(v) if k in _JSON_KEYS else str(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(proto, texts)


def verify(path: str | Path) -> VerifyReport:
    """Checks an exported file again: structure, weights, and runs on several batch sizes.

    Raises:
        InputError: There is no such file.
    """
    check_is_file(Path(path))
    import onnx

    report = VerifyReport(str(path))

    def passed(name: str, detail: str) -> None:
        report.checks.append(Check(name, True, detail))

    name = "stands alone"
    try:
        proto = load_proto(Path(path))
        passed(name, "no tensor is kept in another file")
        name = "structure"
        onnx.checker.check_model(proto, full_check=True)
        passed(name, f"onnx.checker, opset {proto.opset_import[0].version}, IR {proto.ir_version}")
        name = "metadata"
        report.metadata = read_metadata(proto, Path(path))
        name = "weights"
        expected, actual = report.metadata.get("weights_sha256"), weights_digest(proto)
        if expected is not None and expected != actual:
            raise ModelError("the weights are not those that were exported")
        passed(name, "as exported" if expected else "the file has no digest to compare with")
        name = "onnxruntime"
        passed(name, _check_runs(ModelFile(Path(path))))
    except (ModelError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        report.checks.append(Check(name, False, one_line(str(error))))
    return report


def _check_runs(model: ModelFile) -> str:
    """Runs batches of several sizes: right shapes, numbers, and rows that do not depend on others."""
    rows = np.random.default_rng(0).standard_normal((7, model.n_in))
    whole = model.run(rows)
    for size in (1, 2, 7):
        y_pred = model.run(rows[:size])
        if y_pred.ndim != 2 or len(y_pred) != size:
            raise ModelError(f"a batch of {size} gives an output of shape {y_pred.shape}")
        if not np.isfinite(y_pred).all():
            raise ModelError(f"a batch of {size} gives numbers that are not finite")
        scale = float(np.abs(whole).max())
        if not np.allclose(y_pred, whole[:size], rtol=1e-4, atol=1e-5 * scale):
            raise ModelError(f"a row alone and the same row in a batch of {size} give different answers")
    return f"batches of 1, 2 and 7 on {PROVIDER}: ({model.n_in}) -> ({whole.shape[1]})"
