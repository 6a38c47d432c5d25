"""What a step of `layerlab.run` takes, against its bare loop: the bench's figure, by whole runs.

The bench times a training that sends its losses afterwards, in turns with the loop, and adds what sending
takes. Here everything is as a run has it: the recording process sends while the training lasts, and a run is
over when its record is closed. For each tier, in one process and in turn: a short run, a long run, and a bare
loop of the same problem that reads each loss. What the long run takes more than the short one, from the start
of the training to the end of the record, is what so many more tracked steps take; the loop is timed for the
same steps, half of them before the runs and half after them. What is left to send when a training ends, about
a second's losses, is in it, and weighs less in a longer run. The sides are of other seconds, and the
intervals are as wide as a machine's seconds differ.

    python benchmarks/tracked_run.py [--rounds 7] [--steps 10000] [--tiers nn,optim] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import layerlab
from layerlab import startup

TIERS = ("tensors", "autograd", "custom-function", "nn", "optim", "custom-module")
SHORT = 500


def tracked(tier: str, steps: int) -> float:
    """Seconds of a run, from the start of its training to the end of its record."""
    (run,) = layerlab.run(
        plugin=tier, steps=steps, export=False, accelerator="cpu", tracking_uri="sqlite:///mlflow.db"
    ).runs
    if not run.ok or run.steps != steps:
        raise SystemExit(f"{tier}: {run.status} after {run.steps} steps: {run.error or run.unsent}")
    return run.seconds["total"] - run.seconds["setup"]


def bare(name: str, first: int, steps: int) -> float:
    """Seconds of so many steps of the plain loop, after the first ones, on the problem of the run."""
    import torch

    from layerlab.planning import plan
    from layerlab.reference import initial_params
    from layerlab.spec import build_spec

    (job,), prepared = plan(build_spec(flags={"plugin": name, "accelerator": "cpu"}), lambda _: None)
    x, y = (torch.from_numpy(a.astype("f4")) for a in prepared.arrays(prepared.train))
    net, train = job.spec.net, job.spec.train
    assert train.lr is not None
    assert net.init is not None
    params = initial_params(
        x.shape[1], net.hidden, y.shape[1], init=net.init, bias=bool(net.bias), seed=train.seed
    )
    params = params.map(lambda p: p.astype("f4"))
    tier = job.tier_class(params, lr=train.lr, device=torch.device("cpu"), dtype=torch.float32)
    losses = [float(tier.step(x, y)) for _ in range(first)]
    began = time.perf_counter()
    for _ in range(steps):
        losses.append(float(tier.step(x, y)))  # noqa: PERF401 -- the loop as the field writes it
    return time.perf_counter() - began


def measure(tiers: list[str], rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Seconds a step of both sides, by tier; half of the loop comes before the runs, and half after them."""
    found: dict[str, dict[str, list[float]]] = {tier: {"tracked": [], "bare": []} for tier in tiers}
    for tier in tiers:  # what happens once in a process
        tracked(tier, SHORT)
        bare(tier, 1, SHORT)
    half = steps // 2
    for number in range(rounds):
        for tier in tiers[number % len(tiers) :] + tiers[: number % len(tiers)]:
            loop = bare(tier, SHORT, half)
            lengths = (SHORT, SHORT + steps)[:: -1 if number % 2 else 1]
            taken = {length: tracked(tier, length) for length in lengths}
            loop += bare(tier, SHORT + half, steps - half)
            found[tier]["tracked"].append((taken[SHORT + steps] - taken[SHORT]) / steps)
            found[tier]["bare"].append(loop / steps)
    return found


def main() -> None:
    """Measures and prints the table."""
    # As the command does, of which this process makes many: before NumPy and torch read the environment.
    startup.claim()
    from layerlab.benchmarking.report import Timing

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each tier (default: 7)")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of a round (default: 10000)")
    parser.add_argument("--tiers", default=",".join(TIERS), help="which tiers (default: those of torch)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    output = arguments.json and arguments.json.absolute()
    if min(arguments.rounds, arguments.steps) < 1:
        parser.error("--rounds, --steps: should be at least 1")
    tiers = arguments.tiers.split(",")
    if unknown := [tier for tier in tiers if tier not in TIERS]:
        parser.error(f"--tiers: not one of {', '.join(TIERS)}: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        found = measure(tiers, arguments.rounds, arguments.steps)
    lines, ratios = ["tier             tracked us  bare us  ratio"], []
    for tier, sides in found.items():
        tracked, loop = (Timing.of(sides[side]) for side in ("tracked", "bare"))
        ratio = tracked.over(loop)
        ratios.append(ratio.median)
        lines.append(
            f"{tier:15}  {1e6 * tracked.median:10.0f}  {1e6 * loop.median:7.0f}  "
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    if output:
        figures = {"steps": arguments.steps, "tiers": found, "ratios": ratios}
        output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
