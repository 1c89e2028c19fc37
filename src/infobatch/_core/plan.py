"""The epoch plan: the order of an epoch's samples and their weights, fixed before it starts.

Pure functions of (selection, seed, epoch): every rank of a distributed run computes the same plan
without talking, and a resumed run computes it again. A `Share` is what one rank trains on of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infobatch._core.policy import Selection

IndexArray = NDArray[np.signedinteger[Any]]  # int32 or int64

_ORDER_STREAM, _SELECTION_STREAM = 0, 1
_CHUNK = 1 << 14


def selection_rng(seed: int, epoch: int, shard: int = 0) -> np.random.Generator:
    """The generator that a policy draws from in one epoch."""
    return _generator(seed, epoch, _SELECTION_STREAM, shard)


def rest_rng(seed: int, epoch: int, shard: int = 0) -> np.random.Generator:
    """The generator from which is drawn what makes an epoch one of whole batches."""
    drawn_from = np.random.Philox(
        key=_key(seed, epoch, _SELECTION_STREAM), counter=[0, 0, 1, shard]
    )
    return np.random.Generator(drawn_from)


def shuffled(num_samples: int, seed: int, epoch: int, shard: int = 0) -> NDArray[np.int64]:
    """The permutation of the whole data set, or of one shard of it, for one epoch.

    It does not depend on the policy: policies that share a seed visit what they keep in the
    same order ("permute first, then filter"), which makes comparisons between them paired.
    """
    return _generator(seed, epoch, _ORDER_STREAM, shard).permutation(num_samples)


def _generator(seed: int, epoch: int, stream: int, shard: int) -> np.random.Generator:
    # Philox is counter-based: its key, here (seed, epoch, stream), and the highest word of its
    # counter, the shard, name an independent stream, so nothing has to be carried from epoch to
    # epoch or saved.
    key = _key(seed, epoch, stream)
    counter = np.array([0, 0, 0, shard], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _key(seed: int, epoch: int, stream: int) -> NDArray[np.uint64]:
    return np.array([seed, 2 * epoch + stream], dtype=np.uint64)


def order_dtype(num_rows: int) -> type[np.signedinteger[Any]]:
    """The smallest integer type in which an order of that many rows can be written."""
    return np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64


@dataclass(frozen=True)
class Shard:
    """The samples that one rank owns for good: numbers index, index + count, ... of a data set.

    Attributes:
        index, count: this shard's number, 0 to count - 1, and how many there are.
        dataset_size: number N of samples of the whole data set.
    """

    index: int
    count: int
    dataset_size: int

    def __len__(self) -> int:
        return len(range(self.index, self.dataset_size, self.count))

    def ids(self, rows: IndexArray) -> IndexArray:
        """The data set's numbers of samples that are given by their rows in the shard."""
        return rows if self.count == 1 else rows.astype(np.int64) * self.count + self.index

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inverse of `ids`; -1 for samples that belong to other shards."""
        if self.count == 1:
            return ids
        return np.where(ids % self.count == self.index, ids // self.count, -1)


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
        shard: the samples that it plans: all of them, or those that this rank owns.
        own_order: the order is not that of `shuffled`, and cannot be made again.
    """

    epoch: int
    order: IndexArray
    selection: Selection
    total: int
    mean_weight: float
    shard: Shard
    own_order: bool = False

    @classmethod
    def build(
        cls,
        epoch: int,
        selection: Selection,
        unpruned: NDArray[np.int64],
        *,
        total: int | None = None,
        shard: Shard | None = None,
        own_order: bool = False,
    ) -> EpochPlan:
        """Plan an epoch: leave the pruned samples out of the order `unpruned`.

        `total` is given where they have been left out before: in a saved plan.
        """
        total = len(unpruned) if total is None else total
        shard = Shard(0, 1, len(selection)) if shard is None else shard
        dtype = order_dtype(len(selection))
        if selection.is_full:
            order = unpruned.astype(dtype, copy=False)
            return cls(epoch, order, selection, total, 1.0, shard, own_order)
        pieces: list[IndexArray] = [np.empty(0, dtype)]
        weight_sum = 0.0
        for start in range(0, len(unpruned), _CHUNK):  # in pieces that stay in the cache
            piece = unpruned[start : start + _CHUNK]
            weights = selection.weights_of(piece)
            pieces.append(piece.compress(weights > 0).astype(dtype, copy=False))
            weight_sum += float(weights.sum())
        order = np.concatenate(pieces)
        mean_weight = weight_sum / max(1, len(order))
        return cls(epoch, order, selection, total, mean_weight, shard, own_order)

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
        return torch.from_numpy(self.shard.ids(self.order).astype(np.int64))

    @property
    def weights(self) -> torch.Tensor:
        """(S,) float64: the rescale weight of each planned sample, in plan order; a copy."""
        return torch.from_numpy(self.selection.weights_of(self.order))

    @property
    def pruned(self) -> torch.Tensor:
        """(N - S,) int64: the samples that the policy has left out of this epoch, ascending."""
        rows = np.arange(len(self.selection))
        left_out = rows[self.selection.weights_of(rows) == 0]
        return torch.from_numpy(self.shard.ids(left_out).astype(np.int64))

    @property
    def threshold(self) -> float:
        """The score below which samples may be pruned; NaN if none are, and within groups."""
        return self.selection.threshold


