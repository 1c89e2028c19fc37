"""Tasks, arms and seeds to results: what runs, in what order, and what is already there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from infobatch import DataPruner
from infobatch.lab.arms import COST, REFERENCE
from infobatch.lab.arms.base import Arm, ArmContext, ArmRun
from infobatch.lab.errors import LabError
from infobatch.lab.run import environment, ranks
from infobatch.lab.run.gradients import true_headroom
from infobatch.lab.run.proxy import run_proxy
from infobatch.lab.run.results import ResultsFile, RunResult, run_label
from infobatch.lab.run.settings import Settings
from infobatch.lab.run.thumbnails import write_thumbnails
from infobatch.lab.run.train import EpochReport, TrainingRun, load_checkpoint, save_state
from infobatch.lab.tasks.base.data import TaskData
from infobatch.lab.tasks.base.task import Outcome, Task
from infobatch.policies import FullData

CHECKPOINT_SECONDS = 5.0
"""A run under way is saved at the end of an epoch, if so long has passed since the last time."""


class Listener(Protocol):
    """Is told how a comparison goes."""

    def run_started(self, arm: str, seed: int, *, epochs: int, done: int) -> None:
        """`done` epochs of the run were there from before."""

    def epoch_ended(self, report: EpochReport) -> None:
        """An epoch has been trained and, where due, evaluated."""

    def run_ended(self, result: RunResult, *, reused: bool) -> None:
        """`reused`: the run was in the results file already."""


def compare(
    task: Task,
    data: TaskData,
    settings: Settings,
    *,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    costs: Sequence[float] = (),
    out: Path,
    listener: Listener,
    gradient_samples: int = 0,
) -> list[RunResult]:
    """Run every arm with every seed, and return all results.

    A run that is in `out` already is not repeated, and one that was interrupted goes on from
    its last checkpoint.

    Args:
        task: what is learned.
        data: on the device that is to be used.
        settings: shared by all runs.
        arms: in running order, see `choose_arms`.
        seeds: each arm runs once with each; runs pair by seed.
        costs: fractions of the full-data run's cost; without any, arms match `infobatch`.
        out: holds results.jsonl and the checkpoints of runs under way.
        listener: is told of every epoch and run.
        gradient_samples: after each run of full data, see `true_headroom` of so many; 0: do not.
    """
    if settings.batch_size % ranks.count():
        raise LabError(
            f"--batch-size is that of all {ranks.count()} processes together and must be a "
            f"multiple of their number, got {settings.batch_size}"
        )
    results = ranks.on_first(lambda: ResultsFile(out, settings))
    due = planned_runs(arms, costs)
    if any(results.find(arm.name, cost, seed) is None for seed in seeds for arm, cost in due):
        _warm_up(task, data, settings)
    found = []
    for seed in seeds:
        for arm, cost in due:
            result = results.find(arm.name, cost, seed)
            reused = result is not None
            if result is None:
                samples = gradient_samples if arm.name == REFERENCE else 0
                result = _run(
                    task, data, settings, arm, cost, seed, results, out, listener, samples
                )
                results.add(result)
                if ranks.rank() == 0:
                    for path in (out / "checkpoints").glob(f"{result.label}-{seed}.*"):
                        path.unlink()
            listener.run_ended(result, reused=reused)
            found.append(result)
    shown = results.find(COST, None, seeds[0])
    if shown and ranks.rank() == 0:
        write_thumbnails(task, data, shown.observations, out)
    return found


def planned_runs(arms: Sequence[Arm], costs: Sequence[float]) -> list[tuple[Arm, float | None]]:
    """The runs of each seed: arms of their own cost once, the others once for each cost."""
    own = [(arm, None) for arm in arms if arm.cost == "own" or not costs]
    return [*own, *((arm, cost) for cost in costs for arm in arms if arm.cost != "own")]


def _run(
    task: Task,
    data: TaskData,
    settings: Settings,
    arm: Arm,
    cost: float | None,
    seed: int,
    results: ResultsFile,
    out: Path,
    listener: Listener,
    gradient_samples: int,
) -> RunResult:
    size, labels = len(data), data.labels
    told = cost
    if told is None and arm.cost == "told":
        cost_run = results.find(COST, None, seed)
        assert cost_run is not None, "it runs before those that match its cost"
        told = cost_run.cost_fraction
    context = ArmContext(
        dataset_size=size,
        epochs=settings.epochs,
        prune_ratio=settings.prune_ratio,
        delta=settings.delta,
        seed=seed,
        labels=None if labels is None else labels.cpu().numpy(),
        cost=told,
    )
    label = run_label(arm.name, cost)
    checkpoint = out / "checkpoints" / f"{label}-{seed}.pt"
    environment.reset_peak_memory(data.device)
    arm_run = arm.start(context)
    by_error = arm_run.in_batch is not None and arm_run.in_batch.by_error
    if (arm_run.proxy is not None or by_error) and not task.by_class_logits:
        raise LabError(f"{arm.name} needs a task whose models give one logit for each class")
    if ranks.count() > 1 and (arm_run.proxy is not None or arm_run.in_batch is not None):
        raise LabError(
            f"{arm.name} runs in one process alone: it chooses from all samples of a batch or of a "
            "proxy run, of which each process has a part; leave it away, or do without torchrun"
        )
    if arm_run.proxy is None:
        run = TrainingRun(task, data, arm_run, settings, seed=seed)
    else:
        found = checkpoint.with_suffix(".coreset.pt")
        first = run_proxy(task, data, settings, arm_run, seed=seed, path=found)
        arm_run = replace(arm_run, pruner=arm_run.proxy.pruner(first.coreset))
        run = TrainingRun(task, data, arm_run, settings, seed=seed)
        run.cost.add(first.cost)
        run.wall_seconds += first.seconds
    load_checkpoint(run, checkpoint)
    listener.run_started(label, seed, epochs=run.epochs, done=len(run.curves.kept))
    saved = time.monotonic()
    while not run.finished:
        report = run.run_epoch()
        due = ranks.rank() == 0 and time.monotonic() - saved >= CHECKPOINT_SECONDS
        if due and not run.finished:
            save_state(run.state_dict(), checkpoint)
            saved = time.monotonic()
        listener.epoch_ended(report)
    assert run.outcome is not None, "the last epoch is always evaluated"
    more = dict(run.outcome.more)
    if gradient_samples:
        more |= true_headroom(run, gradient_samples)
    return RunResult(
        arm=arm.name,
        seed=seed,
        cost_target=cost,
        settings=settings,
        dataset_size=size,
        epochs=run.epochs,
        cost=run.cost,
        metric=run.outcome.metric,
        worst_class=run.outcome.worst_class,
        wall_seconds=run.wall_seconds,
        peak_memory=environment.peak_memory(run.device),
        curves=run.curves,
        observations=run.observer.observations(data, run.pruner.scores),
        versions=environment.versions(),
        hardware=environment.hardware(run.device),
        commit=environment.commit(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        more=more,
        judged_by=task.metric,
    )


def _warm_up(task: Task, data: TaskData, settings: Settings) -> None:
    """Train for two steps and forget it: what torch loads once is not the first run's to pay."""
    few = data.limit_train(min(len(data), 2 * settings.batch_size))
    pruner = DataPruner(len(few), 1, FullData())
    without = replace(task, evaluate=lambda _: Outcome(0.0))
    TrainingRun(without, few, ArmRun(1, pruner), settings, seed=0).run_epoch()
