"""Pruned epochs of whole batches: what a policy keeps, rounded without bias."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infobatch._core.selection import Selection
from infobatch._core.thinning import thin_to


@dataclass(frozen=True)
class Batches:
    """Numbers of samples that make whole batches.

    Attributes:
        size: of a batch of all ranks together, at least 1.
        least: the smallest number that may be kept.
    """

    size: int
    least: int = 1

    def candidates(self, kept: int, total: int) -> list[int]:
        """Whole batches near `kept`, and all of `total`, the nearest first.

        All samples are what an epoch without pruning has, rest and all. Where so few are kept that
        whole batches would be more than may be, the number stays as it is.
        """
        lowest = max(1, math.ceil(self.least / self.size)) * self.size
        highest = total // self.size * self.size
        if kept < lowest or lowest > highest:
            return [min(max(kept, self.least), total)]
        below = kept // self.size * self.size
        near = {min(max(n, lowest), highest) for n in (below, below + self.size)} | {total}
        return sorted(near, key=lambda number: (abs(number - kept), number))

    def nearest(self, kept: int, total: int) -> int:
        """The first of the candidates."""
        return self.candidates(kept, total)[0]


def to_whole_batches(selection: Selection, batch: int, rng: np.random.Generator) -> Selection:
    """The same selection with so many kept that they make whole batches.

    Where one pool of samples was thinned (M members, of which k are kept and weigh M / k), another
    k' of it are kept and weigh M / k'. So counts stay exact, and E[weight * kept] = 1 for every
    member; where no weight that is at most half as large again makes whole batches, all samples are
    kept. A selection of another kind loses a random part of its rescaled samples, and the rest of
    them weigh as much more, by half at most; where there are too few of them, or none, it loses
    less than a batch of all that it keeps.

    Args:
        selection: of a policy.
        batch: samples in a batch of all ranks together.
        rng: source of the draws.
    """
    kept, total = selection.num_kept, len(selection)
    if kept in (0, total) or kept % batch == 0 or kept < batch:
        return selection
    weights, occurring = selection.weights, selection.occurring
    heavy = np.unique(occurring[occurring > 1.0])
    bound = 1.0 if len(heavy) else 0.0
    rescaled = selection.where(weights > bound)
    pool, size = rescaled, int(np.count_nonzero(rescaled))
    is_one_pool = len(heavy) == 1 and round(size * float(heavy[0])) == size + total - kept
    if is_one_pool:
        pool = rescaled | selection.where(weights == 0.0)
    members = int(np.count_nonzero(pool))
    for number in Batches(batch).candidates(kept, total):
        left = size + number - kept
        if not size * 2 / 3 <= left <= members:
            continue
        if left == members and is_one_pool:
            break
        return _with(selection, bound, rescaled, pool, left, rng)
    if is_one_pool:
        return Selection.full(total, threshold=selection.threshold)
    kept_at_all = selection.where(weights > 0.0)
    return _with(selection, 0.0, kept_at_all, kept_at_all, kept // batch * batch, rng)


def _with(
    selection: Selection,
    bound: float,
    rescaled: NDArray[np.bool_],
    pool: NDArray[np.bool_],
    left: int,
    rng: np.random.Generator,
) -> Selection:
    """The selection with so many `left` of a pool.

    Of that pool those are kept so far, and weigh more or less now, whose weight is above `bound`.
    """
    size = int(np.count_nonzero(rescaled))
    if left <= size:
        dropped, factor = thin_to(rescaled, left, rng)
    else:
        unkept = pool & ~rescaled
        dropped, _ = thin_to(unkept, left - size, rng)
        factor = size / left
    added = pool & ~rescaled & ~dropped if left > size else np.zeros_like(pool)
    if selection.level is None:
        weights = selection.weights
        new = np.where(rescaled, weights * factor, weights)
        new[dropped] = 0.0
        new[added] = float(weights.max()) * factor
        return replace(selection, weights=new)
    table = selection.weights.astype(np.float64)
    is_rescaled = (table > bound) & (selection.sizes > 0)
    table[is_rescaled] *= factor
    level = selection.level.copy()
    np.copyto(level, np.flatnonzero(is_rescaled)[0].astype(np.uint8), where=added)
    if left < size:
        if not (table == 0.0).any():
            table = np.append(table, 0.0)
        np.copyto(level, np.flatnonzero(table == 0.0)[0].astype(np.uint8), where=dropped)
    return replace(selection, weights=table, level=level)
