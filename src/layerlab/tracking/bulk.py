"""Many points at once into a SQLite store.

`MlflowClient.log_batch` makes an object of each point, for its validation, for the object-relational mapper
and for its history; that costs ten times what SQLite needs to keep it, and it is paid on a processor that the
training could use. Here the rows of MLflow's own table of metrics go in by one statement, inside a session of
MLflow's own. What the table looks like is asked of MLflow; where it is not as known here, there is no bulk
writer and points go the ordinary way.
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient

    from layerlab.journal import Point

# One statement brings at most so many: a bound on how long other processes wait for the database.
POINTS_AT_ONCE = 10_000
_COLUMNS = {"key", "value", "timestamp", "step", "is_nan", "run_uuid"}


class BulkWriter:
    """Writes points into the table of metrics of a SQLite store.

    Args:
        store: MLflow's `SqlAlchemyStore`.
        statement: The insertion, which passes over rows that are there.
        order: The columns in the order of the statement.
    """

    def __init__(self, store: Any, statement: str, order: Sequence[str]) -> None:
        self._store, self._statement = store, statement
        names = {"key": 0, "value": 1, "timestamp": 2, "step": 3, "is_nan": 4, "run_uuid": 5}
        self._in_order = itemgetter(*(names[column] for column in order))

    def write(self, run_id: str, points: Sequence[Point]) -> None:
        """Adds points to a run, but for those that it has.

        MLflow's own check that the run may be written to is not made, nor is its list of latest points
        changed: log the last point of every metric by `MlflowClient.log_batch` first.
        """
        rows = []
        for key, value, timestamp, step in points:
            is_nan = False
            if not math.isfinite(value):
                is_nan, value = self._store.sanitize_metric_value(value)  # noqa: PLW2901 -- as MLflow stores it
            rows.append(self._in_order((key, value, timestamp, step, is_nan, run_id)))
        with self._store.ManagedSessionMaker(read_only=False) as session:
            session.connection().exec_driver_sql(self._statement, rows)


def bulk_writer(client: MlflowClient) -> BulkWriter | None:
    """The bulk writer of a client's store; None where the store is not SQLite, or not as known here."""
    try:
        from mlflow.store.tracking.dbmodels.models import SqlMetric
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        from sqlalchemy import insert

        store = client._tracking_client.store
        if not isinstance(store, SqlAlchemyStore) or store.engine.dialect.name != "sqlite":
            return None
        table = SqlMetric.__table__
        if {column.name for column in table.columns} != _COLUMNS:
            return None
        compiled = (
            insert(table)
            .prefix_with("OR IGNORE")
            .compile(dialect=store.engine.dialect, column_keys=sorted(_COLUMNS))
        )
        if compiled.positiontup is None or set(compiled.positiontup) != _COLUMNS:
            return None
        return BulkWriter(store, str(compiled), compiled.positiontup)
    except (ImportError, AttributeError):  # another MLflow than those that were tried
        return None
