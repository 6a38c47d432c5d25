"""The benchmarks run, and the page that is made of them says what they said; nothing is asserted of times."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from layerlab.benchmarking.report import Timing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DOCS = BENCHMARKS.parent / "docs"


@pytest.fixture(autouse=True)
def _benchmarks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark imports what lies beside it, as where it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> Any:
    """A benchmark, as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_of_reliability_are_what_was_measured() -> None:
    """The section of ``docs/reliability.md`` is made of ``reliability.json``."""
    module = script("reliability")
    found = json.loads((DOCS / "reliability.json").read_text())
    page = (DOCS / "reliability.md").read_text()
    assert f"{module.BEGIN}\n{module.section(found)}\n{module.END}" in page


def test_the_page_of_performance_is_what_was_measured() -> None:
    """``docs/performance.md`` is made of ``performance.json``, and nobody improved it since."""
    found = json.loads((DOCS / "performance.json").read_text())
    assert (DOCS / "performance.md").read_text() == script("performance_page").page(found)
    assert (DOCS / "images" / "bench.png").stat().st_size > 10_000
    assert (DOCS / "images" / "scaling.png").stat().st_size > 10_000
    assert (DOCS / "images" / "bench-cuda.png").stat().st_size > 10_000


def test_the_readme_says_what_was_measured() -> None:
    """Its figures are those of the page; a README that has others is told where the page is written."""
    module = script("performance")
    found = json.loads((DOCS / "performance.json").read_text())
    assert module.unsaid(found) == []
    found["tracked_run"]["tiers"]["nn"]["tracked"] = [1.0] * len(found["tracked_run"]["tiers"]["nn"]["bare"])
    (stale,) = module.unsaid(found)
    assert stale.endswith(" for all of them")


def test_the_page_tells_when_a_goal_is_missed() -> None:
    """A figure that is worse than its goal is on the page as it is, and marked."""
    performance = script("performance_page")
    found = json.loads((DOCS / "performance.json").read_text())
    found["memory"]["grown_mb"] = [1234.5]
    (row,) = [line for line in performance.page(found).splitlines() if "1234.5" in line]
    assert "missed" in row


def test_fused_is_held_against_the_fastest_of_the_seven() -> None:
    """In turns where that was measured; where NumPy's is the fastest, which takes none, by the rounds."""
    performance = script("performance_page")
    found = json.loads((DOCS / "performance.json").read_text())
    rows = {row["tier"]: row for row in found["bench"]["configs"][0]["rows"]}

    def claimed() -> tuple[str, Timing]:
        (claim,) = [c for c in performance.claims(found) if c[0].startswith("a tracked step, `fused`")]
        return claim[1], claim[2]

    (row,) = found["fused"]["configs"][0]["rows"]
    loop = found["fused"]["against"]
    in_turns = performance.over(row["timings"]["tracked"]["rounds"], row["against"]["tracked"]["rounds"])
    assert claimed() == (f"the fastest bare loop of the seven (`{loop}`)", in_turns)
    assert performance.IN_TURNS in performance.page(found)
    rows["numpy"]["timings"]["bare"]["median"] = 1e-9
    tracked, bare = rows["fused"]["timings"]["tracked"], rows["numpy"]["timings"]["bare"]
    by_rounds = performance.over(tracked["rounds"], bare["rounds"])
    assert claimed() == ("the fastest bare loop of the seven (`numpy`)", by_rounds)
    assert performance.IN_TURNS not in performance.page(found)


def test_further_rounds_of_two_commands_count_for_their_ratio_alone() -> None:
    """What differs least has more rounds; what is held against a third command has only those of all."""
    claims = script("performance_claims")
    found = json.loads((DOCS / "performance.json").read_text())
    commands = found["whole_command"]
    commands["pairs"] = {"run one tier": [2.0, 2.0], "run all tiers": [3.0, 4.0]}
    rounds = len(commands["seconds"]["run one tier"])
    values = {f"{what} / {to}": value for what, to, value, _ in claims.claims(found)}
    assert values["`run all tiers` / run one tier"].rounds[rounds:] == (1.5, 2.0)
    assert len(values["`run one tier` / stock script"].rounds) == rounds


