"""Importance sampling by a bound of the gradient norm (arXiv 1803.00942)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.scores import FloatArray
from infobatch._core.validation import check_fraction
from infobatch.policies.batch import BatchPolicy, BatchSelection


@dataclass(frozen=True)
class ImportanceSampling(BatchPolicy):
    """Draw from a batch in proportion to a bound of the gradient norm, with the inverse as weight.

    Draws with replacement, p_i = score_i / sum, weight 1 / (B p_i): unbiased for the batch's mean.
    Pass as scores the norm of the gradient at the logits, ||softmax - onehot|| for cross-entropy.

    Source: Katharopoulos and Fleuret, Not All Samples Are Created Equal: Deep Learning with
    Importance Sampling, ICML 2018, arXiv 1803.00942.

    Attributes:
        uniform: part of the probability that is uniform, in [0, 1], which bounds the weights by
            1 / uniform. The method has 0; then a sample with score 0 is never drawn.
    """

    uniform: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "uniform", check_fraction("uniform", self.uniform))

    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Draw with replacement."""
        size = len(scores)
        bounds = np.maximum(scores.astype(np.float64), 0.0)
        total = bounds.sum()
        chances = bounds / total if total > 0 else np.full(size, 1.0 / size)
        chances = (1.0 - self.uniform) * chances + self.uniform / size
        drawn = np.sort(rng.choice(size, size=keep, replace=True, p=chances / chances.sum()))
        return BatchSelection(drawn.astype(np.int64), 1.0 / (size * chances[drawn]))
