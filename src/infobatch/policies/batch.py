"""In-batch policies: those that choose within a batch, after a forward pass over all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.scores import FloatArray

FloatVector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """What of a batch is trained on.

    Attributes:
        positions: (K,) int64 places in the batch, ascending; may repeat where the policy draws
            with replacement.
        weights: (K,) float64, positive; the step's loss is mean(weights * losses[positions]).
    """

    positions: NDArray[np.int64]
    weights: FloatVector


class BatchPolicy(ABC):
    """Chooses the samples of a batch that are worth a backward pass. See `BatchPruner`."""

    @property
    def columns(self) -> Mapping[str, float]:
        """What it remembers of each sample, by name, and its first value; for most nothing."""
        return {}

    @abstractmethod
    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Choose from a batch.

        Args:
            scores: (B,) float32, finite: losses, or what the user ranks by.
            memory: (B,) of each column, for the samples of this batch; to be written to.
            keep: how many to choose, 1 to B.
            rng: a generator that depends on the run's seed and on the step alone.
        """


def weighted_draw(chances: FloatVector, keep: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`keep` distinct places, drawn one after the other in proportion to (B,) chances; ascending.

    Where fewer than `keep` chances are positive, the others are drawn uniformly.
    """
    total = chances.sum()
    positive = np.flatnonzero(chances > 0)
    if not np.isfinite(total) or len(positive) <= keep:
        others = np.setdiff1d(np.arange(len(chances)), positive)
        more = rng.choice(others, size=keep - len(positive), replace=False)
        return np.sort(np.concatenate([positive, more])).astype(np.int64)
    drawn = rng.choice(len(chances), size=keep, replace=False, p=chances / total)
    return np.sort(drawn).astype(np.int64)
