"""The loss distribution before a few epochs, and how often each sample was pruned.

All of it is taken between epochs, outside the clock.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from infobatch._core.budget import pruned_epochs
from infobatch._core.plan import EpochPlan
from infobatch.lab.run.results import Histogram, Observations, PrunedSample
from infobatch.lab.tasks.base.data import TaskData

_BINS = 40
_SNAPSHOTS = 4
_SAMPLES = 24


class Observer:
    """Watches the plans of one run, epoch by epoch.

    Args:
        epochs: of the run.
        delta: says in which epochs pruning is on; the snapshots are spread over them.
        dataset_size: training samples.
    """

    def __init__(self, epochs: int, delta: float, dataset_size: int) -> None:
        pruned = pruned_epochs(epochs, delta, warmup_epochs=1)
        steps = range(_SNAPSHOTS) if pruned else ()
        self._epochs = {pruned[step * (len(pruned) - 1) // (_SNAPSHOTS - 1)] for step in steps}
        self._histograms: list[Histogram] = []
        self._times_pruned = torch.zeros(dataset_size, dtype=torch.int32)

    def before_epoch(self, plan: EpochPlan, scores: Tensor) -> None:
        """Look at the plan of the epoch that is about to run, and the scores behind it."""
        kept = torch.zeros(len(self._times_pruned), dtype=torch.bool)
        kept[plan.indices] = True
        self._times_pruned += ~kept
        if plan.epoch in self._epochs and math.isfinite(plan.threshold):
            self._histograms.append(_histogram(scores, plan.epoch, plan.threshold))

    def observations(self, data: TaskData, scores: Tensor) -> Observations:
        """What was seen, with the samples that stand out by their final scores.

        Among samples pruned equally often the easiest stand for the most pruned, and the hardest
        for the never pruned.
        """
        if not self._histograms:
            return Observations()
        score = torch.nan_to_num(scores, nan=math.inf)
        easiest = torch.argsort(score, stable=True)
        by_times = torch.argsort(self._times_pruned[easiest], stable=True, descending=True)
        most = easiest[by_times][:_SAMPLES]
        hardest = easiest.flip(0)
        never = hardest[self._times_pruned[hardest] == 0][:_SAMPLES]
        return Observations(
            self._histograms, self._describe(most, data), self._describe(never, data)
        )

    def _describe(self, indices: Tensor, data: TaskData) -> list[PrunedSample]:
        return [
            PrunedSample(index, data.name_of(index), int(self._times_pruned[index]))
            for index in indices.tolist()
        ]

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {
            "times_pruned": self._times_pruned,
            "histograms": [vars(histogram) for histogram in self._histograms],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._times_pruned = state["times_pruned"]
        self._histograms = [Histogram(**entries) for entries in state["histograms"]]


def _histogram(scores: Tensor, epoch: int, threshold: float) -> Histogram:
    """Forty bins from the smallest score to the 99th percentile; what lies above is in the last."""
    finite = scores[torch.isfinite(scores)].double().sort().values
    low = float(finite[0])
    high = max(float(finite[int(0.99 * (len(finite) - 1))]), threshold, low + 1e-6)
    counts = torch.histc(finite.clamp(max=high), bins=_BINS, min=low, max=high)
    return Histogram(epoch, low, high, [int(count) for count in counts], threshold)
