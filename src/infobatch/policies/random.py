"""Random*: a fresh random subset each epoch, the ablation partner of every selective policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Policy, Request
from infobatch._core.scores import FloatArray
from infobatch._core.selection import Selection
from infobatch._core.thinning import thin, thin_to
from infobatch._core.validation import check_fraction


@dataclass(frozen=True)
class RandomSubset(Policy):
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

    def select(self, request: Request) -> Selection:
        """Select a fresh random subset of all samples."""
        everything = np.ones(len(request), dtype=bool)
        if request.keep is None:
            dropped, weight = thin(everything, 1.0 - self.prune_ratio, request.rng)
        else:
            dropped, weight = thin_to(everything, request.keep, request.rng)
        return Selection.of(~dropped, weight if self.rescale else 1.0)

    def summarise(self, scores: FloatArray) -> NDArray[np.float64]:
        """It looks at no scores."""
        return np.empty(0)
