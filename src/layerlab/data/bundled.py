"""The data sets that scikit-learn carries inside: real, small, and there without a network."""

from __future__ import annotations

import numpy as np

from layerlab.data.dataset import Dataset


def bundled_dataset(name: str) -> Dataset:
    """Reads one of `layerlab.spec.BUNDLED`.

    https://scikit-learn.org/stable/datasets/toy_dataset.html
    """
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    classes = None
    if hasattr(bunch, "target_names") and bunch.target.ndim == 1:
        classes = tuple(str(c) for c in bunch.target_names)
        y = np.eye(len(classes))[bunch.target]  # (N, n_classes), one-hot
        outputs = classes
    else:
        y = bunch.target.reshape(len(bunch.data), -1).astype(np.float64)  # (N, n_out)
        outputs = tuple(str(t) for t in getattr(bunch, "target_names", ["target"]))
    return Dataset(
        name=name,
        source="scikit-learn",
        x=np.asarray(bunch.data, np.float64),
        y=y,
        features=tuple(str(f) for f in bunch.feature_names),
        outputs=outputs,
        classes=classes,
        standardise=True,
    )
