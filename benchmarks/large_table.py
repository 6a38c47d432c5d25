"""Minibatches from a table that is not held in memory, against a bare loop over the same mapped rows.

A Parquet table of random numbers is made, read and laid out as ``layerlab run`` does it. Then, in turn:
steps of a tier under the Trainer, as `layerlab.TierModule` runs them, gathering included; and a bare loop
that draws as many minibatches, in an order drawn each epoch, from the same mapped rows, and reads each loss.

Memory is looked at twenty times a second while the table is read and trained on once, before anything is
timed, and so is that of a table a quarter as large, in a process of its own.

    python benchmarks/large_table.py [--gigabytes 2] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from layerlab import Params, TierModule, TrainingData, startup
from layerlab.benchmarking.report import Timing
from layerlab.data import load_prepared
from layerlab.reference import initial_params
from layerlab.spec import build_spec
from layerlab.tiers.custom_module import CustomModuleTier
from layerlab.training import make_trainer, quiet_lightning

if TYPE_CHECKING:
    from collections.abc import Iterator

BUDGET = 1.10
COLUMNS, HIDDEN, BATCH, LR = 101, 100, 256, 1e-7
STEPS = 2000
LEAST_GB = 0.3
_LOOK = 0.05  # seconds


def make_table(path: Path, gigabytes: float) -> None:
    """A Parquet table of so many bytes of float64: 100 inputs and a target."""
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(COLUMNS - 1)] + ["y"]
    schema = pa.schema([(name, pa.float64()) for name in names])
    part = 100_000
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as out:
        for _ in range(max(1, round(gigabytes * 1e9 / (8 * COLUMNS * part)))):
            rows = rng.standard_normal((part, COLUMNS))
            out.write_table(pa.table(dict(zip(names, rows.T, strict=True))))


def bare(params: Params, data: TrainingData, steps: int, seed: int) -> float:
    """Seconds a step of the plain loop."""
    tier = CustomModuleTier(params, lr=LR, device=torch.device("cpu"), dtype=torch.float32)
    rng = np.random.default_rng(seed)
    per_epoch = len(data.x) // BATCH
    began = time.perf_counter()
    losses = []
    for step in range(steps):
        place = step % per_epoch
        if place == 0:
            order = rng.permutation(len(data.x))
        rows = order[place * BATCH : (place + 1) * BATCH]
        x, y = torch.from_numpy(data.x[rows]), torch.from_numpy(data.y[rows])
        losses.append(tier.step(x, y).item())
    return (time.perf_counter() - began) / steps


def blocks(params: Params, data: TrainingData, steps: int, seed: int) -> float:
    """Seconds a step under the Trainer."""
    module = TierModule(CustomModuleTier, params, data, lr=LR, batch_size=BATCH, seed=seed)
    with quiet_lightning():
        trainer = make_trainer(accelerator="cpu", precision="32-true", max_steps=steps, validate=False)
        began = time.perf_counter()
        trainer.fit(module)
    return (time.perf_counter() - began) / steps


def own_mb() -> float:
    """Memory of this process that is not a page of a file, 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[list[float]]:
    """Within this context a thread looks at the memory; what it saw, beyond what there was at first."""
    at_first, seen, over = own_mb(), list[float](), threading.Event()

    def look() -> None:
        while not over.wait(_LOOK):
            seen.append(own_mb() - at_first)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def measure(gigabytes: float, rounds: int) -> dict[str, Any]:
    """Reads the table and trains on it, then times both sides in turn."""
    make_table(Path("table.parquet"), gigabytes)
    flags = {"data": "table.parquet", "target": ["y"], "val_fraction": 0.0}
    params = initial_params(COLUMNS - 1, HIDDEN, 1, init="linear", bias=True, seed=0)
    params = params.map(lambda p: p.astype("f4"))
    with watched() as seen:
        began = time.perf_counter()
        prepared = load_prepared(build_spec(flags=flags), lambda _: None)
        data = TrainingData(*prepared.arrays(prepared.train, "f4", "f4"), *prepared.arrays(prepared.val))
        reading = time.perf_counter() - began
        startup.keep_freed_memory()  # as a run does
        blocks(params, data, STEPS, 0)  # brings pages into the disk's cache too, and is not timed
    bare(params, data, STEPS, 0)
    times: dict[str, list[float]] = {"bare": [], "blocks": []}
    sides = [("bare", bare), ("blocks", blocks)]
    for number in range(1, rounds + 1):
        sides.reverse()  # whoever comes second has what the first left in the caches
        for name, side in sides:
            times[name].append(side(params, data, STEPS, number))
    timings = {name: Timing.of(taken) for name, taken in times.items()}
    return {
        "table_gb": Path("table.parquet").stat().st_size / 1e9,
        "own_memory_grown_mb": max(seen),
        "rows": len(prepared.dataset.x),
        "mapped": prepared.dataset.is_mapped,
        "reading_seconds": reading,
        "seconds": times,
        "median": {name: timing.median for name, timing in timings.items()},
        "ratio": timings["blocks"].over(timings["bare"]).median,
        "budget": BUDGET,
    }


def main() -> None:
    """Measures and prints."""
    startup.claim()  # for what becomes of freed memory; no tensor here is large
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the table (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each side (default: 7)")
    parser.add_argument(
        "--no-quarter", dest="quarter", action="store_false", help="leave out the table a quarter as large"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    output = arguments.json and arguments.json.absolute()
    least = 4 * LEAST_GB if arguments.quarter else LEAST_GB
    if arguments.gigabytes < least:
        parser.error(f"--gigabytes: should be {least:g} or more: a table of fewer bytes is read into memory")
    if arguments.rounds < 1:
        parser.error("--rounds: should be at least 1")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, chdir(folder):
        if arguments.quarter:
            command = [sys.executable, __file__, "--no-quarter", "--json", "quarter.json"]
            command += ["--gigabytes", str(arguments.gigabytes / 4), "--rounds", str(arguments.rounds)]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        figures = measure(arguments.gigabytes, arguments.rounds)
        if arguments.quarter:
            figures["quarter"] = json.loads(Path("quarter.json").read_text())
    median = {name: f"{seconds * 1e6:.0f} us" for name, seconds in figures["median"].items()}
    sys.stdout.write(
        f"{figures['table_gb']:.2f} GB, {figures['rows']} rows, {'' if figures['mapped'] else 'not '}mapped; "
        f"read in {figures['reading_seconds']:.0f} s\n"
        f"a step of {BATCH} rows: bare {median['bare']}, in blocks {median['blocks']}, "
        f"ratio {figures['ratio']:.2f} (budget {BUDGET:g})\n"
        f"memory of its own grown by {figures['own_memory_grown_mb']:.0f} MB\n"
    )
    if "quarter" in figures:
        quarter = figures["quarter"]
        sys.stdout.write(f"of {quarter['table_gb']:.2f} GB by {quarter['own_memory_grown_mb']:.0f} MB\n")
    if output:
        output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
