"""Selective-Backprop: backpropagate what ranks high in its batch (arXiv 1910.00762)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.scores import FloatArray
from infobatch.policies.batch import BatchPolicy, BatchSelection, weighted_draw


@dataclass(frozen=True)
class SelectiveBackprop(BatchPolicy):
    """Backpropagate the samples of a batch whose loss ranks high.

    A sample at the fraction c of the batch's losses is drawn with a chance in proportion to
    c^(1/keep - 1), with `keep` the fraction that is to be kept; exactly so many are drawn, as in
    MosaicML Composer. Weight 1: biased towards hard samples.

    Source: Jiang et al., Accelerating Deep Learning by Focusing on the Biggest Losers, 2019,
    arXiv 1910.00762.
    """

    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Draw by rank."""
        size = len(scores)
        if keep == size:
            return BatchSelection(np.arange(size), np.ones(size))
        ranks = np.empty(size)
        ranks[np.argsort(scores, kind="stable")] = np.arange(1, size + 1)
        chances = (ranks / size) ** (size / keep - 1.0)
        return BatchSelection(weighted_draw(chances, keep, rng), np.ones(keep))
