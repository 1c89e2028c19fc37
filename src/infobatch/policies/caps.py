"""Caps on weights: for all samples, or for those that are likely mislabelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Memory, Selection
from infobatch._core.scores import FloatArray
from infobatch._core.thinning import occurrences
from infobatch._core.validation import check_at_least, check_fraction
from infobatch.policies.wrapper import Wrapper


@dataclass(frozen=True, eq=False)
class CappedWeights(Wrapper):
    """Let no weight of a policy exceed a bound.

    A large weight lets one sample move the model far. A cap takes that away and makes the policy
    biased: a sample kept with probability p counts p * max_weight < 1 of its due.

    Attributes:
        policy: the policy to ask.
        max_weight: at least 1.
    """

    max_weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_weight", check_at_least("max_weight", self.max_weight, 1.0))

    def select_from(
        self,
        memory: Memory,
        scores: FloatArray,
        keep: int | None,
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """The policy's selection with its weights cut."""
        selection = super().select_from(memory, scores, keep, epoch, rng)
        weights = np.minimum(selection.weights, self.max_weight)
        if np.array_equal(weights, selection.weights):
            return selection
        return replace(selection, weights=weights)


@dataclass(frozen=True, eq=False)
class ProtectedTail(Wrapper):
    """Never weigh the samples with a persistently high loss above 1.

    Samples whose label is wrong keep a high loss for as long as the model has not memorised them.
    A policy that up-weights among hard samples (a budget with a raised threshold, or random
    subsets with rescale) would hand them the largest steps. Here the running mean of each
    sample's loss, m <- a*m + (1-a)*loss with a = `ema`, is ranked, and the weights of the
    highest `tail` of it are cut to 1. Which samples are kept does not change.

    What it costs: hard samples with right labels are in that tail too. A protected sample that is
    kept with probability p counts p of its due, so the policy is no longer unbiased for them. Under
    `MeanThreshold` it changes nothing but for samples whose last loss was low and whose history
    is high: what lies above the mean weighs 1 in any case.

    Attributes:
        policy: the policy to ask.
        tail: fraction of the samples, in [0, 1].
        ema: a in [0, 1).
    """

    tail: float = 0.1
    ema: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "tail", check_fraction("tail", self.tail))
        object.__setattr__(self, "ema", check_fraction("ema", self.ema, below_one=True))

    @property
    def columns(self) -> Mapping[str, float]:
        """Those of the policy inside, and the running mean."""
        return {**super().columns, "persistent": float("nan")}

    def remember(
        self,
        memory: Memory,
        rows: NDArray[np.integer[Any]],
        scores: FloatArray,
        batches: list[int],
        *,
        trained: bool,
    ) -> None:
        """Move the running mean, and hand on."""
        mean, a = memory["persistent"], np.float32(self.ema)
        for piece in occurrences(rows):
            finite = np.isfinite(scores[piece])
            now, loss = rows[piece][finite], scores[piece][finite]
            before = np.where(np.isnan(mean[now]), loss, mean[now])
            mean[now] = a * before + (1 - a) * loss
        super().remember(memory, rows, scores, batches, trained=trained)

    def select_from(
        self,
        memory: Memory,
        scores: FloatArray,
        keep: int | None,
        epoch: int,
        rng: np.random.Generator,
    ) -> Selection:
        """The policy's selection, with the tail's weights cut to 1."""
        selection = super().select_from(memory, scores, keep, epoch, rng)
        known = np.flatnonzero(np.isfinite(memory["persistent"]))
        size = int(self.tail * len(known))
        if selection.is_full or size == 0:
            return selection
        highest = np.argpartition(memory["persistent"][known], len(known) - size)[-size:]
        weights = selection.weights_of(np.arange(len(selection)))
        weights[known[highest]] = np.minimum(weights[known[highest]], 1.0)
        return replace(selection, weights=weights, level=None)
