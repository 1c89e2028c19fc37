"""Runs of 2 to 7 epochs: is the last epoch to be pruned, or to be on the full data?

    python benchmarks/research/short_runs.py run digits --seeds 20 --batch-size 32 --lr 0.1
    python benchmarks/research/short_runs.py run adult --seeds 10 --data-dir path/to/adult
    python benchmarks/research/short_runs.py table

`run` has `infobatch compare` train all that step 12 of docs/research-log.md compares, with the
options that it is given, and `table` prints the tables from 12-short-runs.jsonl.gz, which holds the
lines of all the results.jsonl but for what they observed of single samples.

With `--delta 1` the last epoch is pruned, as by 0.875 when this was asked: no epoch t of fewer than
8 epochs is at or beyond 0.875 of them. With (E - 1) / E it is on the full data.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from infobatch.lab.arms import COST, FEWER_EPOCHS, REFERENCE
from infobatch.lab.report.stats import paired_difference
from infobatch.lab.run.results import RunResult, read_results

RESULTS = Path(__file__).with_name("12-short-runs.jsonl.gz")
LENGTHS = range(2, 8)


def last_full(epochs: int) -> float:
    """The delta by which only the last epoch is annealed."""
    return (epochs - 1) / epochs


def equal_cost(epochs: int) -> float:
    """What all are given; with 3 epochs the form with two whole ones can do it for no less."""
    return 0.8 if epochs == 3 else 0.75


def comparisons(epochs: int) -> Iterable[list[str]]:
    """The options of each comparison of runs of so many epochs."""
    own = ["--arms", f"{REFERENCE},{COST},{FEWER_EPOCHS}"]
    yield [*own, "--delta", "1"]
    if epochs == 2:  # with the last epoch full all are
        return
    yield [*own, "--delta", str(last_full(epochs))]
    told = ["--cost", str(equal_cost(epochs)), "--arms"]
    forms = [f"proportional+delta={delta}" for delta in (1, last_full(epochs))]
    yield [*told, ",".join([FEWER_EPOCHS, "infobatch-budget", *forms]), "--delta", "1"]
    yield [*told, "infobatch-budget", "--delta", str(last_full(epochs))]


def run(task: str, options: list[str], out: Path, lengths: Iterable[int]) -> None:
    """Train all of it; what is there is not trained again."""
    for epochs in lengths:
        for number, arms in enumerate(comparisons(epochs)):
            place = ["--epochs", str(epochs), "--out", str(out / f"{task}-{epochs}-{number}")]
            command = ["-m", "infobatch", "compare", "--task", task, *place, *arms]
            fixed = ["--threads", "1", "--device", "cpu", "--eval-every", "0"]
            subprocess.run([sys.executable, *command, *fixed, *options], check=True)


Found = dict[int, RunResult]  # by seed
Gains = dict[int, float]  # by seed


class Results:
    """The runs of one task and length."""

    def __init__(self, runs: list[RunResult]) -> None:
        self._runs = runs
        self.epochs = runs[0].settings.epochs

    def of(self, arm: str, *, full_end: bool, cost: float | None = None) -> Found:
        """The runs of an arm by seed, of the form that ends with a full epoch or the other."""
        delta = last_full(self.epochs) if full_end else 1.0
        if arm == "proportional":
            arm, delta = f"{arm}+delta={last_full(self.epochs) if full_end else 1}", 1.0
        return {
            run.seed: run
            for run in self._runs
            if (run.arm, run.cost_target, run.settings.delta) == (arm, cost, delta)
        }

    def gain(self, *, full_end: bool) -> Gains:
        """InfoBatch at its own cost over fewer epochs at the same, by seed."""
        ours, control = (self.of(arm, full_end=full_end) for arm in (COST, FEWER_EPOCHS))
        return {seed: ours[seed].metric - control[seed].metric for seed in sorted(ours)}


def mean(found: Found) -> str:
    """Of the metric."""
    return f"{statistics.fmean(run.metric for run in found.values()):.2f}"


def saved(found: Found) -> str:
    """Of the sample passes of the full run, in percent."""
    parts = (r.cost.passes / (r.dataset_size * r.settings.epochs) for r in found.values())
    return f"{100 * (1 - statistics.fmean(parts)):.0f}%"


def words(differences: Iterable[float]) -> str:
    """The mean over seeds, with its interval."""
    values = list(differences)
    found = paired_difference(values, [0.0] * len(values))
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def minus(one: Gains, other: Gains) -> list[float]:
    """How much better `one` is, for each seed."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def over_lengths(gains: list[Gains]) -> Gains:
    """The mean over runs of different lengths, by seed."""
    return {seed: statistics.fmean(each[seed] for each in gains) for seed in gains[0]}


