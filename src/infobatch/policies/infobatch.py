"""The paper's policy: prune at random below the mean, rescale what remains of it.

Qin et al., InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning, ICLR 2024,
arXiv 2303.04947, section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.histogram import histogram, histogram_quantiles
from infobatch._core.policy import Policy, Request
from infobatch._core.scores import (
    FloatArray,
    below,
    finite_quantiles,
    finite_sum,
)
from infobatch._core.selection import Selection
from infobatch._core.thinning import ascending, lowest, thin, thin_to
from infobatch._core.validation import check_at_least, check_fraction
from infobatch.errors import PolicyError

Quantiles = tuple[tuple[float, float], ...]

_MOST_RANGES = 254  # a Selection's level is one byte, and two of its values are taken

PAPER_QUANTILES: Quantiles = ((0.20, 0.25), (0.85, 0.50), (1.00, 1.00))
"""(upper quantile, keep ratio) of the score ranges behind the paper's 40% results."""


@dataclass(frozen=True)
class MeanThreshold(Policy):
    """Prune the samples whose score is below the mean with probability r.

    With threshold m = mean of the known scores, a sample with score < m is kept with probability
    1 - r and weight 1 / (1 - r), every other sample with probability and weight 1 (section 3.2,
    equations 3 and 4). So E[weight * kept] = 1 for each sample, and the expected sum of weighted
    gradients is the gradient sum of the full data: unbiased.

    The draw is exact in count: of M samples below the mean, k = round((1 - r) M) are kept, with
    weight M / k each. Samples without a usable score (never seen, NaN, infinite) are kept.

    Attributes:
        prune_ratio: r in [0, 1).
    """

    prune_ratio: float = 0.5

    def __post_init__(self) -> None:
        prune_ratio = check_fraction("prune_ratio", self.prune_ratio, below_one=True)
        object.__setattr__(self, "prune_ratio", prune_ratio)  # 0 and 0.0 are one setting

    takes_budget = False

    def select(self, request: Request) -> Selection:
        """Thin the samples strictly below the mean score."""
        scores, summary = request.scores, request.summary
        total, count = finite_sum(scores) if summary is None else summary.tolist()
        threshold = total / count if count else float("nan")
        if self.prune_ratio == 0.0 or np.isnan(threshold):
            return Selection.full(len(scores))
        easy = below(scores, threshold)
        dropped, weight = thin(easy, 1.0 - self.prune_ratio, request.rng)
        level = easy.view(np.uint8) + dropped.view(np.uint8)  # 0 hard, 1 easy, 2 easy and dropped
        return Selection(np.array([1.0, weight, 0.0]), level, threshold)

    def summarise(self, scores: FloatArray) -> NDArray[np.float64]:
        """Sum and number of the finite scores."""
        return np.array(finite_sum(scores))


@dataclass(frozen=True)
class BudgetThreshold(Policy):
    """InfoBatch that keeps a given number of samples.

    The pool is what lies below the mean score, as in `MeanThreshold`; the prune probability is
    solved for, so that exactly the wanted number is kept, and the weight of those that remain
    of the pool is its size over their number. Where the pool is too small to give so many at a
    weight of at most `max_weight`, the threshold moves up: the pool is then the smallest set of
    lowest scores that is large enough. Samples whose score is not known come last of all, in
    random order, and are pruned only where the budget leaves no other way.

    Unbiased: the pool depends on the scores alone, and every member of it is kept with the same
    probability and weighs its inverse.

    Attributes:
        max_weight: above 1. It bounds the budget: at least 1 / max_weight of a pruned epoch is
            kept. 4 is the largest weight in the authors' own quantile settings.
    """

    max_weight: float = 4.0

    def __post_init__(self) -> None:
        max_weight = check_at_least("max_weight", self.max_weight, 1.0, inclusive=False)
        object.__setattr__(self, "max_weight", max_weight)

    needs_budget = True

    def select(self, request: Request) -> Selection:
        """Thin the samples below the mean, or below a higher threshold, to meet `keep`."""
        scores, keep, rng = request.scores, request.kept_by_budget, request.rng
        num_samples = len(scores)
        drop = num_samples - keep
        if drop == 0:
            return Selection.full(num_samples)
        total, count = finite_sum(scores)
        threshold = total / count if count else float("nan")
        pool = below(scores, threshold)
        size = int(np.count_nonzero(pool))
        needed = min(num_samples, math.ceil(drop / (1.0 - 1.0 / self.max_weight)))
        if size < needed:
            pool, threshold = lowest(ascending(scores), needed, rng)
            size = needed
            threshold = threshold if threshold < np.inf else float("nan")
        dropped, weight = thin_to(pool, size - drop, rng, members=size)
        level = pool.view(np.uint8) + dropped.view(np.uint8)  # 0 outside, 1 kept, 2 dropped
        return Selection(np.array([1.0, weight, 0.0]), level, threshold)

    def min_keep(self, num_samples: int) -> int:
        """N / max_weight."""
        return max(1, math.ceil(num_samples / self.max_weight))


