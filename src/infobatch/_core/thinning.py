"""Random thinning of a pool of samples: exact in count and exact in total weight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.scores import FloatArray

_BLOCK = 1 << 16  # samples looked at in one go: their masks stay in the cache


def thin(
    pool: NDArray[np.bool_], keep_ratio: float, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], float]:
    """Drop a uniformly random part of a pool.

    Of the M members, k = round(keep_ratio * M), but at least one, are kept; every subset of k
    is equally likely. With weight M / k for each kept member the weights of the pool sum to M
    and E[weight * kept] = 1 for every member, whatever the rounding.

    A coin is thrown for each sample and the count is then put right by flipping randomly
    chosen members. The coins treat all members alike, and so does the flipping, so every
    subset of size k has the same probability; the coin's own bias only changes how many need
    flipping. This costs little more than one random mask.

    Args:
        pool: (N,) mask of the members.
        keep_ratio: in [0, 1].
        rng: source of the draws.

    Returns:
        dropped: (N,) mask, a subset of `pool`, with M - k members.
        weight: M / k; 1.0 for an empty pool.
    """
    members = int(np.count_nonzero(pool))
    keep = min(members, max(1, int(keep_ratio * members + 0.5)))
    return thin_to(pool, keep, rng, members=members)


def thin_to(
    pool: NDArray[np.bool_], keep: int, rng: np.random.Generator, *, members: int | None = None
) -> tuple[NDArray[np.bool_], float]:
    """Drop all but `keep` of a pool, 1 to M, drawn uniformly at random; see `thin`.

    `members` is M, where it has been counted already.
    """
    members = int(np.count_nonzero(pool)) if members is None else members
    drop = members - keep
    if drop == 0:
        return np.zeros_like(pool), 1.0
    limit = np.uint16(min((1 << 16) - 1, (drop << 16) // members))
    dropped: NDArray[np.bool_] = np.empty(len(pool), dtype=bool)
    for start in range(0, len(pool), _BLOCK):
        block = slice(start, start + _BLOCK)
        coins = rng.integers(0, 1 << 16, size=len(pool[block]), dtype=np.uint16)
        np.less(coins, limit, out=dropped[block])
        dropped[block] &= pool[block]
    surplus = int(np.count_nonzero(dropped)) - drop
    if surplus:
        _flip(dropped, pool if surplus < 0 else None, abs(surplus), rng)
    return dropped, members / keep


def _flip(
    dropped: NDArray[np.bool_],
    pool: NDArray[np.bool_] | None,
    count: int,
    rng: np.random.Generator,
) -> None:
    """Put so many of the dropped ones back, or drop so many more of the pool where it is given."""

    def candidates(number: int) -> NDArray[np.bool_]:
        block = slice(number * _BLOCK, (number + 1) * _BLOCK)
        return dropped[block] if pool is None else pool[block] & ~dropped[block]

    blocks = range(-(-len(dropped) // _BLOCK))
    ends = np.cumsum([np.count_nonzero(candidates(number)) for number in blocks])
    ranks = np.sort(rng.choice(int(ends[-1]), size=count, replace=False, shuffle=False))
    splits = np.searchsorted(ranks, ends)
    for number, first, last in zip(blocks, [0, *splits[:-1]], splits, strict=True):
        if first < last:
            before = ends[number - 1] if number else 0
            places = np.flatnonzero(candidates(number))[ranks[first:last] - before]
            dropped[number * _BLOCK + places] = pool is not None


def lowest(
    keys: NDArray[np.floating[Any]], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], float]:
    """The `count` samples with the smallest keys; among equal ones at the boundary, a random part.

    Args:
        keys: (N,) without NaN; infinity stands for samples to take last.
        count: 0 to N.
        rng: source of the draws.

    Returns:
        chosen: (N,) mask with `count` members.
        largest: the largest key among them; NaN for none.
    """
    chosen = np.zeros(len(keys), dtype=bool)
    if count == 0:
        return chosen, float("nan")
    largest = np.partition(keys, count - 1)[count - 1]
    np.less(keys, largest, out=chosen)
    missing = count - int(np.count_nonzero(chosen))
    ties = np.flatnonzero(keys == largest)
    if missing < len(ties):
        ties = rng.choice(ties, size=missing, replace=False, shuffle=False)
    chosen[ties] = True
    return chosen, float(largest)


def ascending(scores: FloatArray) -> FloatArray:
    """Scores as keys for `lowest`: what is not known comes last."""
    return np.where(np.isfinite(scores), scores, np.float32(np.inf))


def descending(scores: FloatArray) -> FloatArray:
    """Scores as keys for `lowest` that take the highest first: what is not known comes first."""
    return np.where(np.isfinite(scores), -scores, np.float32(-np.inf))


def rounded(part: float, num_samples: int) -> int:
    """round(part * num_samples), but at least 1 and at most all."""
    return min(num_samples, max(1, int(part * num_samples + 0.5)))
