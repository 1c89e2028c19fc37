"""The comparison on the console: progress while it runs, and the table at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infobatch.lab.report.summary import COLUMNS, Comparison
from infobatch.lab.run.compare import Listener
from infobatch.lab.run.results import RunResult
from infobatch.lab.run.train import EpochReport
from infobatch.lab.tasks.base.task import Metric


@contextmanager
def listener(console: Console, *, runs: int, metric: Metric) -> Iterator[Listener]:
    """A line for each finished run; on a terminal also two bars, of runs and of epochs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield ConsoleListener(progress, runs, metric)


class ConsoleListener:
    """Prints a line when a run has ended or goes on from a checkpoint, and moves the bars."""

    def __init__(self, progress: Progress, runs: int, metric: Metric) -> None:
        self._progress = progress
        self._metric = metric
        self._count, self._ended = runs, 0
        self._runs = progress.add_task("runs", total=runs, note="")
        self._epochs = progress.add_task("", total=1, note="", visible=False)

    def run_started(self, arm: str, seed: int, *, epochs: int, done: int) -> None:
        name = f"{arm} seed {seed}"
        if done:
            self._progress.console.print(f"{name}: goes on after epoch {done} of {epochs}")
        self._progress.reset(
            self._epochs, description=name, total=epochs, completed=done, visible=True, note=""
        )

    def epoch_ended(self, report: EpochReport) -> None:
        note = f"kept {report.kept / report.total:.0%}"
        if report.metric is not None:
            note += f", {self._metric.with_unit(report.metric)}"
        self._progress.update(self._epochs, completed=report.epoch + 1, note=note)

    def run_ended(self, result: RunResult, *, reused: bool) -> None:
        self._ended += 1
        self._progress.advance(self._runs)
        self._progress.console.print(
            f"[{self._ended}/{self._count}] {result.label} seed {result.seed}: "
            f"{self._metric.with_unit(result.metric)}, {result.cost.passes:,.0f} sample passes, "
            f"{result.wall_seconds:.1f} s{' (from before)' if reused else ''}",
            markup=False,
        )


def show(console: Console, comparison: Comparison) -> None:
    """Print one row per arm, with the numbers of the report.

    Where the console is too narrow for all columns there are several tables: a number cut short
    would be worse.
    """
    settings, metric = comparison.settings, comparison.metric
    whole = _table(comparison, tuple(COLUMNS))
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
    if comparison.outlook:
        console.print(comparison.outlook, highlight=False)


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
        view.add_row(*(COLUMNS[heading](row) for heading in columns))
    return view
