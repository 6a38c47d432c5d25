"""An ONNX file on disk: opened with suspicion, run under onnxruntime, checked again.

Only what is inside the file is used: a model that refers to other files is refused before it is loaded. So is
every graph that is not of the kind that layerlab exports, before anything runs it: ONNX has loops, functions
that call each other and operators that make a terabyte of one number, and a chain of layers has none of that.
What it costs follows from the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from layerlab.errors import ModelError, check_is_file, one_line

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

    from layerlab.tier import Array

PREFIX = "layerlab."
# Metadata of these keys is JSON.
_JSON_KEYS = frozenset({"features", "outputs", "classes"})
PROVIDER = "CPUExecutionProvider"
# What protobuf itself can hold.
LARGEST = 2**31
# Operators and tensors of a file; an exported one has three and at most four.
MOST_PARTS = 1000
# The operators of an exported network, and the attributes that they may have.
OPERATORS = {"Gemm": frozenset({"alpha", "beta", "transB"}), "Relu": frozenset[str]()}


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
        ModelError: It is not an ONNX model that stands alone and is of the kind that layerlab exports, its
            weights are not those that were exported, or onnxruntime refuses it.
    """

    def __init__(self, path: Path) -> None:
        check_is_file(path)
        import onnxruntime

        self.path = path
        self.proto = load_proto(path)
        check_graph(self.proto, path)
        self.metadata = read_metadata(self.proto, path)
        check_weights(self.proto, self.metadata, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; it need not be printed too
        # Its threads would look out for more work while the tier that it is held against computes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                self.proto.SerializeToString(), options, providers=[PROVIDER]
            )
        except Exception as error:  # noqa: BLE001 -- onnxruntime's errors have no other common base
            raise ModelError(f"{path}: onnxruntime refuses the model: {error}") from None
        # onnxruntime would fall back to another provider in silence
        if self._session.get_providers() != [PROVIDER]:
            raise ModelError(f"{path}: onnxruntime runs the model on {self._session.get_providers()}")
        (self.input,), (self.output,) = self._session.get_inputs(), self._session.get_outputs()
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

    if path.stat().st_size > LARGEST:
        raise ModelError(f"{path}: not an ONNX file: larger than 2 GiB")
    try:
        # By its suffix onnx would take one for text, and hand it to parsers that nothing here needs.
        proto = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not an ONNX file: {error}") from None
    if not proto.graph.node:
        raise ModelError(f"{path}: not an ONNX file, or one without any operation")
    if len(proto.graph.node) + len(proto.graph.initializer) > MOST_PARTS:
        raise ModelError(f"{path}: not an exported network: more than {MOST_PARTS} operators and tensors")
    if not _is_text(proto):
        raise ModelError(f"{path}: not an ONNX file: a name in it is not UTF-8 text")
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(f"{path}: tensor '{one_line(tensor.name)}' is kept in another file")
    return proto


