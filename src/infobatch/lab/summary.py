"""From runs to the rows of the table; console and report show the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infobatch.lab.arms import COST, REFERENCE, all_arms
from infobatch.lab.errors import LabError
from infobatch.lab.results import RunResult
from infobatch.lab.settings import Settings
from infobatch.lab.stats import PairedDifference, paired_difference, sample_std


@dataclass(frozen=True)
class Row:
    """One arm: means over its seeds.

    Attributes:
        metric_std: None for one seed.
        samples, steps, wall_seconds: of one run.
        forwarded: as `samples` (which are backpropagated), with those only scored.
        saved: part of the reference's sample passes that was not made, in percent.
        wall_ratio: wall seconds over the reference's of the same seeds; None without them.
        difference: in metric to the reference, paired by seed; None without pairs, and for the
            reference itself.
        verdict: of that difference.
    """

    arm: str
    seeds: int
    metric: float
    metric_std: float | None
    forwarded: float
    samples: float
    saved: float
    epochs: float
    steps: float
    wall_seconds: float
    wall_ratio: float | None
    difference: PairedDifference | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The runs that share their settings, and what is made of them.

    Attributes:
        rows: one per arm, the reference first.
        controls: by name of each arm at InfoBatch's cost, the paired difference in metric of
            InfoBatch to it: what choosing by score is worth.
    """

    settings: Settings
    runs: list[RunResult]
    rows: list[Row]
    controls: dict[str, PairedDifference]

    def runs_of(self, arm: str) -> list[RunResult]:
        """The runs of one arm."""
        return [run for run in self.runs if run.arm == arm]

    @property
    def seeds(self) -> list[int]:
        """Every seed that some arm was run with."""
        return sorted({run.seed for run in self.runs})


def summarise(results: Sequence[RunResult]) -> list[Comparison]:
    """Group runs by their settings, in the order in which the settings first appear.

    Raises:
        LabError: there are no runs, or one arm and seed comes twice.
    """
    if not results:
        raise LabError("no finished run to report: run infobatch compare first")
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.settings.digest, []).append(result)
    return [_comparison(runs) for runs in groups.values()]


def _comparison(runs: list[RunResult]) -> Comparison:
    by_arm: dict[str, dict[int, RunResult]] = {name: {} for name in all_arms()}
    for run in runs:
        seeds = by_arm.setdefault(run.arm, {})
        if run.seed in seeds:
            raise LabError(f"{run.arm} with seed {run.seed} comes twice: give each file once")
        seeds[run.seed] = run
    settings = runs[0].settings
    reference = by_arm[REFERENCE]
    rows = [_row(arm, seeds, reference, settings.margin) for arm, seeds in by_arm.items() if seeds]
    differences = {
        name: _difference(by_arm[COST], by_arm[name])
        for name, arm in all_arms().items()
        if arm.equal_cost
    }
    controls = {name: difference for name, difference in differences.items() if difference}
    return Comparison(settings, runs, rows, controls)


def _difference(
    runs: dict[int, RunResult], reference: dict[int, RunResult]
) -> PairedDifference | None:
    """The difference in metric over the seeds that both have; None without any."""
    paired = sorted(runs.keys() & reference.keys())
    if not paired:
        return None
    return paired_difference(
        [runs[seed].metric for seed in paired], [reference[seed].metric for seed in paired]
    )


def _row(
    arm: str, runs: dict[int, RunResult], reference: dict[int, RunResult], margin: float
) -> Row:
    difference = _difference(runs, reference) if arm != REFERENCE else None
    paired = runs.keys() & reference.keys()
    wall_ratio = None
    if paired:
        wall_ratio = sum(runs[seed].wall_seconds for seed in paired) / sum(
            reference[seed].wall_seconds for seed in paired
        )
    metrics = [run.metric for run in runs.values()]
    full_samples = _mean([run.dataset_size * run.settings.epochs for run in runs.values()])
    samples = _mean([run.cost.samples_backpropagated for run in runs.values()])
    forwarded = _mean([run.cost.samples_forwarded for run in runs.values()])
    return Row(
        arm=arm,
        seeds=len(runs),
        metric=_mean(metrics),
        metric_std=sample_std(metrics),
        forwarded=forwarded,
        samples=samples,
        saved=100 * (1 - forwarded / full_samples),
        epochs=_mean([run.epochs for run in runs.values()]),
        steps=_mean([run.cost.steps for run in runs.values()]),
        wall_seconds=_mean([run.wall_seconds for run in runs.values()]),
        wall_ratio=wall_ratio,
        difference=difference,
        verdict=difference.verdict(margin) if difference else "",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


COLUMNS = (
    "arm",
    "metric %",
    "samples",
    "saved",
    "steps",
    "wall s",
    "wall/full",
    "difference",
    "verdict",
)
"""Headings of the table, for `cells`."""


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, column by column."""
    return (
        row.arm,
        f"{row.metric:.2f}" + ("" if row.metric_std is None else f" ± {row.metric_std:.2f}"),
        f"{row.samples:,.0f}",
        f"{row.saved:.1f}%",
        f"{row.steps:,.0f}",
        f"{row.wall_seconds:.1f}",
        "" if row.wall_ratio is None else f"{row.wall_ratio:.2f}",
        "" if row.difference is None else describe(row.difference),
        row.verdict,
    )


def describe(difference: PairedDifference) -> str:
    """The mean and, if there is one, the interval, in points."""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.2f}"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
