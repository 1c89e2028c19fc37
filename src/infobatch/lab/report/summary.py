"""From runs to the rows of the table; console and report show the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from infobatch._core.headroom import NO_HEADROOM
from infobatch.lab.arms import COST, FEWER_EPOCHS, REFERENCE, all_arms, base_name
from infobatch.lab.errors import LabError
from infobatch.lab.report.stats import PairedDifference, paired_difference, sample_std
from infobatch.lab.run.results import RunResult, run_label
from infobatch.lab.run.settings import Settings
from infobatch.lab.tasks.base.task import Metric

Runs = dict[int, RunResult]
"""Of one arm at one cost, by seed."""


@dataclass(frozen=True)
class Row:
    """One arm at one cost: means over its seeds.

    Attributes:
        cost_target: what it was told; None where it spent its own cost or InfoBatch's.
        judged_by: what `metric` is.
        metric_std: None for one seed.
        forwarded, trained, steps, wall_seconds: of one run; `trained` are backpropagated.
        cost: sample passes over those of the full-data run.
        wall_ratio: wall seconds over the reference's of the same seeds; None without them.
        worst_class: metric of the worst class; None where there are no classes.
        peak_memory: bytes; None where not known.
        difference: gain over the reference, paired by seed: positive if the arm is better, also
            where a lower metric is. None without pairs, and for the reference itself.
        verdict: of that difference.
        to_control: the same over full data for fewer epochs at the same cost.
        reached: in how many runs the metric came within the margin of the reference's last one.
        cost_to_target, wall_to_target: mean cost and wall ratio at which it first did.
        more: means of the other numbers that the task reports.
    """

    arm: str
    cost_target: float | None
    seeds: int
    judged_by: Metric
    metric: float
    metric_std: float | None
    forwarded: float
    trained: float
    cost: float
    steps: float
    wall_seconds: float
    wall_ratio: float | None
    worst_class: float | None
    peak_memory: float | None
    difference: PairedDifference | None
    verdict: str
    to_control: PairedDifference | None
    reached: int
    cost_to_target: float | None
    wall_to_target: float | None
    more: dict[str, float]

    @property
    def label(self) -> str:
        return run_label(self.arm, self.cost_target)

    @property
    def saved(self) -> float:
        """Sample passes that were not made, in percent of the full-data run's."""
        return 100 * (1 - self.cost)


@dataclass(frozen=True)
class Comparison:
    """The runs that share their settings, and what is made of them.

    Attributes:
        rows: one per arm and cost, the reference first.
        controls: by name of each arm at InfoBatch's cost, what InfoBatch gains over it, paired by
            seed: what choosing by score is worth.
    """

    settings: Settings
    runs: list[RunResult]
    rows: list[Row]
    controls: dict[str, PairedDifference]

    def runs_of(self, arm: str, cost_target: float | None = None) -> list[RunResult]:
        return [run for run in self.runs if (run.arm, run.cost_target) == (arm, cost_target)]

    @property
    def outlook(self) -> str:
        """What full data tell of the use of choosing samples; empty where they were not run."""
        curves = [run.curves for run in self.runs_of(REFERENCE)]
        if not curves or not all(len(each.headroom) > 1 for each in curves):
            return ""
        second, last, repeats = (
            _mean_known([values[place] for values in found])
            for found, place in (
                ([each.headroom for each in curves], 1),
                ([each.headroom for each in curves], -1),
                ([each.rank_correlation for each in curves], -1),
            )
        )
        if second is None or last is None or repeats is None:
            return ""
        said = (
            f"Headroom on full data: {second:.0%} after the second epoch, {last:.0%} at the end; "
            f"rank correlation of losses with those an epoch before: {repeats:.2f}."
        )
        if last < NO_HEADROOM:
            said += (
                " Samples differ too little for any choice of them to pay: train for fewer epochs."
            )
        return said

    @property
    def metric(self) -> Metric:
        return self.runs[0].judged_by

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def arms(self) -> list[str]:
        """Every arm, in the order of the rows."""
        return list(dict.fromkeys(row.arm for row in self.rows))

    @property
    def costs(self) -> list[float]:
        """Every cost that was asked for, rising."""
        return sorted({run.cost_target for run in self.runs if run.cost_target is not None})


def summarise(results: Sequence[RunResult]) -> list[Comparison]:
    """Group runs by their settings, in the order in which the settings first appear.

    Raises:
        LabError: there are no runs, or one arm, cost and seed comes twice.
    """
    if not results:
        raise LabError("no finished run to report: run infobatch compare first")
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.settings.digest, []).append(result)
    return [_comparison(runs) for runs in groups.values()]


def _comparison(runs: list[RunResult]) -> Comparison:
    place = {name: number for number, name in enumerate(all_arms())}
    keys = sorted(
        {(run.cost_target, run.arm) for run in runs},
        key=lambda key: (key[0] or 0.0, place.get(base_name(key[1]), len(place)), key[1]),
    )
    table: dict[tuple[float | None, str], Runs] = {key: {} for key in keys}
    for run in runs:
        seeds = table[run.cost_target, run.arm]
        if run.seed in seeds:
            raise LabError(f"{run.label} with seed {run.seed} comes twice: give each file once")
        seeds[run.seed] = run
    settings = runs[0].settings
    metric = runs[0].judged_by
    reference = table.get((None, REFERENCE), {})
    rows = [
        _row(found, reference, table.get((cost, FEWER_EPOCHS), {}), metric, settings.margin)
        for (cost, _), found in table.items()
    ]
    differences = {
        name: paired_gain(table.get((None, COST), {}), table.get((None, name), {}), metric)
        for name, arm in all_arms().items()
        if arm.cost == "told"
    }
    controls = {name: difference for name, difference in differences.items() if difference}
    return Comparison(settings, runs, rows, controls)


