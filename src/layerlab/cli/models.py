"""``layerlab verify`` and ``layerlab predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from layerlab.cli.common import Json, emit


def verify(
    model: Annotated[Path, typer.Argument(help="An exported ONNX file.")], as_json: Json = False
) -> None:
    """Check an exported ONNX file again under onnxruntime."""
    from layerlab import console
    from layerlab.modelfile import verify as verify_model

    report = verify_model(model)
    if as_json:
        emit(json.dumps(report.as_dict(), indent=2))
    else:
        emit(console.verify_text(report))
    if not report.ok:
        raise typer.Exit(1)


def predict(
    model: Annotated[Path, typer.Argument(help="An exported ONNX file.")],
    rows: Annotated[Path, typer.Argument(help="A CSV or Parquet file with the model's input columns.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of stdout.")
    ] = None,
) -> None:
    """Predict the rows of a table, as CSV."""
    from layerlab.prediction import predict_table, write_csv

    predicted = predict_table(model, rows)
    write_csv(predicted, output)
