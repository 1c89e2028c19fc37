"""ES, Evolved Sampling: draw by a mix of history and loss (arXiv 2509.23461)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.scores import FloatArray
from infobatch._core.validation import check_fraction
from infobatch.policies.batch import BatchPolicy, BatchSelection, weighted_draw


@dataclass(frozen=True)
class ES(BatchPolicy):
    """ES: draw a mini-batch in proportion to a weight that mixes a sample's history and its loss.

    w = b1 * s + (1 - b1) * loss and then s <- b2 * s + (1 - b2) * loss, with s = 0 at first.
    Without replacement, weight 1: biased towards hard samples.

    Source: Evolved Sampling, 2025, arXiv 2509.23461.

    Attributes:
        beta1, beta2: in [0, 1].
    """

    beta1: float = 0.2
    beta2: float = 0.9

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            object.__setattr__(self, name, check_fraction(name, getattr(self, name)))

    @property
    def columns(self) -> dict[str, float]:
        """`s`, the smoothed loss."""
        return {"s": 0.0}

    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Draw by weight, and move s of the whole batch."""
        s = memory["s"]
        weight = self.beta1 * s + (1.0 - self.beta1) * scores
        memory["s"] = (self.beta2 * s + (1.0 - self.beta2) * scores).astype(np.float32)
        drawn = weighted_draw(np.maximum(weight.astype(np.float64), 0.0), keep, rng)
        return BatchSelection(drawn, np.ones(keep))
