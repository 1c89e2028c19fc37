"""Pictures of the samples that were pruned most often, and of those that never were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infobatch.lab.run.results import Observations, PrunedSample
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.task import Task

MOST_PRUNED = "samples-pruned.png"
NEVER_PRUNED = "samples-kept.png"
_COLUMNS = 8


def write_thumbnails(task: Task, data: TaskData, observed: Observations, out: Path) -> None:
    """Draw both sheets into `out`; an empty list, or a task without pictures, draws nothing."""
    _draw(task, data, observed.most_pruned, out / MOST_PRUNED)
    _draw(task, data, observed.never_pruned, out / NEVER_PRUNED)


def _draw(task: Task, data: TaskData, samples: Sequence[PrunedSample], path: Path) -> None:
    if task.thumbnail is None or not samples:
        return
    rows = -(-len(samples) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * 0.95, rows * 1.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, sample in zip(axes, samples, strict=False):
        rows, _ = data.samples(torch.tensor([sample.index]))
        axis.imshow(task.thumbnail(rows[0]), cmap="gray", vmin=0, vmax=255)
        axis.set_title(sample.class_name, fontsize=8)
    figure.savefig(path)