def on_cuda(found: Any) -> Any:
    """What a bench on CUDA would leave; the figures are a CPU's."""
    bench = json.loads(json.dumps(found["bench"]))
    bench["machine"]["device"] = "NVIDIA T1"
    bench.update(rounds=9, seconds=0.05, precision="32-true", against="")
    config = bench["configs"][0]
    config["rows"] = [row for row in config["rows"] if row["tier"] != "numpy"]
    for row in config["rows"]:
        row["sending"] = 8e-6
        row["against"] = {}
        for timing in (*row["timings"].values(), *row["beside"].values(), row["floor"]):
            timing.update(asdict(Timing.of(timing["rounds"][:9])))
    config["refused"] = {"numpy": "does not run on gpu"}
    return bench


def in_turns(bench: Any, loop: str) -> Any:
    """What the bench of turns with a loop would leave, on the same machine."""
    held = json.loads(json.dumps(bench))
    held["against"] = loop
    config = held["configs"][0]
    config["rows"] = [row for row in config["rows"] if row["tier"] in {"custom-module", "fused"}]
    for row in config["rows"]:
        for mode, seconds in (("lightning", 3.0), ("tracked", 4.0)):
            row["timings"][mode] = asdict(Timing.of([seconds] * 9))
            row["beside"][mode] = asdict(Timing.of([5.0] * 9))
            row["against"][mode] = asdict(Timing.of([40.0] * 8 + [50.0]))
    return held


def test_what_a_bench_on_cuda_left_is_taken_over(tmp_path: Path) -> None:
    """Figures, goals, who has no row and why."""
    performance, told = script("performance"), script("performance_page")
    found = json.loads((DOCS / "performance.json").read_text())
    bench = on_cuda(found)
    file = tmp_path / "cuda.json"
    file.write_text(json.dumps(bench))
    performance.take_over(found, str(file), "0123abc")
    page = told.page(found)
    rows = [line for line in page.splitlines() if line.startswith("| on CUDA")]
    assert [line.split(" | ")[-2] for line in rows] == ["0.8", "0.15", "0.15"]
    assert all("missed" in line for line in rows)  # these are a CPU's
    assert "The same on NVIDIA T1: the median of 9 rounds and a 95 % interval." in page
    assert "No row for `numpy`: does not run on gpu." in page
    assert "| 0123abc |" in page
    bench["rounds"], bench["stopped"] = 1, "stopped by SIGTERM after 1 of 9 rounds"
    for row in bench["configs"][0]["rows"]:
        for timing in (*row["timings"].values(), *row["beside"].values(), row["floor"]):
            timing.update(asdict(Timing.of(timing["rounds"][:1])))
    file.write_text(json.dumps(bench))
    performance.take_over(found, str(file), "0123abc")
    _, section = told.page(found).split("## On CUDA")
    assert "The same on NVIDIA T1: one round (stopped by SIGTERM after 1 of 9 rounds)." in section
    (row,) = [line for line in section.splitlines() if line.startswith("| `fused`")]
    assert "[" not in row


def test_turns_on_cuda_are_claimed_until_there_is_another_bench(tmp_path: Path) -> None:
    """The interval is theirs, of a loop that the bench of all tiers found to be the fastest."""
    performance, told = script("performance"), script("performance_page")
    found = json.loads((DOCS / "performance.json").read_text())
    bench = on_cuda(found)
    loop = performance.fastest_bare(performance.timings_of(bench))
    both = tmp_path / "cuda.json", tmp_path / "against.json"
    for file, figures in zip(both, (bench, in_turns(bench, loop)), strict=True):
        file.write_text(json.dumps(figures))
        performance.take_over(found, str(file), "0123abc")

    def claimed() -> list[float]:
        return [claim[2].median for claim in told.claims(found) if claim[0].startswith("on CUDA")]

    assert claimed() == pytest.approx([4 / 5, 3 / 40, 4 / 40])
    page = told.page(found)
    assert "| `fused` | tracked | 4000000 [4000000, 4000000] | 0.800 [0.800, 0.800] | 0.100 [" in page
    assert f"--against {loop} --accelerator gpu" in page
    assert "| cuda_against |" in page
    assert told.ALONE not in page
    performance.take_over(found, str(both[0]), "0123abc")
    timings = performance.timings_of(bench)
    (row,) = [row for row in bench["configs"][0]["rows"] if row["tier"] == loop]
    took = [timings[loop]["bare"], row["beside"]["lightning"], row["beside"]["tracked"]]
    loops = sorted(took, key=lambda timing: timing["median"])[0]["rounds"]  # where it was the fastest
    by_rounds = [told.over(timings["fused"][m]["rounds"], loops).median for m in ("lightning", "tracked")]
    assert claimed()[1:] == pytest.approx(by_rounds)
    assert "cuda_against" not in told.page(found)
    assert told.ALONE in told.page(found)


