"""What the terminal shows: progress on stderr while it happens, tables on stdout when it is done."""

from __future__ import annotations

import sys
from collections import Counter
from typing import IO, TYPE_CHECKING, Any, cast

from layerlab.errors import one_line
from layerlab.report import Observer
from layerlab.streams import Told, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerlab.benchmarking.report import BenchReport, Config, Row
    from layerlab.comparison.report import CompareReport, RunsReport
    from layerlab.conformance.scorecard import CheckReport
    from layerlab.modelfile import VerifyReport
    from layerlab.report import Report, RunReport
    from layerlab.syncing import SyncReport


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A plain table, as wide as it needs to be; the columns in ``right`` are aligned to the right."""
    cells = [list(columns), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in cells)


class Progress(Observer):
    """Shows runs while they run: a bar on a terminal, one line a tier elsewhere.

    Args:
        silent: Show nothing at all.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._live = sys.stderr.isatty() and not silent
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live = False
        if self._bar is not None:
            self._bar.stop()

    def _shown(self) -> Any:
        """The bar, from the first thing on that takes a moment: bad input is told before. None: no bar."""
        if self._live and self._bar is None:
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[loss]}"),
                progress.TimeElapsedColumn(),
                # what cannot be told fails no run, in rich's own thread too
                console=Console(file=cast("IO[str]", Told(sys.stderr))),
                transient=True,
                # A frame takes more than a millisecond of the interpreter that trains, or of a processor on
                # which a bench measures: ten a second, rich's own choice, are two steps of a hundred.
                refresh_per_second=2,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, loss="")
        return self._bar

    def stage(self, text: str) -> None:
        """Something that takes a moment begins."""
        if (bar := self._shown()) is not None:
            bar.update(self._task, description=text)

    def started(self, tier: str, steps: int) -> None:
        """A tier begins to train."""
        if (bar := self._shown()) is not None:
            bar.reset(self._task, total=steps, description=tier, loss="")
        elif not self._silent:
            say(f"{tier}: {steps} steps")

    def resumed(self, tier: str, step: int) -> None:
        """A tier goes on."""
        if not self._silent:
            where = (
                f"goes on after step {step}" if step else "has no checkpoint: begins again, records the rest"
            )
            say(f"{tier}: {where}")

    def advanced(self, step: int, loss: float) -> None:
        """So many steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"loss {loss:.4g}")

    def finished(self, run: RunReport) -> None:
        """A run ended: a failure is told at once, with its reason."""
        if run.error is not None and not self._silent:
            say(f"{run.tier}: {run.status}: {one_line(run.error)}")
            if run.hint:
                say(f"hint: {one_line(run.hint)}")

    def measuring(self, what: str, rounds: int) -> None:
        """A bench begins its rounds."""
        if (bar := self._shown()) is not None:
            bar.reset(self._task, total=rounds, description=what, loss="")
        elif not self._silent:
            say(f"{what}: {rounds} rounds")

    def measured(self, rounds: int) -> None:
        """So many rounds are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=rounds)


def report_text(report: Report) -> str:
    """The table of runs, and where to look next."""
    from layerlab import journal

    keys = list(dict.fromkeys(key for run in report.runs for key in run.val))
    columns = [
        "tier",
        "status",
        "device",
        "steps",
        "first loss",
        "final loss",
        *keys,
        "train s",
        "total s",
        "max |onnx - tier|",
    ]
    lines = [table(columns, [_run_row(run, keys) for run in report.runs], right=columns[3:]), ""]
    lines += [f"model:   {run.onnx['path']}" for run in report.runs if run.onnx]
    lines += [f"unsent:  {unsent_text(run)}" for run in report.runs if run.unsent and not run.offline]
    lines += [
        f"offline: {run.tier}: recorded in {journal.path_of(run.run_id)}, to send: layerlab sync"
        for run in report.runs
        if run.offline and run.run_id
    ]
    lines += [
        f"go on:   layerlab resume {run.run_id}"
        for run in report.runs
        if run.status == "KILLED" and run.run_id  # one that was stopped before it began has none
    ]
    if not report.runs or not all(run.offline for run in report.runs):  # else there may be no store yet
        lines.append(f"compare: {_ui_command(report.tracking_uri)}")
    return "\n".join(lines)


def unsent_text(run: RunReport) -> str:
    """What of a run's record the tracking store did not take."""
    assert run.unsent is not None
    points, path, reason = (run.unsent[key] for key in ("points", "path", "reason"))
    what = (
        f"{points} points, kept in {path}" if path else f"{points} points" if points else "part of the record"
    )
    later = "; layerlab sync sends them" if path else ""
    return f"{run.tier}: the tracking store did not take {what}: {reason}{later}"


