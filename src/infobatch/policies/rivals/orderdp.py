"""OrderDP: of a random pool, the samples with the highest loss (ICLR 2026, arXiv 2606.08574)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import Selection
from infobatch._core.scores import FloatArray
from infobatch._core.thinning import descending, kept_only, lowest, rounded, thin_to
from infobatch._core.validation import check_fraction


@dataclass(frozen=True)
class OrderedSubset:
    """Draw a uniform pool of s samples, and keep the q of them with the highest stale loss.

    With a given number to keep, q is that number and s is q over the same ratio, at most N.

    Biased towards hard samples, by design: the expectation over pools is a smoothed
    ranking loss. Not rescaled.

    Attributes:
        pool_ratio: s / N, in (0, 1].
        top_ratio: q / s, in (0, 1].
    """

    pool_ratio: float = 0.5
    top_ratio: float = 0.6

    def __post_init__(self) -> None:
        for name in ("pool_ratio", "top_ratio"):
            value = check_fraction(name, getattr(self, name))
            if value == 0.0:
                raise ValueError(f"{name} must be above 0, got {value}")
            object.__setattr__(self, name, value)

    def select(self, scores: FloatArray, epoch: int, rng: np.random.Generator) -> Selection:
        """Keep the top of a pool."""
        pool = rounded(self.pool_ratio, len(scores))
        return self._top(scores, pool, rounded(self.top_ratio, pool), rng)

    def select_exactly(
        self, scores: FloatArray, keep: int, epoch: int, rng: np.random.Generator
    ) -> Selection:
        """Keep the top `keep` of a pool that is larger by the method's own ratio."""
        pool = min(len(scores), int(keep / self.top_ratio + 0.5))
        return self._top(scores, pool, keep, rng)

    def min_keep(self, num_samples: int) -> int:
        """One."""
        return 1

    @staticmethod
    def _top(scores: FloatArray, pool: int, keep: int, rng: np.random.Generator) -> Selection:
        outside, _ = thin_to(np.ones(len(scores), dtype=bool), pool, rng)
        keys = np.where(outside, np.float32(np.inf), descending(scores))
        kept, _ = lowest(keys, keep, rng)
        return kept_only(kept)
