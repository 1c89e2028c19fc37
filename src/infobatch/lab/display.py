"""The comparison on the console: progress while it runs, and the table at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from infobatch.lab.compare import Listener
from infobatch.lab.results import RunResult
from infobatch.lab.summary import COLUMNS, Comparison, cells
from infobatch.lab.task import Metric
from infobatch.lab.train import EpochReport


@contextmanager
def listener(console: Console, *, runs: int, metric: Metric) -> Iterator[Listener]:
    """A live display on a terminal, and a line for each finished run elsewhere."""
    if not console.is_terminal:
        yield LineListener(console, runs, metric)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield LiveListener(progress, runs, metric)


class LineListener:
    """Prints a line when a run has ended."""

    def __init__(self, console: Console, runs: int, metric: Metric) -> None:
        self._console = console
        self._metric = metric
        self._runs = runs
        self._ended = 0

    def run_started(self, arm: str, seed: int, *, epochs: int, done: int) -> None:
        """Worth a line only if the run goes on from a checkpoint."""
        if done:
            self._console.print(f"{arm} seed {seed}: goes on after epoch {done} of {epochs}")

    def epoch_ended(self, report: EpochReport) -> None:
        """Nothing: a log of epochs would bury the results."""

    def run_ended(self, result: RunResult, *, reused: bool) -> None:
        """One line with the outcome."""
        self._ended += 1
        self._console.print(
            f"[{self._ended}/{self._runs}] {_line(result, self._metric, reused)}", markup=False
        )


class LiveListener:
    """Two bars, runs and epochs of the current run, below the lines of the finished ones."""

    def __init__(self, progress: Progress, runs: int, metric: Metric) -> None:
        self._progress = progress
        self._metric = metric
        self._runs = progress.add_task("runs", total=runs, note="")
        self._epochs: TaskID = progress.add_task("", total=1, note="", visible=False)

    def run_started(self, arm: str, seed: int, *, epochs: int, done: int) -> None:
        """Point the lower bar at the new run."""
        self._progress.reset(
            self._epochs,
            description=f"{arm} seed {seed}",
            total=epochs,
            completed=done,
            visible=True,
            note="",
        )

    def epoch_ended(self, report: EpochReport) -> None:
        """Advance the lower bar, with what was kept and the metric."""
        note = f"kept {report.kept / report.total:.0%}"
        if report.metric is not None:
            note += f", {self._metric.with_unit(report.metric)}"
        self._progress.update(self._epochs, completed=report.epoch + 1, note=note)

    def run_ended(self, result: RunResult, *, reused: bool) -> None:
        """Advance the upper bar and leave a line above it."""
        self._progress.advance(self._runs)
        self._progress.console.print(_line(result, self._metric, reused), markup=False)


def _line(result: RunResult, metric: Metric, reused: bool) -> str:
    text = (
        f"{result.label} seed {result.seed}: {metric.with_unit(result.metric)}, "
        f"{result.cost.passes:,.0f} sample passes, {result.wall_seconds:.1f} s"
    )
    return f"{text} (from before)" if reused else text


def show(console: Console, comparison: Comparison) -> None:
    """Print one row per arm, with the numbers of the report.

    Where the console is too narrow for all columns, outcome and cost become two tables: a number
    cut short would be worse.
    """
    settings, metric = comparison.settings, comparison.metric
    whole = _table(comparison, COLUMNS)
    needed = Measurement.get(console, console.options.update(max_width=1000), whole).maximum
    parts = [whole] if needed <= console.width else [_table(comparison, part) for part in _PARTS]
    console.print(
        f"\n{settings.task}, {settings.model}, {settings.epochs} epochs: final {metric.name} "
        f"({metric.unit}), mean over seeds",
        style="bold",
        highlight=False,
    )
    for part in parts:
        console.print(part)
    console.print(
        "difference to full: positive if better, paired by seed, 95% confidence interval; margin "
        f"{settings.margin:g} {metric.unit_of_gain}; wall time with selection, without evaluation",
        style="dim",
        highlight=False,
    )


_PARTS = (
    ("arm", "metric", "difference", "verdict"),
    ("arm", "metric", "to fewer epochs"),
    ("arm", "trained", "forwarded", "saved", "steps", "wall s", "wall/full"),
)


def _table(comparison: Comparison, columns: Sequence[str]) -> Table:
    view = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in columns:
        words = heading in ("arm", "verdict")
        view.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for row in comparison.rows:
        by_heading = dict(zip(COLUMNS, cells(row), strict=True))
        view.add_row(*(by_heading[heading] for heading in columns))
    return view
