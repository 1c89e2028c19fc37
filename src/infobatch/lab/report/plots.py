"""The report's figures, drawn with matplotlib's objects alone: no global state, no display."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from infobatch.lab.arms import COST, FEWER_EPOCHS, REFERENCE
from infobatch.lab.report.summary import Comparison, Row
from infobatch.lab.run.results import Histogram, RunResult
from infobatch.lab.tasks.base.task import Metric

# Okabe and Ito's colours, which people with colour-vision deficiencies can tell apart.
_COLOURS = (
    *("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#8C564B", "#7F7FBF"),
)
_MARKERS = "osD^vPX<>"
_OTHERS = "#999999"
_MOST = 9
"""Arms that a figure names; more cannot be told apart."""


def metric_against_cost(comparison: Comparison) -> bytes:
    """The final metric over cost: a line per arm where it was run at several, with the margin."""
    figure, (axis,) = _figure(7.4, 4.6)
    named, judged_by = _named(comparison), comparison.metric
    for arm in comparison.arms:
        rows = sorted((row for row in comparison.rows if row.arm == arm), key=lambda row: row.cost)
        colour, marker = _style(named, arm)
        for row in rows:
            runs = comparison.runs_of(arm, row.cost_target)
            axis.scatter(
                [run.cost_fraction for run in runs],
                [run.metric for run in runs],
                color=colour,
                marker=marker,
                alpha=0.25,
                s=14,
            )
        ends = [row for row in comparison.rows if row.arm == REFERENCE]
        line = [*rows, *(ends if arm == FEWER_EPOCHS else [])]
        axis.errorbar(
            [row.cost for row in line],
            [row.metric for row in line],
            yerr=[row.metric_std or 0.0 for row in line] if arm in named else None,
            color=colour,
            marker=marker,
            markersize=7 if arm in named else 3,
            capsize=3,
            linestyle="-" if len(line) > 1 else "none",
            linewidth=2.4 if arm == FEWER_EPOCHS else 1.0,
            alpha=1.0 if arm in named else 0.5,
            label=arm if arm in named else None,
        )
        if arm == REFERENCE:
            axis.axhline(rows[0].metric, color=colour, linewidth=0.8)
            axis.axhspan(
                rows[0].metric - judged_by.gain(comparison.settings.margin, 0.0),
                rows[0].metric,
                color=colour,
                alpha=0.07,
                label=f"margin, {comparison.settings.margin:g} {judged_by.unit_of_gain}",
            )
    # Zoomed in on the named arms: one that has collapsed would flatten all others.
    shown = [row for row in comparison.rows if row.arm in named]
    low = min(row.metric - (row.metric_std or 0.0) for row in shown)
    high = max(row.metric + (row.metric_std or 0.0) for row in shown)
    pad = 0.08 * (high - low) + 0.1 * comparison.settings.margin
    axis.set_ylim(low - pad, high + pad)
    axis.set_xlabel("sample passes, as a fraction of the full-data run's")
    axis.set_ylabel(f"final {judged_by.name}, {judged_by.unit}")
    axis.legend(fontsize=8, loc=_corner(judged_by))
    return _png(figure)


def learning_curves(comparison: Comparison) -> bytes:
    """The test metric over sample passes, mean over seeds; the whole run and its end."""
    figure, (whole, end) = _figure(9.0, 4.0, columns=2)
    longest = 0.0
    finals: list[float] = []
    named = _named(comparison)
    for row in _shown(comparison):
        runs = comparison.runs_of(row.arm, row.cost_target)
        samples = _mean_over_run(runs, lambda run: [float(n) for n in run.curves.samples])
        metric = _mean_over_run(runs, lambda run: run.curves.metric)
        colour, _ = _style(named, row.arm)
        for axis in (whole, end):
            axis.plot(samples, metric, color=colour, label=row.label, linewidth=1.4)
        longest = max(longest, samples[-1])
        finals += [float(value) for value in metric[3 * len(metric) // 4 :]]
    low, high = min(finals), max(finals)
    end.set_xlim(0.4 * longest, 1.02 * longest)
    pad = 0.05 * (high - low) + 0.2 * comparison.settings.margin
    end.set_ylim(low - pad, high + pad)
    whole.set_title("whole run", fontsize=10)
    end.set_title("towards the end", fontsize=10)
    whole.set_ylabel(f"{comparison.metric.name}, {comparison.metric.unit}")
    for axis in (whole, end):
        axis.set_xlabel("sample passes")
        axis.xaxis.set_major_formatter(EngFormatter())
    whole.legend(fontsize=8, loc=_corner(comparison.metric))
    return _png(figure)


def kept_fraction(comparison: Comparison) -> bytes:
    """The fraction of the training set that each epoch planned, mean over seeds."""
    figure, (axis,) = _figure(7.0, 3.4)
    named = _named(comparison)
    for row in _shown(comparison):
        runs = comparison.runs_of(row.arm, row.cost_target)
        epochs = range(max(run.epochs for run in runs))
        kept = [
            np.mean([run.curves.kept[e] / run.dataset_size for run in runs if e < run.epochs])
            for e in epochs
        ]
        colour, marker = _style(named, row.arm)
        axis.plot(
            [e + 1 for e in epochs],
            kept,
            color=colour,
            marker=marker,
            markersize=3.5,
            linewidth=1.2,
            label=row.label,
        )
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("epoch")
    axis.set_ylabel("samples kept")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.legend(fontsize=8, loc="lower right")
    return _png(figure)


def loss_distribution(histograms: Sequence[Histogram]) -> bytes:
    """The scores before a few epochs, with the threshold below which samples may be pruned."""
    figure, axes = _figure(9.0, 2.9, columns=len(histograms))
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
        if axis is not axes[0]:
            axis.sharey(axes[0])
            axis.tick_params(labelleft=False)
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


def _corner(metric: Metric) -> Literal["lower right", "upper right"]:
    """Where curves leave room."""
    return "lower right" if metric.higher_is_better else "upper right"


def _named(comparison: Comparison) -> list[str]:
    """The arms that figures name: the reference and the controls, InfoBatch, then the best."""
    first = [REFERENCE, FEWER_EPOCHS, COST, "infobatch-budget", "random"]
    best = sorted(comparison.rows, key=lambda row: -comparison.metric.gain(row.metric, 0.0))
    order = dict.fromkeys([*first, *(row.arm for row in best)])
    return [arm for arm in order if arm in comparison.arms][:_MOST]


def _shown(comparison: Comparison) -> list[Row]:
    """One row of each named arm: at the middle one of its costs."""
    shown = []
    for arm in _named(comparison):
        rows = [row for row in comparison.rows if row.arm == arm]
        shown.append(rows[len(rows) // 2])
    return shown


def _style(named: Sequence[str], arm: str) -> tuple[str, str]:
    if arm not in named:
        return _OTHERS, "."
    place = named.index(arm)
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
