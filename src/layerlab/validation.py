"""Figures of predictions against targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from layerlab.tier import Array


def validation_metrics(y_pred: Array, y: Array, *, classification: bool) -> dict[str, float]:
    """Figures of predictions against targets.

    Args:
        y_pred: Predictions, shape (M, n_out).
        y: Targets, shape (M, n_out).
        classification: Whether targets are one-hot.

    Returns:
        ``val_loss``, the sum of squares over rows and outputs, as in training. A classification adds
        ``val_accuracy``; a regression ``val_r2``, the mean over outputs of the coefficient of determination
        (left out where a target does not vary).
    """
    y_pred, y = y_pred.astype(np.float64), y.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        residual = np.square(y_pred - y).sum(axis=0)  # (D_out,)
    metrics = {"val_loss": float(residual.sum())}
    if classification:
        metrics["val_accuracy"] = float((y_pred.argmax(axis=1) == y.argmax(axis=1)).mean())
        return metrics
    spread = np.square(y - y.mean(axis=0)).sum(axis=0)  # (D_out,)
    if (spread > 0).all():
        metrics["val_r2"] = float((1 - residual / spread).mean())
    return metrics