def sync_text(report: SyncReport) -> str:
    """What became of the journals: a line each."""
    rows = [
        [run.run_id, run.tracking_uri, str(run.points - run.unsent), str(run.unsent), run.reason or ""]
        for run in report.runs
    ]
    columns = ["run", "store", "sent", "left", "why"]
    lines = [table(columns, rows, right=["sent", "left"])] if rows else ["nothing to send"]
    lines += [
        f"run {run.run_id} was recorded offline; the store has it as {run.stored_as}"
        for run in report.runs
        if run.stored_as not in ("", run.run_id)
    ]
    lines += [f"run {run_id} is still running, and sends by itself" for run_id in report.running]
    return "\n".join(lines)


def _run_row(run: RunReport, keys: Sequence[str]) -> list[str]:
    def number(value: float | None, form: str = ".4g") -> str:
        return "" if value is None else format(value, form)

    return [
        run.tier,
        run.status,
        run.device,
        str(run.steps),
        number(run.first_loss),
        number(run.final_loss),
        *(number(run.val.get(key)) for key in keys),
        number(run.seconds.get("train"), ".2f"),
        number(run.seconds.get("total"), ".2f"),
        number(run.onnx["max_abs_diff"], ".2g") if run.onnx else "",
    ]


def _ui_command(tracking_uri: str) -> str:
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    if tracking_uri == "sqlite:///mlflow.db":
        return "mlflow ui"
    return f"mlflow ui --backend-store-uri {tracking_uri}"


def scorecard_text(report: CheckReport) -> str:
    """The scorecard of a tier: a line a check, and the count."""
    by = f" ({report.distribution} {report.version})" if report.distribution else ""
    head = f"{report.tier}{by} on {report.device}, suite {report.suite}, seed {report.seed}"
    rows = [
        [result.check, result.result, _figure(result.figure), _figure(result.bound), result.detail]
        for result in report.results
    ]
    counts = Counter(result.result for result in report.results)
    score = f"{counts['pass']} passed, {counts['fail']} failed, {counts['n/a']} not applicable"
    columns = ["check", "result", "figure", "bound", "detail"]
    return f"{head}\n{table(columns, rows, right=['figure', 'bound'])}\n{score}\n"


def compare_text(report: CompareReport) -> str:
    """What a comparison of tiers found: a line a follower, the curves' ends, and where to look."""
    rows = []
    for pair in report.pairs:
        verdict = f"agree for {pair.steps} steps" if pair.part is None else "part"
        worst = f"{pair.worst:.2g} of the bound"
        seen = f"above {100 * pair.resolution:.2g} %"
        rows.append([pair.leader, pair.follower, verdict, worst, seen, ", ".join(pair.compared), pair.said])
    lines = [
        table(
            ["leader", "follower", "verdict", "largest difference", "errors seen", "compared", "where"], rows
        )
    ]
    lines += [f"{pair.leader} and {pair.follower}: {note}" for pair in report.pairs for note in pair.notes]
    losses = [[name, f"{loss:.6g}"] for name, loss in report.final_losses.items()]
    lines += ["", table(["trained on its own", f"loss at step {report.steps - 1}"], losses)]
    return "\n".join([*lines, "", *_kept(report)])


def runs_text(report: RunsReport) -> str:
    """What a comparison of two finished runs found."""
    names = [run["run_id"][:8] for run in report.runs]
    about = ["name", "tier", "status", "losses"]
    lines = [table(["", *names], [[key, *(str(run[key]) for run in report.runs)] for key in about]), ""]
    if report.params:
        rows = [[key, *("-" if v is None else v for v in values)] for key, values in report.params.items()]
        lines += [table(["parameter that differs", *names], rows), ""]
    else:
        lines += ["no parameter differs", ""]
    rows = [[key, *(_figure(value) or "-" for value in values)] for key, values in report.figures.items()]
    lines += [table(["final figure", *names], rows, right=names), ""]
    losses = report.losses
    said = f"losses: {losses['equal']} of the {losses['common']} steps that both have are equal"
    if "first_difference" in losses:
        first, worst = losses["first_difference"], losses["largest_relative_difference"]
        said += (
            f"; they part at step {first['step']}: {first['values'][0]:.9g} and {first['values'][1]:.9g}; "
            f"the largest relative difference is {worst['value']:.2g}, at step {worst['step']}"
        )
    return "\n".join([*lines, said, "", *_kept(report)])


