"""KAKURENBO: hide the easiest samples, if they are classified with confidence.

Nguyen et al., KAKURENBO: Adaptively Hiding Samples in Deep Neural Network Training, NeurIPS
2023, arXiv 2310.10102.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from infobatch._core.policy import Policy, Request
from infobatch._core.selection import Selection
from infobatch._core.thinning import ascending, lowest
from infobatch._core.validation import check_fraction

STEPS = ((0.0, 1.0), (0.3, 0.8), (0.6, 0.6), (0.8, 0.4))
"""(from this fraction of the epochs on, part of the largest fraction that may be hidden)."""


def falling_fraction(progress: float) -> float:
    """F at some part of a run, in [0, 1], relative to its start: 1, 0.8, 0.6, 0.4."""
    return [part for start, part in STEPS if progress >= start][-1]


@dataclass(frozen=True)
class Kakurenbo(Policy):
    """Hide the fraction F of samples with the lowest loss, but only those that are sure.

    A sample may be hidden if the model gave its class a probability of at least `confidence`:
    then it was classified correctly, with that confidence. Cross-entropy is -log of that
    probability, so the condition is score <= -log(confidence). Where the loss is another one
    (label smoothing, a mixed target), pass `update(losses, scores=F.cross_entropy(...))`.

    F falls to 0.8, 0.6 and 0.4 of its start at 30, 60 and 80% of the run. What is kept weighs
    N / kept, which for SGD is the method's own rule of a learning rate times 1 / (1 - F).

    Hidden samples are to be passed forward after the epoch, for fresh scores:
    `pruner.rescore(hidden, losses)` with `hidden = pruner.plan.pruned` from before the epoch.

    With a given number to keep, F is that number's, and where too few samples are sure, the next
    lowest losses are hidden too; `falling_fraction` is the fall of F as a ratio schedule.

    Biased: what is hidden is decided by the loss, and not up-weighted.

    Attributes:
        max_fraction: F at the start, in [0, 1).
        confidence: in [0, 1].
    """

    max_fraction: float = 0.3
    confidence: float = 0.7

    reads_probability = True  # as `confidence` does

    def __post_init__(self) -> None:
        fraction = check_fraction("max_fraction", self.max_fraction, below_one=True)
        object.__setattr__(self, "max_fraction", fraction)
        object.__setattr__(self, "confidence", check_fraction("confidence", self.confidence))

    def select(self, request: Request) -> Selection:
        """Hide the surely classified ones among the lowest F of the scores."""
        scores, rng, num_samples = request.scores, request.rng, len(request)
        if request.keep is not None:  # those that are surely classified are the lowest
            hidden, _ = lowest(ascending(scores), num_samples - request.keep, rng)
            return Selection.of(~hidden, num_samples / request.keep)
        fraction = self.max_fraction * falling_fraction(request.epoch / request.num_epochs)
        candidates, _ = lowest(ascending(scores), int(fraction * num_samples), rng)
        bound = -math.log(self.confidence) if self.confidence else math.inf
        with np.errstate(invalid="ignore"):
            hidden = candidates & (scores <= np.float32(bound)) & np.isfinite(scores)
        kept = num_samples - int(np.count_nonzero(hidden))
        if kept == num_samples:
            return Selection.full(num_samples)
        if kept == 0:  # of equal, perfect scores one has to remain
            hidden[int(rng.integers(num_samples))] = False
            kept = 1
        threshold = float(scores[hidden].max())
        return Selection.of(~hidden, num_samples / kept, threshold=threshold)