def test_what_is_no_such_bench_is_not_taken_over(tmp_path: Path) -> None:
    """Of a CPU, of other sizes or options, of other tiers, of another machine or loop: nothing changes."""
    performance, told = script("performance"), script("performance_page")
    found = json.loads((DOCS / "performance.json").read_text())
    bench = found["cuda"] = on_cuda(found)
    loop = performance.fastest_bare(performance.timings_of(bench))
    held = in_turns(bench, loop)
    before = json.dumps(found)
    file = tmp_path / "cuda.json"

    def refused(of: Any, **changes: Any) -> str:
        file.write_text(json.dumps({**of, **changes}))
        with pytest.raises(SystemExit) as error:
            performance.take_over(found, str(file), "0123abc")
        return str(error.value).removeprefix(f"{file}: ")

    (config,) = bench["configs"]
    without = [row for row in config["rows"] if row["tier"] != "fused"]
    idle = [{**row, "against": {}} for row in held["configs"][0]["rows"]]
    machine = bench["machine"]
    assert refused({}).startswith("no output of `layerlab bench --json` on one problem")
    assert refused(bench, configs=[config, config]).startswith("no output of")
    older = {key: value for key, value in bench.items() if key != "seconds"}
    assert refused(older).startswith("no output of")
    assert refused(bench, machine={**machine, "device": "cpu"}) == "measured on a CPU"
    assert refused(bench, configs=[{**config, "hidden": 7}]) == "of another problem than the page's"
    stopped = {"rounds": 3, "stopped": "stopped by SIGTERM after 3 of 5 rounds"}
    for other in ({"rounds": 8}, stopped, {"seconds": 0.2}, {"precision": "64-true"}):
        assert refused(bench, **other) == f"asked for otherwise than by `{told.CUDA_BENCH}`"
    assert refused(bench, configs=[{**config, "rows": without}]).startswith("should have rows of autograd, ")
    assert refused(bench, against=loop) == "should have rows of custom-module, fused"
    assert refused(held, configs=[{**config, "rows": idle}]) == "not every training took turns"
    unsent = [{key: value for key, value in row.items() if key != "sending"} for row in config["rows"]]
    assert refused(bench, configs=[{**config, "rows": unsent}]).endswith("did not say what sending takes")
    assert refused(held, machine={**machine, "device": "NVIDIA T2", "torch": "9"}) == (
        "of another device and torch than the bench of all tiers"
    )
    assert refused(held, against="optim").startswith(f"`{loop}` is the fastest: layerlab bench custom-module")
    assert json.dumps(found) == before
    drawn = {"picture": "benches/bench-1.png", "picture_fault": ""}
    with pytest.raises(SystemExit, match=r"benches/bench-1\.png: is not there, and should be$"):
        performance.picture_of(drawn, file)
    with pytest.raises(SystemExit, match=r"and should be; no space left$"):
        performance.picture_of({**drawn, "picture_fault": "no space left"}, file)
    (tmp_path / "benches").mkdir()
    (tmp_path / "benches" / "bench-1.png").touch()
    assert performance.picture_of(drawn, file) == tmp_path / "benches" / "bench-1.png"
    del found["cuda"]
    assert refused(held).startswith("nothing says yet which loop is the fastest: layerlab bench all fused")


