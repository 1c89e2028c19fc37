"""Progressive data dropout (NeurIPS 2025, arXiv 2505.22342), and its control at random."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import Policy, Request
from infobatch._core.selection import Selection
from infobatch._core.thinning import descending, lowest
from infobatch._core.validation import check_fraction


@dataclass(frozen=True)
class DataDropout(Policy):
    """Train only on samples whose class the model gives a probability below a threshold.

    DBPD there; with `at_random` SMRD: as many samples, drawn at random, by which one sees what
    their difficulty is worth. The scores have to be cross-entropies, and fresh: there a forward
    pass over all samples is made in each epoch; here `DataPruner.rescore` takes its losses. The
    last epoch is full there: `delta=(num_epochs - 1) / num_epochs`.

    Attributes:
        threshold: in [0, 1].
        at_random: keep as many at random.
    """

    threshold: float = 0.3
    at_random: bool = False

    takes_budget = False
    reads_probability = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", check_fraction("threshold", self.threshold))

    def select(self, request: Request) -> Selection:
        """Keep what is above -log(threshold), and what has no score; at least one sample."""
        scores, rng = request.scores, request.rng
        least = -math.log(self.threshold) if self.threshold > 0.0 else math.inf
        count = max(1, int(np.count_nonzero((scores > least) | ~np.isfinite(scores))))
        if self.at_random:
            kept = np.zeros(len(scores), dtype=bool)
            kept[rng.choice(len(scores), count, replace=False, shuffle=False)] = True
        else:
            kept, _ = lowest(descending(scores), count, rng)
        return Selection.of(kept, threshold=math.nan if self.at_random else least)
