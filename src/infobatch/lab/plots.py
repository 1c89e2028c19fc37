"""The report's figures, drawn with matplotlib's objects alone: no global state, no display."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from infobatch.lab.arms import COST, REFERENCE
from infobatch.lab.results import Histogram, RunResult
from infobatch.lab.summary import Comparison

# Okabe and Ito's colours, which people with colour-vision deficiencies can tell apart.
_COLOURS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX"


def metric_against_cost(comparison: Comparison) -> bytes:
    """The final metric of every run over its sample passes, with the means and the margin."""
    figure, axis = _figure(7.0, 4.2)
    for row in comparison.rows:
        colour, marker = _style(comparison, row.arm)
        runs = comparison.runs_of(row.arm)
        axis.scatter(
            [run.cost.samples_forwarded for run in runs],
            [run.metric for run in runs],
            color=colour,
            marker=marker,
            alpha=0.3,
            s=18,
        )
        axis.errorbar(
            row.forwarded,
            row.metric,
            yerr=row.metric_std,
            color=colour,
            marker=marker,
            markersize=8,
            capsize=4,
            linestyle="none",
            label=row.arm,
        )
        if row.arm == REFERENCE:
            axis.axhline(row.metric, color=colour, linewidth=0.8)
            axis.axhspan(
                row.metric - comparison.settings.margin,
                row.metric,
                color=colour,
                alpha=0.07,
                label=f"margin, {comparison.settings.margin:g} points",
            )
    axis.set_xlim(left=0)
    axis.set_xlabel("samples passed through the model in one run")
    axis.set_ylabel("final test metric, %")
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.legend(fontsize=8, loc="lower left")
    return _png(figure)


def learning_curves(comparison: Comparison) -> bytes:
    """The test metric over samples passed, mean over seeds; the whole run and its end."""
    figure = _blank(9.0, 4.0)
    whole, end = figure.subplots(1, 2)
    longest = 0.0
    finals: list[float] = []
    for row in comparison.rows:
        runs = comparison.runs_of(row.arm)
        samples = _mean_over_run(runs, lambda run: [float(n) for n in run.curves.samples])
        metric = _mean_over_run(runs, lambda run: run.curves.metric)
        colour, _ = _style(comparison, row.arm)
        for axis in (whole, end):
            axis.plot(samples, metric, color=colour, label=row.arm, linewidth=1.4)
        longest = max(longest, samples[-1])
        finals += [float(value) for value in metric[3 * len(metric) // 4 :]]
    low, high = min(finals), max(finals)
    end.set_xlim(0.4 * longest, 1.02 * longest)
    end.set_ylim(low - 0.05 * (high - low) - 0.1, high + 0.05 * (high - low) + 0.1)
    whole.set_title("whole run", fontsize=10)
    end.set_title("towards the end", fontsize=10)
    whole.set_ylabel("test metric, %")
    for axis in (whole, end):
        axis.set_xlabel("samples passed")
        axis.xaxis.set_major_formatter(EngFormatter())
        _decorate(axis)
    whole.legend(fontsize=8, loc="lower right")
    return _png(figure)


def kept_fraction(comparison: Comparison) -> bytes:
    """The part of the training set that each epoch kept, mean over seeds."""
    figure, axis = _figure(7.0, 3.4)
    for row in comparison.rows:
        runs = comparison.runs_of(row.arm)
        epochs = max(run.epochs for run in runs)
        kept = [
            float(
                np.mean([run.curves.kept[e] / run.dataset_size for run in runs if e < run.epochs])
            )
            for e in range(epochs)
        ]
        colour, marker = _style(comparison, row.arm)
        axis.plot(
            range(1, epochs + 1),
            kept,
            color=colour,
            marker=marker,
            markersize=3.5,
            linewidth=1.2,
            label=row.arm,
        )
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("epoch")
    axis.set_ylabel("samples kept")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.legend(fontsize=8, loc="lower right")
    return _png(figure)


def loss_distribution(histograms: Sequence[Histogram]) -> bytes:
    """The scores before a few epochs, with the threshold below which samples may be pruned."""
    figure = _blank(9.0, 2.9)
    axes = figure.subplots(1, len(histograms), sharey=True, squeeze=False)[0]
    for axis, histogram in zip(axes, histograms, strict=True):
        edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
        below = edges[:-1] < histogram.threshold
        colours = np.where(below, _COLOURS[6], _COLOURS[5])
        axis.bar(
            edges[:-1], histogram.counts, width=np.diff(edges), align="edge", color=list(colours)
        )
        axis.axvline(histogram.threshold, color=_COLOURS[2], linewidth=1.5)
        axis.set_yscale("log")
        axis.set_title(f"before epoch {histogram.epoch + 1}", fontsize=9)
        axis.set_xlabel(f"loss (threshold {histogram.threshold:.3g})", fontsize=8)
        axis.tick_params(labelsize=8)
        _decorate(axis)
    axes[0].set_ylabel("samples, logarithmic", fontsize=8)
    return _png(figure)


def shown_histograms(comparison: Comparison) -> list[Histogram]:
    """Those of the first seed's InfoBatch run; empty if it pruned nothing."""
    runs = sorted(comparison.runs_of(COST), key=lambda run: run.seed)
    return runs[0].observations.histograms if runs else []


def _mean_over_run(
    runs: Sequence[RunResult], curve: Callable[[RunResult], Sequence[float | None]]
) -> np.ndarray:
    """A curve averaged over runs at equal parts of the run, whatever its number of epochs."""
    grid = np.linspace(0, 1, 200)
    values = []
    for run in runs:
        points = [
            ((epoch + 1) / run.epochs, value)
            for epoch, value in enumerate(curve(run))
            if value is not None
        ]
        at, known = zip(*points, strict=True)
        values.append(np.interp(np.maximum(grid, max(at[0], 1 / run.epochs)), at, known))
    return np.asarray(np.mean(values, axis=0))


def _style(comparison: Comparison, arm: str) -> tuple[str, str]:
    place = [row.arm for row in comparison.rows].index(arm)
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]


def _blank(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _blank(width, height)
    axis = figure.subplots()
    _decorate(axis)
    return figure, axis


def _decorate(axis: Axes) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