def paired_gain(runs: Runs, reference: Runs, metric: Metric) -> PairedDifference | None:
    """What runs gain over others, over the seeds that both have; None without any."""
    paired = sorted(runs.keys() & reference.keys())
    if not paired:
        return None
    values = [[group[seed].metric for seed in paired] for group in (runs, reference)]
    better, worse = values if metric.higher_is_better else reversed(values)
    return paired_difference(better, worse)


def _row(runs: Runs, reference: Runs, control: Runs, metric: Metric, margin: float) -> Row:
    values = list(runs.values())
    first = values[0]
    difference = None if first.arm == REFERENCE else paired_gain(runs, reference, metric)
    is_control = first.arm in (REFERENCE, FEWER_EPOCHS)
    paired = runs.keys() & reference.keys()
    wall_ratio = None
    if paired:
        walls = [sum(group[seed].wall_seconds for seed in paired) for group in (runs, reference)]
        wall_ratio = walls[0] / walls[1]
    targets = [_target(runs[seed], reference[seed], metric, margin) for seed in paired]
    reached = [target for target in targets if target is not None]
    metrics = [run.metric for run in values]
    return Row(
        arm=first.arm,
        cost_target=first.cost_target,
        seeds=len(runs),
        judged_by=metric,
        metric=sum(metrics) / len(metrics),
        metric_std=sample_std(metrics),
        forwarded=_mean(values, lambda run: run.cost.samples_forwarded),
        trained=_mean(values, lambda run: run.cost.samples_backpropagated),
        cost=_mean(values, lambda run: run.cost_fraction),
        steps=_mean(values, lambda run: run.cost.steps),
        wall_seconds=_mean(values, lambda run: run.wall_seconds),
        wall_ratio=wall_ratio,
        worst_class=_mean_known([run.worst_class for run in values]),
        peak_memory=_mean_known([run.peak_memory for run in values]),
        difference=difference,
        verdict=difference.verdict(margin) if difference else "",
        to_control=None if is_control else paired_gain(runs, control, metric),
        reached=len(reached),
        cost_to_target=_mean_known([cost for cost, _ in reached]),
        wall_to_target=_mean_known([wall for _, wall in reached]),
        more={
            name: sum(run.more[name] for run in values) / len(values)
            for name in first.more
            if all(name in run.more for run in values)
        },
    )


def _target(
    run: RunResult, reference: RunResult, metric: Metric, margin: float
) -> tuple[float, float | None] | None:
    """Cost and wall ratio at which a run first came within the margin of its reference's end."""
    full = run.dataset_size * run.settings.epochs
    for epoch, value in enumerate(run.curves.metric):
        if value is not None and metric.gain(value, reference.metric) >= -margin:
            seconds = run.curves.seconds
            wall = seconds[epoch] / reference.wall_seconds if seconds else None
            return run.curves.samples[epoch] / full, wall
    return None


def _mean(runs: Sequence[RunResult], value: Callable[[RunResult], float]) -> float:
    return sum(value(run) for run in runs) / len(runs)


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _text(number: float | None, pattern: str) -> str:
    return "" if number is None else pattern.format(number)


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "arm": lambda row: row.label,
    "metric": lambda row: (
        row.judged_by.text(row.metric)
        + ("" if row.metric_std is None else f" ± {row.judged_by.text(row.metric_std)}")
    ),
    "trained": lambda row: f"{row.trained:,.0f}",
    "forwarded": lambda row: f"{row.forwarded:,.0f}",
    "saved": lambda row: f"{row.saved:.1f}%",
    "steps": lambda row: f"{row.steps:,.0f}",
    "wall s": lambda row: f"{row.wall_seconds:.1f}",
    "wall/full": lambda row: _text(row.wall_ratio, "{:.2f}"),
    "difference": lambda row: describe(row.difference, row.judged_by),
    "verdict": lambda row: row.verdict,
    "to fewer epochs": lambda row: describe(row.to_control, row.judged_by),
}
"""The columns of the table: heading, and a row's text in it."""

MORE_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "arm": lambda row: row.label,
    "worst class": lambda row: (
        "" if row.worst_class is None else row.judged_by.text(row.worst_class)
    ),
    "peak memory": lambda row: (
        "" if row.peak_memory is None else f"{row.peak_memory / 2**20:,.0f} MiB"
    ),
    "reached": lambda row: f"{row.reached} of {row.seeds}",
    "cost to target": lambda row: _text(row.cost_to_target, "{:.2f}"),
    "wall to target": lambda row: _text(row.wall_to_target, "{:.2f}"),
    "more": lambda row: ", ".join(f"{name} {value:.4g}" for name, value in row.more.items()),
}
"""Those of the second table."""


def cells(row: Row, columns: Mapping[str, Callable[[Row], str]] = COLUMNS) -> tuple[str, ...]:
    """The row as text, column by column."""
    return tuple(text(row) for text in columns.values())


def describe(difference: PairedDifference | None, metric: Metric) -> str:
    """The mean and, if there is one, the interval, in the metric's unit; empty for None."""
    if difference is None:
        return ""
    low, high, digits = difference.low, difference.high, metric.digits
    mean = f"{difference.mean:+.{digits}f}"
    if low is None or high is None:
        return mean
    return f"{mean} [{low:+.{digits}f}, {high:+.{digits}f}]"
