"""AlignPrune: rank samples by how their losses go with those of others (arXiv 2604.07306)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from infobatch._core.policy import Memory, Policy, Request, Visits
from infobatch._core.selection import Selection
from infobatch._core.validation import check_int
from infobatch.policies.infobatch import BudgetThreshold, MeanThreshold
from infobatch.policies.wrapper import Wrapper


@dataclass(frozen=True, eq=False)
class AlignPrune(Wrapper):
    """Give another policy, in place of losses, each sample's alignment with a mean trajectory.

    The alignment is Pearson's correlation of a sample's last losses with the mean of those of a
    clean set. Losses of samples with wrong labels go their own ways; their losses are high, so that
    a rule by loss keeps them, and their alignment is low, so that this prunes them. Without a clean
    set the mean is that of the better aligned half of all samples. Samples that have not been seen
    `window` times have no score.

    Made for noisy labels; 4 (window + 1) bytes a sample.

    Attributes:
        policy: that is given these scores; None: the paper's, `MeanThreshold(0.5)`, or with a
            budget `BudgetThreshold()`.
        clean: indices of samples whose labels are right, or None.
        window: how many losses make a trajectory, at least 3.
    """

    policy: Policy = field(default_factory=MeanThreshold)
    clean: NDArray[np.integer] | None = None
    window: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", check_int("window", self.window, at_least=3))
        if self.clean is not None:
            clean = np.asarray(self.clean)
            if clean.ndim != 1 or not len(clean) or clean.dtype.kind not in "iu":
                raise ValueError(
                    "clean must be indices of samples, integers of shape (M,), got "
                    f"{clean.dtype} of shape {clean.shape}"
                )
            object.__setattr__(self, "clean", clean.astype(np.int64))

    takes_budget = True
    reads_probability = False

    @property
    def columns(self) -> dict[str, float]:
        """`times` seen, and the last losses, `loss0` to that of window - 1, in turn."""
        losses = {f"loss{number}": float("nan") for number in range(self.window)}
        return {"times": 0.0, **losses, **self.policy.columns}

    def remember(self, memory: Memory, visits: Visits) -> None:
        """Write each loss over the oldest."""
        for rows, scores in visits.each_once():
            place = memory["times"][rows].astype(np.int64) % self.window
            for number in range(self.window):
                at = place == number
                memory[f"loss{number}"][rows[at]] = scores[at]
            memory["times"][rows] += 1.0
        super().remember(memory, visits)

    def select(self, request: Request) -> Selection:
        """The other policy's selection by alignment."""
        policy = self.policy if request.keep is None else self._of_budget
        return policy.select(replace(request, scores=self.alignment(request.memory)))

    def min_keep(self, num_samples: int) -> int:
        """That of the policy that is given a number."""
        return self._of_budget.min_keep(num_samples)

    @property
    def _of_budget(self) -> Policy:
        return self.policy if self.policy.takes_budget else BudgetThreshold()

    def alignment(self, memory: Memory) -> NDArray[np.float32]:
        """(N,) in [-1, 1]; NaN where too few losses are known."""
        times = memory["times"].astype(np.int64)
        columns = [memory[f"loss{number}"].astype(np.float64) for number in range(self.window)]
        order = (times[:, None] + np.arange(self.window)) % self.window  # the oldest first
        losses = np.take_along_axis(np.stack(columns, axis=1), order, axis=1)
        known = (times >= self.window) & np.isfinite(losses).all(axis=1)
        found = np.full(len(times), np.nan, dtype=np.float32)
        if not known.any():
            return found
        trajectories = losses[known]
        if self.clean is not None:
            of_clean = losses[self.clean][known[self.clean]]
            mean = (of_clean if len(of_clean) else trajectories).mean(axis=0)
        else:
            first = _correlations(trajectories, trajectories.mean(axis=0))
            mean = trajectories[first >= np.median(first)].mean(axis=0)
        found[known] = _correlations(trajectories, mean)
        return found


def _correlations(
    trajectories: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson's, of each row (M, W) with the mean (W,); 0 where one does not move."""
    rows = trajectories - trajectories.mean(axis=1, keepdims=True)
    column = mean - mean.mean()
    sizes = np.sqrt(np.square(rows).sum(axis=1) * np.square(column).sum())
    correlations: NDArray[np.float64] = np.divide(
        rows @ column, sizes, out=np.zeros(len(rows)), where=sizes > 0
    )
    return correlations
