"""The epoch plan: the order of an epoch's samples and their weights, fixed before it starts.

Pure functions of (selection, seed, epoch): every process computes the same plan without talking,
and a resumed run computes it again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infobatch._core.selection import Selection

IndexArray = NDArray[np.signedinteger[Any]]  # int32 or int64

_ORDER_STREAM, _SELECTION_STREAM = 0, 1
_CHUNK = 1 << 14


def selection_rng(seed: int, epoch: int, part: int = 0) -> np.random.Generator:
    """The generator that a policy draws from in one epoch."""
    return _generator(seed, epoch, _SELECTION_STREAM, [0, 0, 0, part])


def rest_rng(seed: int, epoch: int, part: int = 0) -> np.random.Generator:
    """The generator for what rounds an epoch to whole batches."""
    return _generator(seed, epoch, _SELECTION_STREAM, [0, 0, 1, part])


def shuffled(num_rows: int, seed: int, epoch: int, part: int = 0) -> NDArray[np.int64]:
    """The permutation of all rows for one epoch.

    It does not depend on the policy: policies that share a seed visit what they keep in the
    same order ("permute first, then filter"), which makes comparisons between them paired.
    """
    return _generator(seed, epoch, _ORDER_STREAM, [0, 0, 0, part]).permutation(num_rows)


def _generator(seed: int, epoch: int, stream: int, counter: list[int]) -> np.random.Generator:
    # Philox is counter-based: its key, here (seed, epoch, stream), and the highest words of its
    # counter name an independent stream, so nothing has to be carried from epoch to epoch or saved.
    key = np.array([seed, 2 * epoch + stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(counter, np.uint64)))


def order_dtype(num_rows: int) -> type[np.signedinteger[Any]]:
    """The smallest integer type in which an order of that many rows can be written."""
    return np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64


@dataclass(frozen=True)
class Rows:
    """Which samples the rows of the score table are: numbers first, first + step, ... below N.

    All samples of the data set, unless this process has the scores of a part of them alone.

    Attributes:
        first, step: 0 <= first < step; (0, 1) for all samples.
        dataset_size: N.
    """

    first: int
    step: int
    dataset_size: int

    def __len__(self) -> int:
        return len(range(self.first, self.dataset_size, self.step))

    @property
    def is_all(self) -> bool:
        """Whether every sample has a row."""
        return self.step == 1

    def ids(self, rows: IndexArray) -> IndexArray:
        """The data set's numbers of the samples in these rows."""
        return rows if self.is_all else rows.astype(np.int64) * self.step + self.first

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inverse of `ids`; -1 for samples that have no row."""
        if self.is_all:
            return ids
        return np.where(ids % self.step == self.first, ids // self.step, -1)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The samples of one epoch in the order of training, and their rescale weights.

    Attributes:
        epoch: 0-based number of the epoch.
        order: (S,) rows of the score table, int32 where that can name every row; use `indices`
            outside the library.
        selection: which samples were kept and with what weight.
        total: how many samples the epoch would have without pruning.
        mean_weight: mean weight over the plan: total / S where the selection is unbiased.
        samples: which samples the rows are.
        own_order: the order is not that of `shuffled`, and cannot be made again.
    """

    epoch: int
    order: IndexArray
    selection: Selection
    total: int
    mean_weight: float
    samples: Rows
    own_order: bool = False

    @classmethod
    def build(
        cls,
        epoch: int,
        selection: Selection,
        unpruned: IndexArray,
        *,
        total: int | None = None,
        samples: Rows | None = None,
        own_order: bool = False,
    ) -> EpochPlan:
        """Plan an epoch: leave the pruned samples out of the order `unpruned`.

        `total` is given where they have been left out before: in a saved plan.
        """
        total = len(unpruned) if total is None else total
        samples = Rows(0, 1, len(selection)) if samples is None else samples
        dtype = order_dtype(len(selection))
        if selection.is_full:
            order = unpruned.astype(dtype, copy=False)
            return cls(epoch, order, selection, total, 1.0, samples, own_order)
        pieces: list[IndexArray] = [np.empty(0, dtype)]
        weight_sum = 0.0
        for start in range(0, len(unpruned), _CHUNK):  # in pieces that stay in the cache
            piece = unpruned[start : start + _CHUNK]
            weights = selection.weights_of(piece)
            pieces.append(piece.compress(weights > 0).astype(dtype, copy=False))
            weight_sum += float(weights.sum())
        order = np.concatenate(pieces)
        mean_weight = weight_sum / max(1, len(order))
        return cls(epoch, order, selection, total, mean_weight, samples, own_order)

    def __len__(self) -> int:
        return len(self.order)

    def with_first(self, rows: IndexArray) -> EpochPlan:
        """The same plan in another order: these rows first, as often as they stand here."""
        came = np.bincount(rows, minlength=len(self.selection))
        by_row = np.argsort(self.order, kind="stable")
        ordered = self.order[by_row]
        nth = np.empty(len(ordered), dtype=np.int64)  # how often the row stands before
        nth[by_row] = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        rest = self.order[nth >= came[self.order]]
        order = np.concatenate([rows, rest]).astype(self.order.dtype)
        return replace(self, order=order, own_order=True)

    def in_whole_batches(self, batch: int, rng: np.random.Generator) -> EpochPlan:
        """The same plan without a random part of its rescaled samples, less than a batch of them.

        The others of them weigh as much more, by half at most; where there are too few of them, or
        none, a part of all is left out. For orders in which samples repeat, where no selection of
        samples can make whole batches.
        """
        surplus = len(self) % batch
        if surplus == 0:
            return self
        weights, table = self.selection.weights_of(self.order), self.selection.weights
        above = 1.0 if surplus * 3 <= np.count_nonzero(weights > 1.0) else 0.0
        rescaled, heavier = np.flatnonzero(weights > above), table > above
        dropped = rng.choice(rescaled, surplus, replace=False, shuffle=False)
        factor = len(rescaled) / (len(rescaled) - surplus)
        selection = replace(self.selection, weights=np.where(heavier, table * factor, table))
        order = np.delete(self.order, dropped)
        mean = float(selection.weights_of(order).sum()) / len(order)
        return replace(self, order=order, selection=selection, mean_weight=mean)

    @property
    def indices(self) -> torch.Tensor:
        """(S,) int64: the sample indices in the order in which they are trained on; a copy."""
        return torch.from_numpy(self.samples.ids(self.order).astype(np.int64))

    @property
    def weights(self) -> torch.Tensor:
        """(S,) float64: the rescale weight of each planned sample, in plan order; a copy."""
        return torch.from_numpy(self.selection.weights_of(self.order))

    @property
    def pruned(self) -> torch.Tensor:
        """(N - S,) int64: the samples that the policy has left out of this epoch, ascending."""
        rows = np.arange(len(self.selection))
        left_out = rows[self.selection.weights_of(rows) == 0]
        return torch.from_numpy(self.samples.ids(left_out).astype(np.int64))

    @property
    def threshold(self) -> float:
        """The score below which samples may be pruned; NaN if none are, and within groups."""
        return self.selection.threshold
