"""The state of one rank's samples out of the states of all ranks of a run with other ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.headroom import nothing_of
from infobatch._core.history import EpochRecord, LossTally
from infobatch._core.plan import EpochPlan, Rows
from infobatch._core.selection import Selection
from infobatch._state.snapshot import Snapshot
from infobatch.errors import StateError


def merge(
    states: Iterable[object], settings: dict[str, Any], samples: Rows, columns: Collection[str]
) -> Snapshot:
    """The state of some samples out of the states of all ranks of a run.

    Args:
        states: of every rank, in any order; taken one at a time.
        settings: the pruner's.
        samples: those that this rank owns now.
        columns: of the policy's memory.

    Raises:
        StateError: one of them does not fit, or they are not one of each rank.
    """
    merged = _Merged(samples, columns)
    for state in states:
        merged.add(Snapshot.unpack(state, settings, columns))
    return merged.snapshot()


class _Merged:
    """What one rank takes from the snapshots of others."""

    def __init__(self, samples: Rows, columns: Collection[str]) -> None:
        self._samples = samples
        self._memory = {name: np.full(len(samples), np.nan, dtype=np.float32) for name in columns}
        self._scores = np.full(len(samples), np.nan, dtype=np.float32)
        self._weights = np.zeros(len(samples))
        self._done: list[NDArray[np.int64]] = []
        self._due: list[NDArray[np.int64]] = []
        self._tally = LossTally()
        self._threshold, self._mass_left_out = float("nan"), 0.0
        self._first: Snapshot | None = None
        self._seen: set[int] = set()

    def add(self, saved: Snapshot) -> None:
        first = self._first = self._first or saved
        moment, moment_of_first = (
            (snapshot.epoch, snapshot.steps, snapshot.is_over, snapshot.samples.step)
            for snapshot in (saved, first)
        )
        if moment != moment_of_first or not _same_history(saved.history, first.history):
            raise StateError(
                "the states are of different times or runs: one was saved at epoch "
                f"{saved.epoch}, after {saved.steps} samples on each of {saved.samples.step} "
                f"ranks, another at epoch {first.epoch}, after {first.steps} on each of "
                f"{first.samples.step}; pass those that all ranks have saved at one moment"
            )
        if saved.samples.first in self._seen:
            raise StateError(f"the states hold that of rank {saved.samples.first} twice")
        self._seen.add(saved.samples.first)
        source = np.arange(len(saved.samples))
        rows = self._samples.rows(saved.samples.ids(source).astype(np.int64))
        self._scores[rows[rows >= 0]] = saved.scores[rows >= 0]
        for name, values in saved.memory.items():
            self._memory[name][rows[rows >= 0]] = values[rows >= 0]
        if saved.plan is not None and saved.position > 0:
            order = saved.plan.order
            mine = rows[order]
            self._weights[mine[mine >= 0]] = saved.plan.selection.weights_of(order[mine >= 0])
            self._threshold = saved.plan.threshold
            part_of_all = len(saved.samples) / saved.samples.dataset_size
            self._mass_left_out += saved.plan.selection.mass_left_out * part_of_all
            for part, into in (
                (mine[: saved.position], self._done),
                (mine[saved.position :], self._due),
            ):
                into.append(part[part >= 0])
        if self._samples.first == 0:  # what has been trained so far is counted once
            for name, value in dataclasses.asdict(saved.tally).items():
                setattr(self._tally, name, getattr(self._tally, name) + value)

    def snapshot(self) -> Snapshot:
        first = self._first
        if first is None or self._seen != set(range(first.samples.step)):
            missing = sorted(set(range(first.samples.step)) - self._seen) if first else "all"
            raise StateError(
                f"the state of every rank is needed, but that of {missing} is missing; save "
                "pruner.state_dict() on every rank and pass all of them to load_state_dict"
            )
        plan, position = None, 0
        if self._done:
            done = np.concatenate(self._done)
            order = np.concatenate([done, *self._due])
            selection = Selection(self._weights, None, self._threshold, self._mass_left_out)
            plan = EpochPlan.build(
                first.epoch,
                selection,
                order,
                total=len(self._samples),
                samples=self._samples,
                own_order=True,
            )
            position = len(done)
        return Snapshot(
            first.epoch,
            position,
            first.steps * first.samples.step / self._samples.step,
            first.is_over,
            first.batch_size,
            self._scores,
            nothing_of(len(self._scores)),  # which were others
            self._memory,
            plan,
            self._tally,
            first.history,
            self._samples,
        )


def _same_history(one: list[EpochRecord], other: list[EpochRecord]) -> bool:
    """Whether they are of one run; under a budget each rank has had thresholds of its own."""
    first, second = (
        [dataclasses.replace(r, threshold=0.0) for r in records] for records in (one, other)
    )
    return repr(first) == repr(second)  # NaN equals NaN
