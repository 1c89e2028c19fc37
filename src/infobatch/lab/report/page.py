"""The report: one HTML file with everything in it, and the figures as files beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from infobatch.lab.arms import COST, REFERENCE, all_arms, base_name
from infobatch.lab.errors import LabError
from infobatch.lab.report import plots
from infobatch.lab.report.summary import COLUMNS, MORE_COLUMNS, Comparison, cells, describe
from infobatch.lab.run.results import RunResult
from infobatch.lab.run.thumbnails import MOST_PRUNED, NEVER_PRUNED
from infobatch.lab.tasks import all_tasks

PAGE = "report.html"


@dataclass(frozen=True)
class Figure:
    """A picture of the report: a PNG file in base64, and its heading and explanation."""

    title: str
    caption: str
    data: str

    @classmethod
    def of(cls, title: str, caption: str, png: bytes) -> Figure:
        """From the bytes of the file."""
        return cls(title, caption, base64.b64encode(png).decode())


def write_report(
    comparisons: Sequence[Comparison], folder: Path, *, picture_folders: Sequence[Path]
) -> Path:
    """Write report.html, with a section for each comparison, and its figures into a folder.

    `compare` draws pictures of samples into `picture_folders`; they are shown where there is one
    comparison that they can belong to. Returns the path of the page.
    """
    template = Environment(
        loader=PackageLoader("infobatch.lab.report"),
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
        "outlook": comparison.outlook,
        "rows": [
            (list(zip(COLUMNS, cells(row), strict=True)), row.verdict.partition(" ")[0])
            for row in comparison.rows
        ],
        "more": [cells(row, MORE_COLUMNS) for row in comparison.rows],
        "controls": [
            (name, describe(value, comparison.metric))
            for name, value in comparison.controls.items()
        ],
        "arms": [(arm, descriptions.get(base_name(arm), "")) for arm in comparison.arms],
        "figures": [*_plots(comparison, folder, prefix), *_samples(comparison, pictures)],
        "command": settings.command(comparison.arms, comparison.seeds, comparison.costs),
        "settings": [(name.replace("_", "-"), value) for name, value in settings.to_json().items()],
        "origins": sorted({_origin(run) for run in runs}),
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


def _origin(run: RunResult) -> str:
    parts = [f"{name} {version}" for name, version in run.versions.items()]
    return ", ".join([*parts, run.hardware, f"commit {run.commit or 'unknown'}"])


_CAPTIONS = {
    "metric-against-cost": (
        "Each small mark is one run, each large one an arm's mean with its standard deviation. "
        "Where many arms were run, grey marks are those that are not named; some may lie below "
        f"the figure. The band is the margin below {REFERENCE}. The thick line, full data for "
        "fewer epochs, is the one to beat: better at no more cost."
    ),
    "learning-curves": (
        "The metric over sample passes, mean over seeds; of several costs the middle one."
    ),
    "kept-fraction": "The first epoch and the last ones train on all samples.",
    "loss-distribution": (
        "Scores before a few epochs of the first InfoBatch run. Samples left of the line, the "
        "threshold, may be pruned; the last bar holds all beyond the 99th percentile."
    ),
}
"""What each plot shows, by the name of its file."""


def _plots(comparison: Comparison, folder: Path, prefix: str) -> list[Figure]:
    """Draw the plots, write each as a file, and return them."""
    drawn = {
        "metric-against-cost": plots.metric_against_cost(comparison),
        "learning-curves": plots.learning_curves(comparison),
        "kept-fraction": plots.kept_fraction(comparison),
    }
    if histograms := plots.shown_histograms(comparison):
        drawn["loss-distribution"] = plots.loss_distribution(histograms)
    for name, png in drawn.items():
        (folder / f"{prefix}{name}.png").write_bytes(png)
    return [
        Figure.of(name.replace("-", " ").capitalize(), _CAPTIONS[name], png)
        for name, png in drawn.items()
    ]


def _samples(comparison: Comparison, folders: Sequence[Path]) -> list[Figure]:
    """The pictures of samples that were drawn while the runs went on, where there are any."""
    runs = [run for run in comparison.runs_of(COST) if run.seed == comparison.seeds[0]]
    if not runs:
        return []
    observed = runs[0].observations
    times = sorted({sample.times_pruned for sample in observed.most_pruned}) or [0]
    often = f"{times[0]} to {times[-1]}" if len(times) > 1 else f"{times[0]}"
    figures = []
    for name, samples, title, caption in (
        (
            MOST_PRUNED,
            observed.most_pruned,
            "Samples pruned most often",
            f"Left out of {often} epochs of the first InfoBatch run.",
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
            figures.append(Figure.of(title, caption, path.read_bytes()))
    return figures
