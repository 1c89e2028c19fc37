"""In-batch policies: those that choose within a batch, after a forward pass over all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from infobatch._core.scores import FloatArray
from infobatch._core.validation import check_fraction

FloatVector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """What of a batch is trained on.

    Attributes:
        positions: (K,) int64 places in the batch, ascending; may repeat where the policy draws
            with replacement.
        weights: (K,) float64, positive; the step's loss is mean(weights * losses[positions]).
    """

    positions: NDArray[np.int64]
    weights: FloatVector


@runtime_checkable
class BatchPolicy(Protocol):
    """Chooses the samples of a batch that are worth a backward pass. See `BatchPruner`."""

    @property
    def columns(self) -> Mapping[str, float]:
        """What it remembers of each sample, by name, and what that starts from; often nothing."""
        ...

    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Choose from a batch.

        Args:
            scores: (B,) float32, finite: losses, or what the user ranks by.
            memory: (B,) of each column, for the samples of this batch; to be written to.
            keep: how many to choose, 1 to B.
            rng: a generator that depends on the run's seed and on the step alone.
        """
        ...


def weighted_draw(chances: FloatVector, keep: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`keep` distinct places, drawn one after the other in proportion to (B,) chances; ascending.

    Where fewer than `keep` chances are positive, the others are drawn uniformly.
    """
    total = chances.sum()
    positive = np.flatnonzero(chances > 0)
    if not np.isfinite(total) or len(positive) <= keep:
        others = np.setdiff1d(np.arange(len(chances)), positive)
        more = rng.choice(others, size=keep - len(positive), replace=False)
        return np.sort(np.concatenate([positive, more])).astype(np.int64)
    drawn = rng.choice(len(chances), size=keep, replace=False, p=chances / total)
    return np.sort(drawn).astype(np.int64)


@dataclass(frozen=True)
class SelectiveBackprop:
    """Backpropagate the samples of a batch whose loss ranks high.

    A sample at the fraction c of the batch's losses is drawn with a chance in proportion to
    c^(1/keep - 1), with `keep` the fraction that is to be kept; exactly so many are drawn, as in
    MosaicML Composer. Weight 1: biased towards hard samples.

    Source: Jiang et al., Accelerating Deep Learning by Focusing on the Biggest Losers, 2019,
    arXiv 1910.00762.
    """

    @property
    def columns(self) -> dict[str, float]:
        """None."""
        return {}

    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Draw by rank."""
        size = len(scores)
        if keep == size:
            return BatchSelection(np.arange(size), np.ones(size))
        ranks = np.empty(size)
        ranks[np.argsort(scores, kind="stable")] = np.arange(1, size + 1)
        chances = (ranks / size) ** (size / keep - 1.0)
        return BatchSelection(weighted_draw(chances, keep, rng), np.ones(keep))


@dataclass(frozen=True)
class ImportanceSampling:
    """Draw from a batch in proportion to a bound of the gradient norm, with the inverse as weight.

    Draws with replacement, p_i = score_i / sum, weight 1 / (B p_i): unbiased for the batch's mean.
    Pass as scores the norm of the gradient at the logits, ||softmax - onehot|| for cross-entropy.

    Source: Katharopoulos and Fleuret, Not All Samples Are Created Equal: Deep Learning with
    Importance Sampling, ICML 2018, arXiv 1803.00942.

    Attributes:
        uniform: part of the probability that is uniform, in [0, 1], which bounds the weights by
            1 / uniform. The method has 0; then a sample with score 0 is never drawn.
    """

    uniform: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "uniform", check_fraction("uniform", self.uniform))

    @property
    def columns(self) -> dict[str, float]:
        """None."""
        return {}

    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Draw with replacement."""
        size = len(scores)
        bounds = np.maximum(scores.astype(np.float64), 0.0)
        total = bounds.sum()
        chances = bounds / total if total > 0 else np.full(size, 1.0 / size)
        chances = (1.0 - self.uniform) * chances + self.uniform / size
        drawn = np.sort(rng.choice(size, size=keep, replace=True, p=chances / chances.sum()))
        return BatchSelection(drawn.astype(np.int64), 1.0 / (size * chances[drawn]))


@dataclass(frozen=True)
class EvolvedSampling:
    """ES: draw a mini-batch in proportion to a weight that mixes a sample's history and its loss.

    w = b1 * s + (1 - b1) * loss and then s <- b2 * s + (1 - b2) * loss, with s = 0 at first.
    Without replacement, weight 1: biased towards hard samples.

    Source: Evolved Sampling, 2025, arXiv 2509.23461.

    Attributes:
        beta1, beta2: in [0, 1].
    """

    beta1: float = 0.2
    beta2: float = 0.9

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            object.__setattr__(self, name, check_fraction(name, getattr(self, name)))

    @property
    def columns(self) -> dict[str, float]:
        """`s`, the smoothed loss."""
        return {"s": 0.0}

    def select_batch(
        self, scores: FloatArray, memory: dict[str, FloatArray], keep: int, rng: np.random.Generator
    ) -> BatchSelection:
        """Draw by weight, and move s of the whole batch."""
        s = memory["s"]
        weight = self.beta1 * s + (1.0 - self.beta1) * scores
        memory["s"] = (self.beta2 * s + (1.0 - self.beta2) * scores).astype(np.float32)
        drawn = weighted_draw(np.maximum(weight.astype(np.float64), 0.0), keep, rng)
        return BatchSelection(drawn, np.ones(keep))
