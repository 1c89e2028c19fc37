"""OrderDP: of a random pool, the samples with the highest loss (ICLR 2026, arXiv 2606.08574)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import Policy, Request
from infobatch._core.selection import Selection
from infobatch._core.thinning import descending, lowest, rounded, thin_to
from infobatch._core.validation import check_fraction


@dataclass(frozen=True)
class OrderDP(Policy):
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

    def select(self, request: Request) -> Selection:
        """Keep the top of a pool; with `keep`, of one that is larger by the method's own ratio."""
        scores, num_samples, keep = request.scores, len(request), request.keep
        if keep is None:
            pool = rounded(self.pool_ratio, num_samples)
            keep = rounded(self.top_ratio, pool)
        else:
            pool = min(num_samples, int(keep / self.top_ratio + 0.5))
        outside, _ = thin_to(np.ones(num_samples, dtype=bool), pool, request.rng)
        keys = np.where(outside, np.float32(np.inf), descending(scores))
        kept, _ = lowest(keys, keep, request.rng)
        return Selection.of(kept)