def bench_text(report: BenchReport) -> str:
    """What a bench measured: a table a problem, who was refused, and where to look."""
    from layerlab.benchmarking.report import interval_label  # numpy would come with it

    parts = []
    for config in report.configs:
        between = interval_label(report.rounds)
        head = f"{config.label}, {report.rounds} rounds: microseconds a step, median and {between}"
        modes = list(config.rows[0].timings) if config.rows else []
        against = list(dict.fromkeys(mode for row in config.rows for mode in row.against))
        over = [f"{mode} / {report.against}" for mode in against]
        columns = ["tier", *modes, *over, "steps/s", "GFLOP/s", "floor", "once s", "peak MB"]
        rows = [_bench_row(row, modes, against) for row in config.rows]
        parts.append("\n".join([head, table(columns, rows, right=columns[1:])]))
        parts += [f"refused: {tier}: {one_line(reason)}" for tier, reason in config.refused.items()]
        parts += _peers_text(config)
    if any(config.refused or config.peers_refused for config in report.configs):
        parts.append(f"the same rows and first weights again: --seed {report.seed}")
    if report.stopped:
        parts.append(report.stopped)
    if report.peers_missing:
        names, install = ", ".join(report.peers_missing), next(iter(report.peers_missing.values()))
        parts.append(f"peers not installed: {names} ({install})")
    if any(config.rows for config in report.configs):
        legend = ["floor: the five matrix products alone, as a share of a bare step;"]
        if any(row.beside for config in report.configs for row in config.rows):
            legend += ["(x): of a bare loop that took turns with the training;"]
        if report.against:
            said = "of its bare loop, which took turns too (NumPy's threads and torch's take none)"
            legend += [f"/ {report.against}: {said};"]
        legend += [
            "once: what the first two steps took beyond two later ones; peak: memory that the bare loop took"
        ]
        parts.append("\n".join(legend))
    if report.picture_fault:
        parts.append(f"no picture: {one_line(report.picture_fault)}")
    return "\n\n".join([*parts, "\n".join(_kept(report))])


def _bench_row(row: Row, modes: Sequence[str], against: Sequence[str]) -> list[str]:
    bare = row.timings["bare"].median
    cells = []
    for mode in modes:
        timing = row.timings[mode]
        low, median, high = (f"{1e6 * t:.4g}" for t in (timing.low, timing.median, timing.high))
        tax = ""
        if mode in row.beside:
            over = row.tax(mode)
            tax = f" (x {over.median:.2f} [{over.low:.2f}, {over.high:.2f}])"
        cells.append(f"{median} [{low}, {high}]{tax}")
    for mode in against:
        if mode not in row.against:
            cells.append("-")
            continue
        over, other = row.tax_against(mode), 1e6 * row.against[mode].median
        cells.append(f"{over.median:.2f} [{over.low:.2f}, {over.high:.2f}] of {other:.4g}")
    return [
        row.tier,
        *cells,
        f"{1 / bare:.4g}",
        f"{row.gflops:.3g}",
        f"{100 * row.floor_share:.0f} %",
        f"{row.once:.3g}",
        f"{row.peak_mb:.0f}",
    ]


def _peers_text(config: Config) -> list[str]:
    columns = ["peer", "made with", "measured", "microseconds a step", "custom-module's"]
    rows = []
    for row in config.peers:
        low, median, high = (f"{1e6 * t:.4g}" for t in (row.timing.low, row.timing.median, row.timing.high))
        ends = row.ratio_ends or (0, 0)
        ratio = "" if row.ratio is None else f"x {row.ratio:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"
        rows.append([row.peer, row.distribution, row.mode, f"{median} [{low}, {high}]", ratio])
    head = f"{config.label}, peers: the same job as others offer it, in the same rounds"
    parts = ["\n".join([head, table(columns, rows, right=columns[3:])])] if rows else []
    return parts + [f"refused: peer {name}: {one_line(why)}" for name, why in config.peers_refused.items()]


def _kept(report: CompareReport | RunsReport | BenchReport) -> list[str]:
    lines = [f"picture: {report.picture}"] if report.picture else []
    if report.unsent is not None:
        lines.append(f"unsent:  the tracking store did not take all of it: {report.unsent['reason']}")
    return [
        *lines,
        f"run:     {report.run_id} in experiment '{report.experiment}'",
        f"compare: {_ui_command(report.tracking_uri)}",
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def verify_text(report: VerifyReport) -> str:
    """The checks of a model file, and what it says of itself."""
    rows = [["ok" if check.ok else "FAIL", check.name, check.detail] for check in report.checks]
    text = table(["", "check", "seen"], rows)
    if report.metadata:
        about = table(["metadata", ""], [[key, _short(value)] for key, value in report.metadata.items()])
        text = f"{text}\n\n{about}"
    return text


def _short(value: Any) -> str:
    if isinstance(value, list):
        more = f", … ({len(value)} in all)" if len(value) > 12 else ""
        return ", ".join(_cut(name) for name in value[:12]) + more
    return _cut(str(value))


def _cut(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 80 else f"{line[:79]}…"