@dataclass(frozen=True, eq=False)
class Share:
    """What one rank trains on of an epoch plan, from some plan position on.

    The plan is the same on all W ranks, and rank r takes positions first + r, first + r + W, ...
    Or each rank has a plan of the samples that it owns, and takes all of it. Either way every
    rank gets equally many samples: one that has fewer trains on samples of the plan a second
    time, with weight 0, and their losses are not recorded. A step is the mean over the samples
    that count, as in one process: see `divisor`.

    Attributes:
        plan: the plan.
        first: plan position of this share's first sample.
        stride: W, or 1 for a plan of the rank's own.
        counts: (W,) samples of each rank that count, padding not included.
        rank: 0 to W - 1.
        before: how many samples a rank has had of this epoch before this share; alike on all ranks.
    """

    plan: EpochPlan
    first: int
    stride: int
    counts: NDArray[np.int64]
    rank: int
    before: float = 0.0

    @classmethod
    def of_common_plan(cls, plan: EpochPlan, start: int, rank: int, world_size: int) -> Share:
        """The share of a rank where all ranks have the same plan."""
        left = len(plan) - start
        counts = (left - np.arange(world_size) + world_size - 1) // world_size
        counts = np.maximum(counts, 0)
        return cls(plan, start + rank, world_size, counts, rank, start / world_size)

    @classmethod
    def of_own_plan(
        cls, plan: EpochPlan, start: int, rank: int, counts: NDArray[np.int64], before: float = 0.0
    ) -> Share:
        """The share of a rank where each has a plan of its own."""
        return cls(plan, start, 1, counts, rank, before)

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _length(self) -> int:
        return int(self.counts.max())

    @cached_property
    def _unpadded(self) -> int:
        return int(self.counts.min())  # up to here no rank has padding

    @cached_property
    def own(self) -> int:
        """How many samples of this share count."""
        return int(self.counts[self.rank])

    @cached_property
    def is_one_of_several(self) -> bool:
        """Whether there are other ranks."""
        return len(self.counts) > 1

    def position(self, index: int) -> int:
        """Plan position up to which all ranks have come after `index` samples each."""
        base = self.first if self.stride == 1 else self.first - self.rank
        return min(base + index * self.stride, len(self.plan))

    def rows(self, start: int, stop: int) -> IndexArray:
        """Rows of the score table of this share's samples start to stop, padding included."""
        counted = self.counted_rows(start, stop)
        padding = stop - start - len(counted)
        if padding == 0:
            return counted
        again = self.first + np.arange(stop - padding, stop) * self.stride
        return np.concatenate([counted, self.plan.order[again % len(self.plan)]])

    def counted_rows(self, start: int, stop: int) -> IndexArray:
        """The same without padding; a view."""
        stop = max(start, min(stop, self.own))
        first = self.first + start * self.stride
        return self.plan.order[first : first + (stop - start) * self.stride : self.stride]

    def counts_of_padding(self) -> Counter[int]:
        """Of each row that is padding of this share: how often the share has it besides."""
        padding = self.rows(self.own, len(self)).tolist()
        if not padding:
            return Counter()
        own = self.counted_rows(0, self.own)
        times = Counter(own[np.isin(own, padding)].tolist())
        return Counter({row: times[row] for row in padding})

    def ids(self, start: int, stop: int) -> IndexArray:
        """The data set's numbers of this share's samples start to stop, padding included."""
        return self.plan.shard.ids(self.rows(start, stop))

    def weights(
        self, start: int, stop: int, dtype: type[np.floating[Any]] = np.float64
    ) -> NDArray[np.floating[Any]]:
        """The weights of this share's samples start to stop, 0 for padding; a copy."""
        weights = self.plan.selection.weights_of(self.counted_rows(start, stop), dtype)
        padding = stop - start - len(weights)
        return np.concatenate([weights, np.zeros(padding, dtype)]) if padding else weights

    def divisor(self, start: int, stop: int) -> float | None:
        """What the sum of a step's weighted losses is divided by; None: its length.

        The mean over ranks of (sum of weight * loss) / divisor is then the mean over all samples
        of the step that count, whatever padding some rank has.
        """
        if stop <= self._unpadded:
            return None
        counted = np.clip(self.counts - start, 0, stop - start).sum()
        return float(counted) / len(self.counts)
