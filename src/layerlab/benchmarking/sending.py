"""What sending the losses of a training takes, and whether they are in the store."""

from __future__ import annotations

import sqlite3

from layerlab.tracking.talk import SECONDS_BETWEEN_CALLS


def sending_of(step: float, *, call: float, sending: float, losses: int) -> float:
    """What the store takes for the loss of a step, in seconds.

    Args:
        step: What the step takes.
        call: What a call takes that brings next to nothing: there is one every `SECONDS_BETWEEN_CALLS`.
        sending: What a call takes that brings all losses.
        losses: How many they are.
    """
    return step * call / SECONDS_BETWEEN_CALLS + max(0.0, sending - call) / losses


def audit_record(store: str, run_id: str, losses: list[float]) -> str | None:
    """What of the losses is not in the store as it was computed, or None.

    The table is read, and not MLflow asked: importing it here would cost more than all rounds.
    """
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        found = database.execute(
            "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = 'loss' ORDER BY step", (run_id,)
        ).fetchall()
    database.close()
    if found == list(enumerate(losses)):
        return None
    return f"the store has {len(found)} losses of {len(losses)}, or others than were computed"
