"""The report: one HTML file with everything in it, and the figures as files beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from infobatch.lab import plots
from infobatch.lab.arms import COST, REFERENCE, all_arms, base_name
from infobatch.lab.errors import LabError
from infobatch.lab.results import PrunedSample
from infobatch.lab.summary import (
    COLUMNS,
    MORE_COLUMNS,
    Comparison,
    cells,
    describe,
    more_cells,
)
from infobatch.lab.tasks import all_tasks
from infobatch.lab.thumbnails import MOST_PRUNED, NEVER_PRUNED

PAGE = "report.html"


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Attributes:
        title: heading.
        caption: what it shows and how to read it.
        alternative: what it is, for those who do not see it.
        data: the PNG file in base64.
    """

    title: str
    caption: str
    alternative: str
    data: str


def write_report(
    comparisons: Sequence[Comparison], folder: Path, *, picture_folders: Sequence[Path]
) -> Path:
    """Write report.html and its figures into a folder.

    Args:
        comparisons: each becomes a section.
        folder: made if need be.
        picture_folders: where `compare` has drawn samples; pictures are shown beside the results
            that they belong to only if there is one comparison.

    Returns:
        The path of the page.

    Raises:
        LabError: the folder cannot be written to.
    """
    template = Environment(
        loader=PackageLoader("infobatch.lab"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    pictures = picture_folders if len(comparisons) == 1 else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = [
            _section(comparison, folder, f"{number}-" if len(comparisons) > 1 else "", pictures)
            for number, comparison in enumerate(comparisons, start=1)
        ]
        page = folder / PAGE
        page.write_text(
            template.render(sections=sections, columns=COLUMNS, more_columns=MORE_COLUMNS),
            encoding="utf-8",
        )
    except OSError as error:
        raise LabError(f"the report cannot be written to {folder}: {error.strerror}") from error
    return page


def _section(
    comparison: Comparison, folder: Path, prefix: str, pictures: Sequence[Path]
) -> dict[str, object]:
    settings = comparison.settings
    task = all_tasks().get(settings.task)
    descriptions = {name: arm.description for name, arm in all_arms().items()}
    runs = sorted(comparison.runs, key=lambda run: (run.seed, run.arm, run.cost_target or 0.0))
    return {
        "task": settings.task,
        "description": task.description if task else settings.task,
        "metric": comparison.metric,
        "margin": f"{settings.margin:g}",
        "seeds": len(comparison.seeds),
        "headline": headline(comparison),
        "rows": [
            (list(zip(COLUMNS, cells(row), strict=True)), row.verdict.partition(" ")[0])
            for row in comparison.rows
        ],
        "more": [more_cells(row) for row in comparison.rows],
        "controls": [
            (name, describe(value, comparison.metric))
            for name, value in comparison.controls.items()
        ],
        "arms": [(arm, descriptions.get(base_name(arm), "")) for arm in comparison.arms],
        "figures": [*_plots(comparison, folder, prefix), *_samples(comparison, pictures)],
        "command": settings.command(comparison.arms, comparison.seeds, comparison.costs),
        "settings": [(name.replace("_", "-"), value) for name, value in settings.to_json().items()],
        "origins": sorted({_origin(run.versions, run.hardware, run.commit) for run in runs}),
        "runs": runs,
    }


def headline(comparison: Comparison) -> str:
    """The outcome in words, good or bad; empty without both InfoBatch and full data."""
    row = next((row for row in comparison.rows if row.arm == COST), None)
    if row is None or row.difference is None or row.wall_ratio is None:
        return ""
    outcome = {
        "non-inferior": "which is non-inferior",
        "inferior": "which is inferior",
    }.get(row.verdict, "which does not decide whether it is non-inferior")
    return (
        f"InfoBatch passed {row.saved:.1f}% fewer samples than full data and took "
        f"{row.wall_ratio:.2f} times as long. Its final metric differs by "
        f"{describe(row.difference, comparison.metric)} {comparison.metric.unit_of_gain}, where "
        f"positive is better, {outcome} at a margin of {comparison.settings.margin:g}."
    )


def _origin(versions: dict[str, str], hardware: str, commit: str | None) -> str:
    parts = [f"{name} {version}" for name, version in versions.items()]
    return ", ".join([*parts, hardware, f"commit {commit or 'unknown'}"])


_TEXTS = {
    "metric-against-cost.png": (
        "Metric against cost",
        (
            "Each small mark is one run, each large one an arm's mean with its standard deviation. "
            "Where many arms were run, grey marks are those that are not named; some may lie below "
            "the figure. "
            f"The band is the margin below {REFERENCE}. The thick line, full data for fewer "
            "epochs, is the one to beat: better at no more cost."
        ),
    ),
    "learning-curves.png": (
        "Learning curves",
        "The metric over sample passes, mean over seeds; at the middle one of an arm's costs.",
    ),
    "kept-fraction.png": (
        "Samples kept in each epoch",
        "The first epoch and the last ones train on all samples.",
    ),
    "loss-distribution.png": (
        "Loss distribution and threshold",
        (
            "Scores before a few epochs of the first InfoBatch run. Samples left of the line may "
            "be pruned; the last bar holds all beyond the 99th percentile."
        ),
    ),
}
"""Title and caption of each plot, by the name of its file."""


def _plots(comparison: Comparison, folder: Path, prefix: str) -> list[Figure]:
    """Draw the plots, write each as a file, and return them."""
    drawn = {
        "metric-against-cost.png": plots.metric_against_cost(comparison),
        "learning-curves.png": plots.learning_curves(comparison),
        "kept-fraction.png": plots.kept_fraction(comparison),
    }
    if histograms := plots.shown_histograms(comparison):
        drawn["loss-distribution.png"] = plots.loss_distribution(histograms)
    for name, data in drawn.items():
        (folder / (prefix + name)).write_bytes(data)
    return [_figure(*_TEXTS[name], data) for name, data in drawn.items()]


def _samples(comparison: Comparison, folders: Sequence[Path]) -> list[Figure]:
    """The pictures of samples that were drawn while the runs went on, where there are any."""
    runs = [run for run in comparison.runs_of(COST) if run.seed == comparison.seeds[0]]
    if not runs:
        return []
    observed = runs[0].observations
    figures = []
    for name, samples, title, caption in (
        (
            MOST_PRUNED,
            observed.most_pruned,
            "Samples pruned most often",
            f"Left out of {_times(observed.most_pruned)} epochs of the first InfoBatch run.",
        ),
        (
            NEVER_PRUNED,
            observed.never_pruned,
            "Samples never pruned",
            "Of those in every epoch of the first InfoBatch run, the ones with the highest loss.",
        ),
    ):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None and samples:
            figures.append(_figure(title, caption, path.read_bytes()))
    return figures


def _times(samples: Sequence[PrunedSample]) -> str:
    times = [sample.times_pruned for sample in samples]
    if not times or min(times) == max(times):
        return str(max(times, default=0))
    return f"{min(times)} to {max(times)}"


def _figure(title: str, caption: str, data: bytes) -> Figure:
    return Figure(title, caption, f"{title}. {caption}", base64.b64encode(data).decode())