@dataclass(frozen=True)
class QuantileThresholds(Policy):
    """A keep ratio for each range of the score distribution: the multi-level variant.

    In the range with keep ratio q a sample is kept with probability q and weight 1 / q, so
    this is unbiased as well. The default is the variant behind the paper's 40% results: it
    prunes 47.5% of an epoch whatever the shape of the loss distribution, ties aside.

    Attributes:
        quantiles: (upper quantile, keep ratio) pairs in rising order of quantile; a range
            reaches from the quantile before it (0 for the first) to its own, its upper end
            excluded. What lies above the last one is kept whole. A mapping is taken too.
    """

    quantiles: Quantiles = PAPER_QUANTILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantiles", normalise_quantiles(self.quantiles))

    def select(self, request: Request) -> Selection:
        """Thin each score range by its own ratio, or by one that meets `keep`."""
        scores = request.scores
        if request.keep is not None:
            return self._thin_to(scores, request.keep, request.rng)
        if request.summary is None:
            return self._thin(scores, finite_quantiles(scores, self._bounds), request.rng)
        return self._thin(scores, histogram_quantiles(request.summary, self._bounds), request.rng)

    def min_keep(self, num_samples: int) -> int:
        """One of each range."""
        return min(num_samples, len(self.quantiles) + 1)

    def summarise(self, scores: FloatArray) -> NDArray[np.float64]:
        """Histogram of the finite scores; its quantiles are exact to a 128th of their value."""
        return histogram(scores)

    def _thin_to(self, scores: FloatArray, keep: int, rng: np.random.Generator) -> Selection:
        """Scale all prune ratios alike to meet `keep`.

        Where that is not enough, because some range would be dropped whole, the other ranges give
        more. Ties at a range's edge belong to the range above it, as without a budget.
        """
        num_samples = len(scores)
        if keep == num_samples:
            return Selection.full(num_samples)
        edges = finite_quantiles(scores, self._bounds)
        bounds = [*(edge for edge in edges if not np.isnan(edge)), float("inf")]
        ratios = [1.0 - ratio for _, ratio in self.quantiles]
        ratios = [*ratios[: len(bounds) - 1], ratios[-1] if self.quantiles[-1][0] == 1.0 else 0.0]
        ranges = np.searchsorted(np.array(bounds), ascending(scores), side="right")
        ranges = np.minimum(ranges, len(bounds) - 1)
        sizes = np.bincount(ranges, minlength=len(bounds))
        drops = _scaled(num_samples - keep, sizes, np.array(ratios))
        level = np.zeros(num_samples, dtype=np.uint8)
        table = [1.0, 0.0]
        for number, (size, drop) in enumerate(zip(sizes.tolist(), drops.tolist(), strict=True)):
            if drop:
                pool = ranges == number
                dropped, weight = thin_to(pool, size - drop, rng, members=size)
                level[pool] = len(table)
                level[dropped] = 1
                table.append(weight)
        pruning = [bound for bound, drop in zip(bounds, drops, strict=True) if drop]
        threshold = max(pruning)
        return Selection(np.array(table), level, threshold if threshold < np.inf else np.nan)

    @property
    def _bounds(self) -> list[float]:
        return [upper for upper, _ in self.quantiles if upper < 1.0]

    def _thin(self, scores: FloatArray, edges: list[float], rng: np.random.Generator) -> Selection:
        bounded = [pair for pair in self.quantiles if pair[0] < 1.0]
        if np.isnan(edges).any():
            return Selection.full(len(scores))
        ratios = [keep for _, keep in bounded]
        if self.quantiles[-1][0] == 1.0:
            edges.append(float("inf"))
            ratios.append(self.quantiles[-1][1])
        level = np.zeros(len(scores), dtype=np.uint8)
        table = [1.0, 0.0]  # level 0: above the last range, or without a score; 1: pruned
        lower = np.zeros(len(scores), dtype=bool)
        for edge, keep_ratio in zip(edges, ratios, strict=True):
            under = below(scores, edge)
            dropped, weight = thin(under & ~lower, keep_ratio, rng)
            level[under & ~lower] = len(table)
            level[dropped] = 1
            table.append(weight)
            lower = under
        pruning = [edge for edge, keep in zip(edges, ratios, strict=True) if keep < 1.0]
        return Selection(np.array(table), level, max(pruning, default=float("nan")))


