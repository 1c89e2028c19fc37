"""Keep samples with a probability in proportion to a power of a bound on their gradient.

The derivation is in docs/methods/proportional.md, and what was tried in docs/research-log.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from infobatch._core.histogram import NUM_BINS, bin_end, bin_middles, bins_of, histogram
from infobatch._core.policy import Policy, Request
from infobatch._core.scores import FloatArray
from infobatch._core.selection import Selection
from infobatch._core.validation import check_at_least, check_fraction

Bound = Literal["probability", "loss", "root"]
"""How large a sample's gradient may be, by its score.

"probability": 1 - exp(-score), for cross-entropies 1 minus the probability of the right class;
"loss": the score itself, for gradient norms or for losses that grow with them; "root": its square
root, for squared errors.
"""

_BOUNDS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "probability": lambda scores: -np.expm1(-scores),
    "loss": lambda scores: scores,
    "root": np.sqrt,
}
_NEGATIVE = -1e-3  # cross-entropies are not, but for rounding errors
_SMALL = 1e-12  # no claim counts as a smaller part of the largest; none is 0
_BISECTIONS = 120
_LEVELS = 254  # of keep probabilities; beside them a Selection has one for what is pruned
_BLOCK = 1 << 18
_GRAIN = 1 << 20  # borders are sums, and exact to so small a part of a sample


@dataclass(frozen=True)
class ProportionalSampling(Policy):
    """Leave out what is learned: what `DataPruner(budget=...)` runs.

    A sample is kept with probability p = clip(c * min(bound, ceiling)**power, floor, 1) and weighs
    p**-exponent. The bound is one on the norm of its gradient. c is solved for, so that exactly the
    wanted number is kept. The draw is stratified: samples of (nearly) equal p make a level, and
    each level keeps its expected number, rounded up or down.

    Power 1 and exponent 1 are the sampling of least variance among those whose weighted sum of
    gradients is that of the full data in expectation, as far as a bound can tell. Exponent 1 is
    unbiased with any power: E[weight * kept] = 1 for every sample. A smaller one trades that for
    weights that cannot be large: the expected gradient is then that of the objective
    sum_i p_i**(1 - exponent) * loss_i, which leans to samples that are not yet learned. With
    exponent 0, the default, nothing is scaled.

    The ceiling is the guard: samples whose bound lies above it are all alike. Where the model is
    not sure of any, because training is short or labels are wrong, all have the same p, and an
    epoch is a random part of the data with weight 1: full data for fewer epochs.

    Samples without a usable score are kept, as long as the budget allows it beside the floor of
    the others.

    Without a budget c is the smallest with which the samples left out are expected to hold no more
    than `tolerance` of the sum of all bounds, and samples above the ceiling are all kept. That is
    the part of the epoch's gradient that can be missing, so the epoch remains one of the full data,
    with its steps fewer and as much larger; it saves much where most is learned, and nothing where
    nothing is, or where scores are negative, as logarithms of densities are.

    Attributes:
        bound: of the gradient, by the score.
        power: of the bound, at least 0; 0 is a random subset.
        floor: the smallest keep probability, in (0, 1]. It bounds the budget: at least this part
            of a pruned epoch is kept; and how long a sample waits: 1 / floor epochs on average.
        exponent: of the weights, in [0, 1].
        ceiling: above 0, in the bound's unit; infinity for none.
        rescale: multiply all weights by the number that makes their sum that of the full data, so
            that an epoch's steps are fewer and as much larger.
        tolerance: what may be left out where no budget says how much, in [0, 1).
    """

    bound: Bound = "probability"
    power: float = 4.0
    floor: float = 0.05
    exponent: float = 0.0
    ceiling: float = 0.5
    rescale: bool = False
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.bound not in get_args(Bound):
            known = ", ".join(f'"{name}"' for name in get_args(Bound))
            raise ValueError(f"bound must be one of {known}, got {self.bound!r}")
        object.__setattr__(self, "power", check_at_least("power", self.power, 0.0))
        object.__setattr__(self, "exponent", check_fraction("exponent", self.exponent))
        floor = check_fraction("floor", self.floor)
        if floor == 0.0:
            raise ValueError(f"floor must be above 0, got {self.floor!r}")
        object.__setattr__(self, "floor", floor)
        tolerance = check_fraction("tolerance", self.tolerance, below_one=True)
        object.__setattr__(self, "tolerance", tolerance)
        if self.ceiling != math.inf:
            ceiling = check_at_least("ceiling", self.ceiling, 0.0, inclusive=False)
            object.__setattr__(self, "ceiling", ceiling)

    @property
    def reads_probability(self) -> bool:
        """Whether scores have to be cross-entropies without label smoothing."""
        return self.bound == "probability"

    def bounds(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Bound`."""
        return _BOUNDS[self.bound](scores)

    def select(self, request: Request) -> Selection:
        """Keep each level's expected number, a random part of it."""
        scores, rng, num_samples = request.scores, request.rng, len(request)
        counts = self.summarise(scores)
        keep = request.keep
        if keep is None:
            of_all = counts if request.summary is None else request.summary
            keep = self._free(of_all, counts)
        if keep == num_samples:
            return Selection.full(num_samples)
        bins, sizes, bounds = self._bins(counts)
        floor = min(self.floor, keep / num_samples)
        probabilities = least_probabilities(
            self._claims(bounds), floor, lambda p: float(p @ sizes) > keep
        )
        # Levels of nearly equal probability, and in each the mean of it; the last is that of 1.
        place = np.log(probabilities / floor) / -math.log(floor)
        level_of_bin = 1 + np.rint(place * (_LEVELS - 2)).astype(np.uint8)
        level_of_bin[probabilities == 1.0] = _LEVELS
        expected = np.bincount(level_of_bin, probabilities * sizes, _LEVELS + 1).astype(np.float64)
        members = np.bincount(level_of_bin, sizes, _LEVELS + 1)
        table = np.zeros(NUM_BINS, dtype=np.uint8)
        table[bins] = level_of_bin[:-1]
        level = np.full(num_samples, level_of_bin[-1])
        for start in range(0, num_samples, _BLOCK):
            part = scores[start : start + _BLOCK]
            finite = np.isfinite(part)
            level[start : start + _BLOCK][finite] = table[bins_of(part[finite])]
        draw(level, expected, keep, rng)
        mean = np.divide(expected, members, out=np.ones(_LEVELS + 1), where=members > 0)
        weights = mean**-self.exponent
        if self.rescale:
            weights *= num_samples / float(weights @ expected)
        weights[0] = 0.0
        prunable = bins[probabilities[:-1] < 1.0]
        threshold = bin_end(int(prunable[-1])) if len(prunable) else float("nan")  # bins rise
        mass = _masses(bounds, sizes)
        left_out = float((1.0 - probabilities) @ mass / mass.sum())
        return Selection(weights, level, threshold, mass_left_out=left_out)

    def summarise(self, scores: FloatArray) -> NDArray[np.float64]:
        """(2**16 + 1,) numbers of scores in the bins of a histogram; at the end, of the others."""
        counts = histogram(scores)
        return np.append(counts, len(scores) - counts.sum())

    def _free(self, of_all: NDArray[np.float64], counts: NDArray[np.float64]) -> int:
        """How many of the samples with these counts are to be kept where no budget says it.

        Args:
            of_all: counts of all samples, which decide what may be left out.
            counts: of those of this rank.
        """
        bins, sizes, bounds = self._bins(of_all)
        if len(bins) and bin_middles()[bins[0]] < _NEGATIVE:
            return int(counts.sum())  # these scores bound no gradient
        mass, claims = _masses(bounds, sizes), self._claims(bounds)
        most = self.tolerance * float(mass.sum())
        hardest = np.append(bounds >= min(self.ceiling, bounds.max(initial=0.0)), True)

        def enough(p: NDArray[np.float64]) -> bool:
            return float((1.0 - p) @ mass) <= most and bool((p[hardest] == 1.0).all())

        probabilities = least_probabilities(claims, self.floor, enough)
        own = np.append(counts[bins], counts[-1])
        return max(1, math.ceil(float(probabilities @ own) - _SMALL))

    def _bins(
        self, counts: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        """(K,) bins with scores, (K + 1,) numbers of samples, (K,) bounds on their gradients.

        The last number is that of the samples without a score.
        """
        bins = np.flatnonzero(counts[:-1])
        bounds = self.bounds(np.maximum(bin_middles()[bins], 0.0))
        return bins, np.append(counts[bins], counts[-1]), bounds

    def min_keep(self, num_samples: int) -> int:
        """The part `floor` of them."""
        return max(1, math.ceil(num_samples * self.floor))

    def _claims(self, bounds: NDArray[np.float64]) -> NDArray[np.float64]:
        """What p is in proportion to, (K + 1,); at the end, above all: without a usable score."""
        capped = np.minimum(bounds, self.ceiling)
        claims = (capped / (capped.max(initial=0.0) or 1.0)) ** self.power
        return np.append(np.maximum(claims, _SMALL), 1.0 / _SMALL)


WITHOUT_BUDGET = ProportionalSampling(floor=0.2)
"""What `DataPruner` without policy and budget runs: of learned samples it looks at every fifth.

What was left out may have been forgotten meanwhile: docs/research-log.md, step 18.
"""


def _masses(bounds: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K + 1,) sums of bounds; those without a score, at the end, count as the others' mean."""
    known = sizes[:-1]
    mean = float(bounds @ known / known.sum()) if len(known) else 0.0
    each = np.append(bounds, mean) if mean > 0.0 else np.ones(len(sizes))
    return each * sizes


def least_probabilities(
    claims: NDArray[np.float64], floor: float, enough: Callable[[NDArray[np.float64]], bool]
) -> NDArray[np.float64]:
    """Keep probabilities clip(c * claim, floor, 1), with the smallest c that is enough.

    Args:
        claims: (K,) positive.
        floor: in (0, 1].
        enough: of (K,) probabilities; if it holds, it holds with any larger c.

    Returns:
        (K,) in (0, 1].
    """
    low, high = floor / claims.max(), 1.0 / claims.min()
    for _ in range(_BISECTIONS):
        c = math.sqrt(low * high)
        if c in (low, high):
            break
        if enough(np.clip(c * claims, floor, 1.0)):
            high = c
        else:
            low = c
    probabilities: NDArray[np.float64] = np.clip(high * claims, floor, 1.0)
    return probabilities


def draw(
    level: NDArray[np.uint8], expected: NDArray[np.float64], keep: int, rng: np.random.Generator
) -> None:
    """Move all but `keep` samples to level 0, so that of each level its expected number is left.

    Each number is rounded up or down at random, such that its expectation is exact and the sum
    is `keep`: the borders between levels, on a line of length `keep`, are rounded by one common
    draw. Which samples of a level remain is uniformly random.

    Args:
        level: (N,) changed in place.
        expected: (L,) numbers; that of level 0 is 0.
        keep: their sum, but for rounding errors.
        rng: source of the draws.
    """
    sizes = np.bincount(level, minlength=len(expected))
    borders = np.rint(np.cumsum(expected) * (keep / expected.sum()) * _GRAIN) / _GRAIN
    shift = (rng.integers(1 << 16) + 0.5) / (1 << 16)  # never within a rounding error of 0 or 1
    numbers = np.diff(np.floor(borders + shift).astype(np.int64), prepend=0)
    by_level = np.argsort(level, kind="stable")
    start = 0
    for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True):
        members = by_level[start : start + size]
        start += size
        if number < size:
            level[members[rng.choice(size, size - number, replace=False, shuffle=False)]] = 0
