"""Many points at once into a SQLite store.

`MlflowClient.log_batch` makes an object of each point, for its validation, for the object-relational mapper
and for its history; that costs ten times what SQLite needs to keep it, and it is paid on a processor that the
training could use. Here the rows of MLflow's own table of metrics go in many at a time, inside a session of
MLflow's own. What the table looks like is asked of MLflow; where it is not as known here, there is no bulk
writer and points go the ordinary way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient

    from layerlab.journal import Point

# At most so many at once: a bound on how long other processes wait for the database.
POINTS_AT_ONCE = 10_000
# Rows of a statement: beginning and ending one costs what a few rows cost. Older SQLite takes 999 values.
_ROWS = 160
_COLUMNS = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")


class BulkWriter:
    """Writes points into the table of metrics of a SQLite store.

    Args:
        store: MLflow's `SqlAlchemyStore`.
        table: The name of the table.
    """

    def __init__(self, store: Any, table: str) -> None:
        self._store = store
        columns = ", ".join(f'"{column}"' for column in _COLUMNS)
        self._insert = f'INSERT OR IGNORE INTO "{table}" ({columns}) VALUES '
        self._row = f"({', '.join('?' for _ in _COLUMNS)})"

    def write(self, run_id: str, points: Sequence[Point]) -> None:
        """Adds points to a run, but for those that it has.

        MLflow's own check that the run may be written to is not made, nor is its list of latest points
        changed: log the last point of every metric by `MlflowClient.log_batch` first.
        """
        values: list[Any] = []
        for key, value, timestamp, step in points:
            is_nan = False
            if not math.isfinite(value):
                is_nan, value = self._store.sanitize_metric_value(value)  # noqa: PLW2901 -- as MLflow stores it
            values += (key, value, timestamp, step, is_nan, run_id)
        width = len(_COLUMNS)
        with self._store.ManagedSessionMaker(read_only=False) as session:
            connection = session.connection()
            for start in range(0, len(values), _ROWS * width):
                some = tuple(values[start : start + _ROWS * width])
                rows = ", ".join([self._row] * (len(some) // width))
                connection.exec_driver_sql(self._insert + rows, some)


def bulk_writer(client: MlflowClient) -> BulkWriter | None:
    """The bulk writer of a client's store; None where the store is not SQLite, or not as known here."""
    try:
        from mlflow.store.tracking.dbmodels.models import SqlMetric
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = client._tracking_client.store
        if not isinstance(store, SqlAlchemyStore) or store.engine.dialect.name != "sqlite":
            return None
        table = SqlMetric.__table__
        if {column.name for column in table.columns} != set(_COLUMNS):
            return None
        return BulkWriter(store, table.name)
    except (ImportError, AttributeError):  # another MLflow than those that were tried
        return None
