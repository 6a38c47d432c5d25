"""One peer in a process of its own, asked by the coordinator."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from layerlab.benchmarking.machine import changed, give_back, settings, settle
from layerlab.benchmarking.peers import PEERS
from layerlab.benchmarking.peers.job import Job
from layerlab.benchmarking.problem import TimedProblem
from layerlab.benchmarking.processes import serve
from layerlab.errors import AcceleratorError
from layerlab.tiers.custom_module import CustomModuleTier

if TYPE_CHECKING:
    from layerlab.tier import Precision


class PeerWorker:
    """A peer, and the problem it is timed on.

    Args:
        name: The peer.
        precision: The precision of the run.
        accelerator: "cpu" or "gpu".
        folder: A folder of its own; whoever asks removes it, for a worker is killed.
    """

    def __init__(self, name: str, precision: Precision, accelerator: str, folder: str) -> None:
        self._settings = settings()  # before anything of the peer's is imported
        self.peer, self.precision = PEERS[name], precision
        self.device = "cuda" if accelerator == "gpu" else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise AcceleratorError("there is no CUDA device on this machine", hint="--accelerator cpu")
        os.environ["KERAS_TORCH_DEVICE"] = self.device
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        os.chdir(folder)  # what a script leaves behind

    def begun(self) -> dict[str, Any]:
        """Imports what the peer is made of: which version it is, or that it is not installed."""
        try:
            self.script: Any = importlib.import_module(self.peer.module)
        except ModuleNotFoundError as error:
            if error.name != self.peer.package:
                raise
            return {"installed": None}
        return {"installed": f"{self.peer.distribution} {version(self.peer.distribution)}"}

    def time(self, sizes: list[int], steps: int, seed: int) -> dict[str, Any]:
        """Seconds a step of a new training, and what shows that it was not made, or None.

        Raises:
            TierError: The peer cannot do the job.
        """
        n, d_in, hidden, d_out = sizes
        problem = TimedProblem.draw(
            (n, d_in, hidden, d_out),
            steps=steps + steps // 4,
            seed=seed,
            precision=self.precision,
            recipe=CustomModuleTier.recipe,
            bias=True,
        )
        x, y = problem.rows[0]
        job = Job(
            problem.start.map(lambda p: p.copy()),
            x.copy(),
            y.copy(),
            problem.lr,
            steps,
            self.precision,
            self.device,
            self.folder,
        )
        give_back()
        settle()
        made = self.script.train(job)
        if not job.begun == job.steps == len(made.losses):
            counts = f"{job.begun} steps began and {len(made.losses)} losses were kept"
            return {"fault": f"of {job.steps} steps {counts}"}
        # Whatever they compute in, some of them keep a loss in single precision.
        fault = changed(self._settings) or problem.fault(
            (job.steps,), made.losses, made.end, self.precision, losses_in="32-true"
        )
        return {"step": job.seconds, "fault": fault}


def main() -> None:
    """Answers until stdin ends."""
    # What other people's programs tell of themselves on the way is not ours to show.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(PeerWorker)


if __name__ == "__main__":
    main()
