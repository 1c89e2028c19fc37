"""SeTa: a window of difficulty that slides from easy to hard.

Zhou et al., Scale Efficient Training for Large Datasets, CVPR 2025, arXiv 2503.13385.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Policy, Request
from infobatch._core.scores import FloatArray
from infobatch._core.selection import Selection
from infobatch._core.thinning import rounded, thin_to
from infobatch._core.validation import check_fraction, check_int

_ROUNDS = 50


@dataclass(frozen=True)
class SeTa(Policy):
    """Drop a random part, group the rest by loss, and keep a window of groups.

    The losses are put into k groups by one-dimensional k-means. The window has round(alpha * k)
    groups (4.5 is rounded to 4), and starts at group epoch mod (k - width + 1), from easy to hard,
    so that it slides and starts again. Before that a random part r of all samples is dropped;
    from delta on, only that.

    With a given number to keep, the window is the method's own, and the random part is what
    meets the number: drawn from the window, and where that is too small, from the groups above
    it and then below it.

    Biased, and not rescaled.

    Attributes:
        random_ratio: r in [0, 1).
        groups: k, at least 1. 5 in the paper.
        window: alpha in (0, 1]. 0.9 on CIFAR, 0.6 on ImageNet.
        random_from: the epoch from which on samples are only dropped at random; None: none.
    """

    random_ratio: float = 0.1
    groups: int = 5
    window: float = 0.9
    random_from: int | None = None

    def __post_init__(self) -> None:
        ratio = check_fraction("random_ratio", self.random_ratio, below_one=True)
        object.__setattr__(self, "random_ratio", ratio)
        check_int("groups", self.groups, at_least=1)
        object.__setattr__(self, "window", check_fraction("window", self.window))

    def select(self, request: Request) -> Selection:
        """Keep what lies in the window and is not dropped at random."""
        scores, num_samples = request.scores, len(request)
        rank = self._rank(scores, request.epoch)
        if request.keep is not None:
            return self._window_first(rank, request.keep, request.rng)
        keep = rounded(1.0 - self.random_ratio, num_samples)
        dropped, _ = thin_to(np.ones(num_samples, dtype=bool), keep, request.rng)
        kept = (rank == 0) & ~dropped
        return Selection.of(kept if kept.any() else ~dropped)

    @staticmethod
    def _window_first(rank: NDArray[np.int64], keep: int, rng: np.random.Generator) -> Selection:
        """Keep so many: of the window first, and then of group after group."""
        kept = np.zeros(len(rank), dtype=bool)
        for place in range(int(rank.max()) + 1):
            pool = rank == place
            size = int(np.count_nonzero(pool))
            take = min(size, keep - int(np.count_nonzero(kept)))
            if take > 0:
                dropped, _ = thin_to(pool, take, rng, members=size)
                kept |= pool & ~dropped
        return Selection.of(kept)

    def _rank(self, scores: FloatArray, epoch: int) -> NDArray[np.int64]:
        """0 for what is in the window or has no score; then group after group outward."""
        if self.random_from is not None and epoch >= self.random_from:
            return np.zeros(len(scores), dtype=np.int64)
        group = one_dimensional_k_means(scores, self.groups)
        width = min(self.groups, max(1, round(self.window * self.groups)))
        start = epoch % (self.groups - width + 1)
        stop = start + width
        rank = np.where(group >= stop, group - stop + 1, 0)
        return np.where((group >= 0) & (group < start), self.groups - group, rank)


def one_dimensional_k_means(scores: FloatArray, groups: int) -> NDArray[np.int64]:
    """The group of each score, 0 for the lowest; -1 where the score is not finite.

    Lloyd's algorithm from the quantiles, at most 50 rounds. In one dimension a group is an
    interval, so a round is one sorted search.

    Args:
        scores: (N,) float32.
        groups: at most so many groups are made.
    """
    group = np.full(len(scores), -1, dtype=np.int64)
    finite = np.isfinite(scores)
    values = np.sort(scores[finite].astype(np.float64))
    if len(values) == 0:
        return group
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.quantile(values, (np.arange(groups) + 0.5) / groups)
    for _ in range(_ROUNDS):
        edges = (centres[1:] + centres[:-1]) / 2
        cuts = np.concatenate([[0], np.searchsorted(values, edges), [len(values)]])
        sizes = np.diff(cuts)
        means = np.where(sizes > 0, np.diff(sums[cuts]) / np.maximum(sizes, 1), centres)
        means = np.maximum.accumulate(means)
        if np.array_equal(means, centres):
            break
        centres = means
    edges = (centres[1:] + centres[:-1]) / 2
    group[finite] = np.searchsorted(edges, scores[finite], side="right")
    return group
