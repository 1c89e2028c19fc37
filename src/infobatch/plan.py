"""The epoch plan: the order of an epoch's samples and their weights, fixed before it starts.

Pure functions of (selection, seed, epoch): every process of a run computes the same plan without
talking, and a resumed run computes it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infobatch.policies.base import Selection

IndexArray = NDArray[np.signedinteger[Any]]  # int32 or int64

_ORDER_STREAM, _SELECTION_STREAM = 0, 1
_CHUNK = 1 << 14


def selection_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator that a policy draws from in one epoch."""
    return _generator(seed, epoch, _SELECTION_STREAM)


def shuffled(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of the whole data set for one epoch.

    It does not depend on the policy: policies that share a seed visit what they keep in the
    same order ("permute first, then filter"), which makes comparisons between them paired.
    """
    return _generator(seed, epoch, _ORDER_STREAM).permutation(num_samples)


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    # Philox is counter-based: its key alone, here (seed, epoch, stream), names an independent
    # stream, so nothing has to be carried from epoch to epoch or saved.
    key = np.array([seed, 2 * epoch + stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The samples of one epoch in the order of training, and their rescale weights.

    Attributes:
        epoch: 0-based number of the epoch.
        order: (S,) sample indices, int32 where that can name every sample; use `indices`
            outside the library.
        selection: which samples were kept and with what weight.
        total: how many samples the epoch would have without pruning.
        mean_weight: mean weight over the plan: total / S where the selection is unbiased.
    """

    epoch: int
    order: IndexArray
    selection: Selection
    total: int
    mean_weight: float

    @classmethod
    def build(
        cls,
        epoch: int,
        selection: Selection,
        unpruned: NDArray[np.int64],
        *,
        total: int | None = None,
    ) -> EpochPlan:
        """Plan an epoch: leave the pruned samples out of the order `unpruned`.

        `total` is given where they have been left out before: in a saved plan.
        """
        total = len(unpruned) if total is None else total
        dtype = np.int32 if len(selection) <= np.iinfo(np.int32).max else np.int64
        if selection.is_full:
            return cls(epoch, unpruned.astype(dtype, copy=False), selection, total, 1.0)
        pieces: list[IndexArray] = []
        weight_sum = 0.0
        for start in range(0, len(unpruned), _CHUNK):  # in pieces that stay in the cache
            piece = unpruned[start : start + _CHUNK]
            weights = selection.weights_of(piece)
            pieces.append(piece.compress(weights > 0).astype(dtype, copy=False))
            weight_sum += float(weights.sum())
        order = np.concatenate(pieces)
        return cls(epoch, order, selection, total, weight_sum / max(1, len(order)))

    def __len__(self) -> int:
        return len(self.order)

    @property
    def indices(self) -> torch.Tensor:
        """(S,) int64: the sample indices in the order in which they are trained on; a copy."""
        return torch.from_numpy(self.order.astype(np.int64))

    @property
    def weights(self) -> torch.Tensor:
        """(S,) float64: the rescale weight of each planned sample, in plan order; a copy."""
        return torch.from_numpy(self.weights_between(0, len(self)))

    @property
    def threshold(self) -> float:
        """The score below which samples may be pruned; NaN in an epoch that prunes nothing."""
        return self.selection.threshold

    def weights_between(
        self, start: int, stop: int, dtype: type[np.floating[Any]] = np.float64
    ) -> NDArray[np.floating[Any]]:
        """The weights of positions start to stop; a copy."""
        return self.selection.weights_of(self.order[start:stop], dtype)
