"""An ONNX model in the store, as `mlflow.onnx` keeps it, linked to the run that made it."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab.tracking.artifacts import keep_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient

_MISMATCH_CHECK = "warn_dependency_requirement_mismatches"


def confirm_model(client: MlflowClient, run_id: str, step: int) -> bool:
    """Makes READY what a run has of a model of some step; whether it has one.

    It came there before, and its answer was lost. A run is linked to a model once all of it is there: it is
    good, whatever was said of it after that.
    """
    outputs = client.get_run(run_id).outputs
    found = [] if outputs is None else [one for one in outputs.model_outputs if one.step == step]
    for output in found:
        client.finalize_logged_model(output.model_id, "READY")
    return bool(found)


def log_model(
    client: MlflowClient, experiment_id: str, run_id: str, model: bytes, *, name: str, step: int
) -> None:
    """Keeps an ONNX model with its signature.

    `mlflow.onnx.log_model` would do, but it works on a run that is active in the whole process, and reads
    back every metric of the run.

    Args:
        client: MLflow's client of the store.
        experiment_id: The experiment.
        run_id: The run that made it.
        model: A file's bytes.
        name: The model's name.
        step: How many updates made it.
    """
    import onnx
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.onnx import save_model

    with tempfile.TemporaryDirectory() as folder:
        proto = onnx.load_model_from_string(model)
        logged = client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, model_type="DoubleLayerNet"
        )
        try:
            path = Path(folder) / "model"
            with _without_mismatch_check():
                save_model(
                    proto,
                    str(path),
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        model_uuid=logged.model_id,
                        model_id=logged.model_id,
                        run_id=run_id,
                    ),
                    signature=_signature(proto),
                    pip_requirements=_requirements(),
                    onnx_execution_providers=["CPUExecutionProvider"],
                    save_as_external_data=False,
                )
            keep_folder(client, logged.artifact_location, path)
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=step)])
            client.finalize_logged_model(logged.model_id, "READY")
        except BaseException:
            with suppress(Exception):  # what is told is why it failed
                client.finalize_logged_model(logged.model_id, "FAILED")
            raise


def _signature(model: Any) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from onnx import helper

    def schema(value: Any) -> Schema:
        tensor = value.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return Schema([TensorSpec(dtype, (-1, tensor.shape.dim[1].dim_value), value.name)])

    return ModelSignature(inputs=schema(model.graph.input[0]), outputs=schema(model.graph.output[0]))


@contextmanager
def _without_mismatch_check() -> Iterator[None]:
    """Within this context MLflow does not check a model's requirements against what is installed.

    It would first read what every installed distribution consists of, for most of the time that the first
    model takes; and what is required here is what is installed. Another MLflow than those that were tried may
    not have the function that checks: then nothing is done.
    """
    from mlflow.utils import environment

    check = getattr(environment, _MISMATCH_CHECK, None)
    if check is None:
        yield
        return
    setattr(environment, _MISMATCH_CHECK, lambda _: None)
    try:
        yield
    finally:
        setattr(environment, _MISMATCH_CHECK, check)


def _requirements() -> list[str]:
    return [f"{name}=={_version(name)}" for name in ("mlflow", "onnx", "onnxruntime", "numpy")]


_version = cache(version)  # each look into what is known of a distribution takes milliseconds
