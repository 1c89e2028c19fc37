"""Tasks, arms and seeds to results: what runs, in what order, and what is already there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from infobatch import DataPruner
from infobatch.lab import environment
from infobatch.lab.arm import Arm, ArmContext, ArmRun
from infobatch.lab.arms import COST
from infobatch.lab.results import ResultsFile, RunResult
from infobatch.lab.settings import Settings
from infobatch.lab.task import Task, TaskData
from infobatch.lab.thumbnails import write_thumbnails
from infobatch.lab.train import EpochReport, TrainingRun, load_checkpoint, save_checkpoint
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
    out: Path,
    listener: Listener,
) -> list[RunResult]:
    """Run every arm with every seed, and return all results.

    A run that is in `out` already is not repeated, and one that was interrupted goes on from
    its last checkpoint.

    Args:
        task: what is learned.
        data: on the device that is to be used.
        settings: what all runs share.
        arms: in running order, see `choose_arms`.
        seeds: each arm runs once with each; runs pair by seed.
        out: holds results.jsonl, the checkpoints of runs under way, and the report.
        listener: is told of every epoch and run.

    Raises:
        LabError: `out` holds results with other settings or damaged ones.
    """
    results = ResultsFile(out, settings)
    if any(results.find(arm.name, seed) is None for seed in seeds for arm in arms):
        _warm_up(task, data, settings)
    found = []
    for seed in seeds:
        for arm in arms:
            result = results.find(arm.name, seed)
            if reused := result is not None:
                finished = result
            else:
                finished = _run(task, data, settings, arm, seed, results, out, listener)
                results.add(finished)
                _checkpoint_path(out, arm.name, seed).unlink(missing_ok=True)
            listener.run_ended(finished, reused=reused)
            found.append(finished)
    if shown := results.find(COST, seeds[0]):
        write_thumbnails(task, data, shown.observations, out)
    return found


def _run(
    task: Task,
    data: TaskData,
    settings: Settings,
    arm: Arm,
    seed: int,
    results: ResultsFile,
    out: Path,
    listener: Listener,
) -> RunResult:
    size = len(data.train_targets)
    cost_run = results.find(COST, seed) if arm.equal_cost else None
    context = ArmContext(
        dataset_size=size,
        epochs=settings.epochs,
        prune_ratio=settings.prune_ratio,
        delta=settings.delta,
        seed=seed,
        infobatch_samples=cost_run.cost.samples_forwarded if cost_run else None,
    )
    run = TrainingRun(task, data, arm.start(context), settings, seed=seed)
    checkpoint = _checkpoint_path(out, arm.name, seed)
    load_checkpoint(run, checkpoint)
    listener.run_started(arm.name, seed, epochs=run.epochs, done=len(run.curves.kept))
    saved = time.monotonic()
    while not run.finished:
        report = run.run_epoch()
        if not run.finished and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            save_checkpoint(run, checkpoint)
            saved = time.monotonic()
        listener.epoch_ended(report)
    metric = run.curves.metric[-1]
    assert metric is not None, "the last epoch is always evaluated"
    return RunResult(
        arm=arm.name,
        seed=seed,
        settings=settings,
        dataset_size=size,
        epochs=run.epochs,
        cost=run.cost,
        metric=metric,
        wall_seconds=run.wall_seconds,
        curves=run.curves,
        observations=run.observer.observations(data, run.pruner.scores),
        versions=environment.versions(),
        hardware=environment.hardware(run.device),
        commit=environment.commit(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _warm_up(task: Task, data: TaskData, settings: Settings) -> None:
    """Train for two steps and forget it: what torch loads once is not the first run's to pay."""
    few = data.limit_train(min(len(data.train_targets), 2 * settings.batch_size))
    pruner = DataPruner(len(few.train_targets), 1, FullData())
    TrainingRun(task, few, ArmRun(1, pruner), settings, seed=0).run_epoch()


def _checkpoint_path(out: Path, arm: str, seed: int) -> Path:
    return out / "checkpoints" / f"{arm}-{seed}.pt"