def check_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Looks whether a graph is a chain of layers, each with its weights in the file.

    Raises:
        ModelError: It is something else, or the shapes of its weights are not those of their numbers.
    """
    graph = proto.graph
    if fault := _fault_of_parts(proto):
        raise ModelError(f"{path}: {fault}")
    weights: dict[str, tuple[int, ...]] = {}
    for tensor in graph.initializer:
        if not _holds_its_shape(tensor):
            raise ModelError(
                f"{path}: tensor '{one_line(tensor.name)}' does not hold floating-point numbers of its shape"
            )
        weights[tensor.name] = tuple(tensor.dims)
    value = graph.input[0].name
    dims = graph.input[0].type.tensor_type.shape.dim
    width = dims[1].dim_value if len(dims) == 2 else 0
    for node in graph.node:
        allowed = None if node.domain else OPERATORS.get(node.op_type)
        if allowed is None or not allowed.issuperset(attribute.name for attribute in node.attribute):
            raise ModelError(
                f"{path}: operator '{one_line(node.op_type)}': an exported network is made of "
                f"{' and '.join(OPERATORS)}"
            )
        first, others = node.input[:1], node.input[1:]
        if first != [value] or len(node.output) != 1 or not weights.keys() >= set(others):
            raise ModelError(f"{path}: its operators are not a chain, each with weights of its own")
        value = node.output[0]
        if node.op_type == "Gemm":
            shape = weights.get(others[0], ()) if others else ()
            turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            rows, columns = (shape[::-1] if turned else shape) if len(shape) == 2 else (0, 0)
            if rows != width or columns == 0:
                raise ModelError(f"{path}: a layer of {rows} inputs takes {width}")
            width = columns
    if value != graph.output[0].name:
        raise ModelError(f"{path}: its output is not that of its last operator")


def _fault_of_parts(proto: onnx.ModelProto) -> str | None:
    """What a model has that an exported one has not, or lacks."""
    graph = proto.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        return f"{len(graph.input)} inputs and {len(graph.output)} outputs, not one of each"
    if proto.functions or proto.training_info or graph.sparse_initializer:
        return "it has functions, sparse tensors or a training graph, which no exported network has"
    if not proto.opset_import:
        return "it does not say which operators it means"
    return None


def _holds_its_shape(tensor: onnx.TensorProto) -> bool:
    if len(tensor.dims) > 2 or any(dim < 1 for dim in tensor.dims):
        return False
    if tensor.data_type == tensor.FLOAT:
        size, plain = 4, len(tensor.float_data)
    elif tensor.data_type == tensor.DOUBLE:
        size, plain = 8, len(tensor.double_data)
    else:
        return False
    return math.prod(tensor.dims) == (len(tensor.raw_data) / size if tensor.raw_data else plain)


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a model: initializers, constants, sparse ones, subgraphs, functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield cast("onnx.TensorProto", message)
        return
    for field_, value in message.ListFields():
        if field_.message_type is not None:
            for inner in value if isinstance(value, Sequence) else [value]:
                yield from _tensors(inner)


def _is_text(message: Message) -> bool:
    """Whether all that should be text is: protobuf hands out as bytes what is not."""
    for field_, value in message.ListFields():
        if field_.message_type is not None:
            inner = value if isinstance(value, Sequence) else [value]
            if not all(_is_text(single) for single in inner):
                return False
        elif field_.type == field_.TYPE_STRING:
            texts = [value] if isinstance(value, (str, bytes)) else value
            if not all(isinstance(text, str) for text in texts):
                return False
    return True


def weights_digest(proto: onnx.ModelProto) -> str:
    """The SHA-256 of all weights of a model, by name and content."""
    digest = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda t: str(t.name)):
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def check_weights(proto: onnx.ModelProto, metadata: dict[str, Any], path: Path) -> bool:
    """Holds the weights against the digest that the file has of them; whether it has one.

    Raises:
        ModelError: They are others: the file was damaged, or somebody changed it.
    """
    expected = metadata.get("weights_sha256")
    if expected is not None and expected != weights_digest(proto):
        raise ModelError(f"{path}: the weights are not those that were exported")
    return expected is not None


def read_metadata(proto: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """What layerlab wrote into a model's metadata; other keys as they are.

    Raises:
        ModelError: Names of columns or classes that are not a list of texts, or a key that is given twice.
    """
    found: dict[str, Any] = {}
    for entry in proto.metadata_props:
        key = entry.key.removeprefix(PREFIX)
        if key in found:
            raise ModelError(f"{path}: metadata '{one_line(key)}' is given twice")
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
    report = VerifyReport(str(path))

    def passed(name: str, detail: str) -> None:
        report.checks.append(Check(name, True, detail))

    name = "stands alone"
    try:
        proto = load_proto(Path(path))
        passed(name, "no tensor is kept in another file")
        name = "structure"
        check_graph(proto, Path(path))
        _check_onnx(proto)
        passed(name, f"onnx.checker, opset {proto.opset_import[0].version}, IR {proto.ir_version}")
        name = "metadata"
        report.metadata = read_metadata(proto, Path(path))
        name = "weights"
        known = check_weights(proto, report.metadata, Path(path))
        passed(name, "as exported" if known else "the file has no digest to compare with")
        name = "onnxruntime"
        passed(name, _check_runs(ModelFile(Path(path))))
    except ModelError as error:
        report.checks.append(Check(name, False, one_line(str(error))))
    return report


def _check_onnx(proto: onnx.ModelProto) -> None:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(str(error)) from None


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