def _scaled(drop: int, sizes: NDArray[np.int64], ratios: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of each range to drop, in proportion to size * ratio; one of each must remain.

    Raises:
        PolicyError: more are to be dropped than that.
    """
    most = np.maximum(sizes - 1, 0)
    if drop > most.sum():
        raise PolicyError(
            f"of {sizes.sum()} samples in {np.count_nonzero(sizes)} score ranges one of each range "
            f"must remain, so {sizes.sum() - drop} cannot be kept"
        )
    wish = sizes * ratios
    drops = np.zeros(len(sizes), dtype=np.int64)
    while (left := drop - int(drops.sum())) > 0:
        open_ = drops < most
        share = np.where(open_, wish, 0.0)
        if not share.any():
            share = np.where(open_, sizes, 0)  # only ranges to be kept whole are left
        upto = np.floor(np.cumsum(share) * (left / share.sum()) + 1e-9).astype(np.int64)
        more = np.diff(upto, prepend=0)
        drops = np.minimum(drops + np.maximum(more, 0), most)
        if not more.any():
            drops[np.flatnonzero(open_)[0]] += 1
    return drops


def normalise_quantiles(
    quantiles: Mapping[float, float] | Iterable[tuple[float, float]],
) -> Quantiles:
    """Check quantile ranges and bring them into one form.

    Args:
        quantiles: (upper quantile, keep ratio) pairs, or a mapping of one to the other.

    Raises:
        ValueError: quantiles not rising within (0, 1], or a keep ratio outside (0, 1].
    """
    items = quantiles.items() if isinstance(quantiles, Mapping) else quantiles
    rule = (
        "quantiles must be (upper quantile, keep ratio) pairs, e.g. "
        "((0.20, 0.25), (0.85, 0.50), (1.0, 1.0)), with quantiles rising within (0, 1] and "
        "keep ratios in (0, 1]"
    )
    try:
        pairs = tuple((float(upper), float(keep)) for upper, keep in items)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule}; got {quantiles!r}") from error
    edges = [0.0, *(upper for upper, _ in pairs)]
    rising = all(lower < upper <= 1.0 for lower, upper in itertools.pairwise(edges))
    if not pairs or not rising or not all(0.0 < keep <= 1.0 for _, keep in pairs):
        raise ValueError(f"{rule}; got {quantiles!r}")
    if len(pairs) > _MOST_RANGES:
        raise ValueError(f"quantiles can be at most {_MOST_RANGES} ranges, got {len(pairs)}")
    return pairs
