"""Greedy maximisation of submodular functions on a similarity matrix."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray


def facility_location(similarity: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """Maximise sum_i max_{j chosen} similarity[i, j]: lazy greedy, (1 - 1/e) of the optimum.

    Args:
        similarity: (M, M), not negative.
        keep: how many to choose.

    Returns:
        (keep,) columns in the order in which they were chosen.
    """
    columns = np.asfortranarray(similarity)
    best = np.zeros(len(columns), dtype=np.float32)
    heap = [(-float(gain), j) for j, gain in enumerate(columns.sum(axis=0, dtype=np.float64))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < keep:
        _, j = heapq.heappop(heap)
        gain = float(np.maximum(columns[:, j] - best, 0.0).sum(dtype=np.float64))
        if heap and gain < -heap[0][0]:  # gains only shrink, so an old one is an upper bound
            heapq.heappush(heap, (-gain, j))
        else:
            chosen.append(j)
            np.maximum(best, columns[:, j], out=best)
    return np.array(chosen, dtype=np.int64)


def graph_cut(similarity: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """Maximise sum of similarities to what is not chosen, minus those among the chosen; greedy.

    Args:
        similarity: (M, M), symmetric.
        keep: how many to choose.

    Returns:
        (keep,) columns in the order in which they were chosen.
    """
    gains = similarity.sum(axis=0, dtype=np.float64)
    free = np.ones(len(similarity), dtype=bool)
    chosen = np.empty(keep, dtype=np.int64)
    for place in range(keep):
        best = int(np.argmax(np.where(free, gains, -np.inf)))
        chosen[place], free[best] = best, False
        gains -= 2.0 * similarity[:, best]
    return chosen
