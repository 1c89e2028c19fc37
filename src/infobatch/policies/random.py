"""Random*: a fresh random subset each epoch, the ablation partner of every selective policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import IgnoresScores, Selection
from infobatch._core.scores import FloatArray
from infobatch._core.thinning import kept_only, thin, thin_to
from infobatch._core.validation import check_fraction


@dataclass(frozen=True)
class RandomSubset(IgnoresScores):
    """Drop a uniformly random part of the data, whatever the scores.

    The control "Random*" of Qin et al. 2024 (arXiv 2303.04947, table 1 and the ablation): with
    `rescale` each kept loss is multiplied by N / kept, so that the expected gradient is that of
    the full data.

    Attributes:
        prune_ratio: fraction of all samples left out of each pruned epoch, in [0, 1).
        rescale: multiply the losses of what is kept by 1 / (1 - prune_ratio).
    """

    prune_ratio: float = 0.5
    rescale: bool = True

    def __post_init__(self) -> None:
        prune_ratio = check_fraction("prune_ratio", self.prune_ratio, below_one=True)
        object.__setattr__(self, "prune_ratio", prune_ratio)  # 0 and 0.0 are one setting

    def select(self, scores: FloatArray, epoch: int, rng: np.random.Generator) -> Selection:
        """Select a fresh random subset of all samples."""
        pool = np.ones(len(scores), dtype=bool)
        dropped, weight = thin(pool, 1.0 - self.prune_ratio, rng)
        table = np.array([weight if self.rescale else 1.0, 0.0])
        return Selection(table, dropped.view(np.uint8))

    def select_exactly(
        self, scores: FloatArray, keep: int, epoch: int, rng: np.random.Generator
    ) -> Selection:
        """Select a fresh random subset of that size."""
        dropped, weight = thin_to(np.ones(len(scores), dtype=bool), keep, rng)
        return kept_only(~dropped, weight if self.rescale else 1.0)

    def min_keep(self, num_samples: int) -> int:
        """One."""
        return 1