def test_what_is_not_committed_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody could measure it again."""
    performance = script("performance")
    monkeypatch.setattr(performance, "commit_of_tree", lambda: "0123abc-dirty")
    monkeypatch.setattr(sys, "argv", ["performance.py", "memory"])
    with pytest.raises(SystemExit) as error:
        performance.main()
    assert error.value.code == 2
    assert "what would be measured is not committed" in capsys.readouterr().err


def test_whole_runs_are_summed_round_by_round() -> None:
    """Each tier by itself, and all of them: 2 + 6 over 1 + 2, and so on."""
    sides = {
        "nn": {"tracked": [2e-6] * 6, "bare": [1e-6] * 6},
        "optim": {"tracked": [6e-6] * 6, "bare": [2e-6] * 6},
    }
    rows = script("performance_page")._runs(sides).splitlines()[2:]
    assert [line.split(" | ")[3].split()[0] for line in rows] == ["2.00", "3.00", "2.67"]
    assert [line.split(" | ")[1].split()[0] for line in rows] == ["2", "6", "8"]


def test_few_rounds_reach_nothing() -> None:
    """Of fewer than six the range is no interval."""
    verdict = script("performance_page").verdict
    for rounds, found in (([1], "within"), ([1, 1.1], "within"), ([1, 3], "undecided"), ([3], "missed")):
        assert verdict(Timing.of(rounds), 2.0) == f"{found}; interval not measured"
    assert verdict(Timing.of([1.0] * 6), 2.0) == "reached"
    assert verdict(Timing.of([1.0, 1.1] * 3 + [3.0] * 3), 2.0) == "undecided"
    assert verdict(Timing.of([3.0] * 6), 2.0) == "missed"


def test_the_exponents_are_the_slopes_from_size_to_size() -> None:
    """One for each tenfold and round: overhead first, then linear, then quadratic."""
    points = {10: [5.0, 1.0], 1000: [50.0, 1.0], 100: [5.0, 1.0], 10_000: [5000.0, 10.0]}
    found = script("scaling").exponents(points)
    assert [pytest.approx(rounds) for rounds in found] == [[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("memory", ["--steps", "2000", "--rounds", "2"], "grown_mb"),
        ("tracked_run", ["--steps", "200", "--rounds", "1", "--tiers", "tensors,optim"], "ratios"),
        ("large_table", ["--gigabytes", "0.3", "--rounds", "1", "--no-quarter"], "ratio"),
    ],
)
def test_a_benchmark_runs(empty_folder: Path, name: str, arguments: list[str], key: str) -> None:
    """It ends well, leaves its figures and nothing else."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *arguments, "--json", "figures.json"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figure = json.loads(Path("figures.json").read_text())[key]
    assert all(math.isfinite(value) for value in (figure if isinstance(figure, list) else [figure]))
    assert [path.name for path in empty_folder.iterdir()] == ["figures.json"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_of_whole_commands_runs(empty_folder: Path) -> None:
    """Every command is measured; what a run imports was found, and nothing of it is ours."""
    done = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "whole_command.py"),
            *("--rounds", "1", "--pairs", "2", "--json", "figures.json"),
        ],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(Path("figures.json").read_text())
    assert list(seen["seconds"]) == [
        "run one tier",
        "stock script",
        "imports only",
        "imports, gone",
        "run all tiers",
    ]
    assert all(len(taken) == 1 and taken[0] > 0 for taken in seen["seconds"].values())
    assert {"torch", "pytorch_lightning", "mlflow", "onnx", "onnxruntime"} <= set(seen["packages"])
    assert not {"layerlab", "pytest", "json"} & set(seen["packages"])
    one, stock = (seen["seconds"][name][0] for name in ("run one tier", "stock script"))
    assert seen["ratios"][0]["ratio"] == one / stock
    assert {name: len(taken) for name, taken in seen["pairs"].items()} == {
        "run one tier": 2,
        "run all tiers": 2,
    }
    both = (seen["seconds"][name] + seen["pairs"][name] for name in ("run all tiers", "run one tier"))
    assert seen["ratios"][2]["ratio"] == statistics.median(a / b for a, b in zip(*both, strict=True))
    assert [path.name for path in empty_folder.iterdir()] == ["figures.json"]
