"""Processes that start at once and name one store differently."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ["run", "-p", "nn", "--steps", "5", "--n", "4", "--d-in", "3", "--no-export", "--json"]


@pytest.mark.slow
def test_a_fresh_database_under_two_names_is_made_once(empty_folder: Path) -> None:
    """One process takes the default, one the absolute path: both succeed, in one experiment."""
    from mlflow import MlflowClient

    absolute = f"sqlite:///{empty_folder / 'mlflow.db'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "layerlab", *SMALL, *more],
            cwd=empty_folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for more in ([], ["--tracking-uri", absolute])
    ]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    reported = {json.loads(out)["runs"][0]["run_id"] for out, _ in printed}
    client = MlflowClient(absolute)
    runs = client.search_runs([client.get_experiment_by_name("layerlab").experiment_id])
    assert {(run.info.run_id, run.info.status) for run in runs} == {(id_, "FINISHED") for id_ in reported}
    assert len(reported) == 2
