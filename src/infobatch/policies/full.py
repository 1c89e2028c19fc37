"""Full data: what everything is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import IgnoresScores, Selection
from infobatch._core.scores import FloatArray


@dataclass(frozen=True)
class FullData(IgnoresScores):
    """Keep every sample in every epoch, weight 1: plain shuffled training."""

    def select(self, scores: FloatArray, epoch: int, rng: np.random.Generator) -> Selection:
        """Select all samples."""
        return Selection.full(len(scores))
