"""A fixed subset: what static pruning trains on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Policy, Request
from infobatch._core.selection import Selection


@dataclass(frozen=True, eq=False)
class FixedSubset(Policy):
    """Keep the same samples, chosen beforehand, in every epoch; weight 1 or one's own.

    Use it with `warmup_epochs=0, delta=1.0`. See `infobatch.lab.coresets` for ways to choose.

    Attributes:
        indices: (K,) distinct sample indices.
        weights: (K,) positive weights, or None for 1 each.
        digest: tells subsets apart in a saved state.
    """

    indices: NDArray[np.integer] = field(repr=False)
    weights: NDArray[np.floating] | None = field(default=None, repr=False)
    digest: int = field(init=False)

    takes_budget = False

    def __post_init__(self) -> None:
        indices = np.asarray(self.indices)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer) or not len(indices):
            raise ValueError(
                "indices must be a 1-D array of at least one sample index, got "
                f"{indices.dtype} of shape {indices.shape}"
            )
        if len(np.unique(indices)) < len(indices) or indices.min() < 0:
            raise ValueError("indices must be distinct and not negative")
        weights = np.ones(1) if self.weights is None else np.asarray(self.weights, dtype=np.float64)
        if self.weights is not None and weights.shape != indices.shape:
            raise ValueError(f"weights must be one per index, got {weights.shape}")
        if not bool(np.all(np.isfinite(weights) & (weights > 0))):
            raise ValueError("weights must be positive and finite")
        digest = zlib.crc32(weights.tobytes(), zlib.crc32(indices.astype(np.int64).tobytes()))
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "weights", None if self.weights is None else weights)
        object.__setattr__(self, "digest", digest)

    def select(self, request: Request) -> Selection:
        """Select the subset."""
        if self.indices.max() >= len(request):
            raise ValueError(
                f"the subset has index {self.indices.max()}, the data set {len(request)} samples"
            )
        if self.weights is None:
            kept = np.zeros(len(request), dtype=bool)
            kept[self.indices] = True
            return Selection.of(kept)
        weights = np.zeros(len(request))
        weights[self.indices] = self.weights
        return Selection(weights)