def of_tasks() -> dict[str, list[Results]]:
    """All results, by task and rising length."""
    runs: dict[str, dict[int, list[RunResult]]] = {}
    for run in read_results(RESULTS):
        lengths = runs.setdefault(run.settings.task, {})
        lengths.setdefault(run.settings.epochs, []).append(run)
    return {
        task: [Results(lengths[epochs]) for epochs in sorted(lengths)]
        for task, lengths in runs.items()
    }


def row(*cells: object) -> str:
    """One of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def at_own_cost() -> str:
    """InfoBatch with the mean threshold, in both forms."""
    form = ("saved", "over fewer epochs")
    lines = [
        row("task", "epochs", "full", "pruned to the end", *form, "last epoch whole", *form),
        row(*["---"] * 9),
    ]
    for task, lengths in of_tasks().items():
        ends: tuple[list[Gains], list[Gains]] = ([], [])
        for results in lengths:
            full = mean(results.of(REFERENCE, full_end=False))
            cells: list[str] = []
            for full_end in (False, True) if results.epochs > 2 else (False,):
                found, gain = results.of(COST, full_end=full_end), results.gain(full_end=full_end)
                cells += [mean(found), saved(found), words(gain.values())]
                if results.epochs > 2:
                    ends[full_end].append(gain)
            cells += ["", "", ""] if results.epochs == 2 else []
            lines.append(row(task, results.epochs, full, *cells))
        more = words(minus(over_lengths(ends[True]), over_lengths(ends[False])))
        lines.append(row(f"**{task}**", "mean", "", "", "", "", "", "whole gains more by", more))
    return "\n".join(lines)


def at_equal_cost() -> str:
    """The budget form and the policy at the same cost, in both forms."""
    forms = [
        f"{arm}, {form}"
        for arm in ("budget form", "policy")
        for form in ("pruned to the end", "last epoch whole", "that is better by")
    ]
    lines = [row("task", "epochs", "fewer epochs", *forms), row(*["---"] * 9)]
    for task, lengths in of_tasks().items():
        for results in lengths[1:] if lengths[0].epochs == 2 else lengths:
            cost = equal_cost(results.epochs)
            if not (control := results.of(FEWER_EPOCHS, full_end=False, cost=cost)):
                continue
            cells = [mean(control)]
            for arm in ("infobatch-budget", "proportional"):
                ends = [results.of(arm, full_end=e, cost=cost) for e in (False, True)]
                to_end, whole = ({s: r.metric for s, r in found.items()} for found in ends)
                cells += [mean(ends[0]), mean(ends[1]), words(minus(whole, to_end))]
            lines.append(row(task, results.epochs, *cells))
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("task", nargs="?", default="digits")
    parser.add_argument("--epochs", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--out", type=Path, default=Path("short-runs"))
    options, rest = parser.parse_known_args()
    if options.what == "run":
        run(options.task, rest, options.out, options.epochs)
    else:
        print(at_own_cost(), at_equal_cost(), sep="\n\n")


if __name__ == "__main__":
    main()
