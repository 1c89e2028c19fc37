"""UCB and epsilon-greedy: keep the samples with the highest smoothed loss.

Raju, Daruwalla and Lipasti, Accelerating Deep Learning with Dynamic Data Pruning, 2021,
arXiv 2111.12621.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Memory, Policy, Request, Visits
from infobatch._core.selection import Selection
from infobatch._core.thinning import rounded, thin_to
from infobatch._core.validation import check_fraction, check_int


@dataclass(frozen=True)
class HardestSamples(Policy):
    """What UCB and epsilon-greedy share: a running mean and variance of each sample's loss.

    With a = `ema` and a new loss l:  v <- a*v + (1-a)*(l - m)^2  and then  m <- a*m + (1-a)*l,
    starting from m = l, v = 0 at a sample's first loss. The set is chosen anew every `every`
    epochs and held in between.

    Biased towards hard samples, and not rescaled.

    Attributes:
        keep_ratio: fraction of the samples to keep, in [0, 1].
        ema: a in [0, 1).
        every: epochs between two choices, at least 1.
    """

    keep_ratio: float = 0.5
    ema: float = 0.8
    every: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_ratio", check_fraction("keep_ratio", self.keep_ratio))
        object.__setattr__(self, "ema", check_fraction("ema", self.ema, below_one=True))
        check_int("every", self.every, at_least=1)

    @property
    def columns(self) -> dict[str, float]:
        """`mean` and `variance` of the loss; `chosen`: 1 for what the last choice kept."""
        return {"mean": float("nan"), "variance": 0.0, "chosen": 0.0}

    def remember(self, memory: Memory, visits: Visits) -> None:
        """Move mean and variance; a non-finite loss leaves them where they are."""
        mean, variance, a = memory["mean"], memory["variance"], np.float32(self.ema)
        for rows, scores in visits.each_once():
            finite = np.isfinite(scores)
            now, loss = rows[finite], scores[finite]
            before = np.where(np.isnan(mean[now]), loss, mean[now])
            variance[now] = a * variance[now] + (1 - a) * (loss - before) ** 2
            mean[now] = a * before + (1 - a) * loss

    def select(self, request: Request) -> Selection:
        """Choose, or hold what was chosen, filled up or cut at random to another size."""
        memory, keep, rng = request.memory, request.keep, request.rng
        keep = rounded(self.keep_ratio, len(request)) if keep is None else keep
        kept = memory["chosen"] > 0
        if request.epoch % self.every and kept.any():
            missing = keep - int(np.count_nonzero(kept))
            if missing < 0:
                kept &= ~thin_to(kept, keep, rng)[0]
            elif missing:
                others = np.flatnonzero(~kept)
                kept[rng.choice(others, size=missing, replace=False, shuffle=False)] = True
        else:
            kept = self.choose(memory, keep, rng)
        memory["chosen"][:] = kept
        return Selection.of(kept)

    @abstractmethod
    def choose(self, memory: Memory, keep: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Mask (N,) of the samples to keep."""
