"""Random thinning of a pool of samples: exact in count and exact in total weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
    if members == 0:
        return np.zeros_like(pool), 1.0
    keep = min(members, max(1, int(keep_ratio * members + 0.5)))
    drop = members - keep
    if drop == 0:
        return np.zeros_like(pool), 1.0
    coins = rng.integers(0, 1 << 16, size=len(pool), dtype=np.uint16)
    dropped: NDArray[np.bool_] = coins < np.uint16(min((1 << 16) - 1, (drop << 16) // members))
    dropped &= pool
    surplus = int(np.count_nonzero(dropped)) - drop
    if surplus:
        candidates = np.flatnonzero(dropped if surplus > 0 else pool & ~dropped)
        flip = rng.choice(len(candidates), size=abs(surplus), replace=False, shuffle=False)
        dropped[candidates[flip]] = surplus < 0
    return dropped, members / keep
