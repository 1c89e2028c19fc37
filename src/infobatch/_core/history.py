"""What is remembered of an epoch: sums while it runs, a record when it has ended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infobatch._core.headroom import NO_HEADROOM
from infobatch._core.scores import FloatArray

_BLOCK = 1 << 16  # losses that are summed at a time


@dataclass(frozen=True)
class EpochRecord:
    """What one finished epoch was.

    Attributes:
        epoch: 0-based number.
        kept: samples in its plan.
        total: samples that it would have had without pruning.
        trained: samples whose losses came: fewer than `kept` under drop_last, after an early
            `break` or where batches were left out.
        left_out: samples that the loader delivered and that got no `update`, as far as it could be
            seen.
        threshold: the score below which samples could be pruned; NaN if nothing could, and within
            groups, which have one each.
        mass_left_out: fraction of the total gradient bound carried by pruned samples; NaN where the
            policy does not say.
        mean_loss: mean of the finite unweighted losses; NaN if none came.
        mean_weight: mean rescale weight over the plan.
        non_finite: samples with a NaN or infinite loss or score.
        headroom: how much the best choice of samples could gain by the scores at its end, in
            [0, 1]: 1 - mean(b)^2 / mean(b^2) of what bounds the samples' gradients; NaN if unknown.
        rank_correlation: of the scores that came and those before; NaN if there were none.
    """

    epoch: int
    kept: int
    total: int
    trained: int
    left_out: int
    threshold: float
    mass_left_out: float
    mean_loss: float
    mean_weight: float
    non_finite: int
    headroom: float = math.nan
    rank_correlation: float = math.nan


@dataclass
class LossTally:
    """Sums over the losses of an epoch so far.

    Attributes:
        trained: how many samples have been trained on.
        non_finite: of how many of them the loss or the score was NaN or infinite.
        loss_count, loss_sum: number and float64 sum of the finite losses.
        left_out: how many samples were delivered and got no losses; known at the epoch's end.
    """

    trained: int = 0
    non_finite: int = 0
    loss_count: int = 0
    loss_sum: float = 0.0
    left_out: int = 0

    def add(self, losses: FloatArray, scores: FloatArray, batches: list[int]) -> None:
        """Take in losses (M,) and scores (M,) that came in batches of the given sizes.

        Summed batch by batch, so that the sum does not depend, in its last bit, on when the
        buffer was emptied, and a resumed run reports the same mean loss.
        """
        if len(losses) == 0:
            return
        self.trained += len(losses)
        sums = _batch_sums(losses, batches)
        if scores is losses and np.isfinite(sums).all():  # the common case, at a quarter the cost
            self.loss_count += len(losses)
        else:
            finite = np.isfinite(losses)
            self.non_finite += int(np.count_nonzero(~(finite & np.isfinite(scores))))
            self.loss_count += int(np.count_nonzero(finite))
            sums = _batch_sums(np.where(finite, losses, np.float32(0.0)), batches)
        for batch_sum in sums:
            self.loss_sum += batch_sum

    @property
    def mean_loss(self) -> float:
        """Mean of the finite losses, NaN if there was none."""
        return self.loss_sum / self.loss_count if self.loss_count else float("nan")


def saved_by(history: Sequence[EpochRecord]) -> float:
    """Fraction of the sample passes of these epochs that were not taken, in [0, 1]."""
    total = sum(record.total for record in history)
    return 1.0 - sum(record.trained for record in history) / total if total else 0.0


def metrics_of(history: Sequence[EpochRecord]) -> dict[str, float]:
    """What is logged of the last of these epochs; empty if there is none."""
    if not history:
        return {}
    record = history[-1]
    values = {
        "saved_fraction": saved_by(history),
        "kept_fraction": record.kept / record.total,
        "mean_weight": record.mean_weight,
        "threshold": record.threshold,
        "headroom": record.headroom,
        "rank_correlation": record.rank_correlation,
    }
    return {f"infobatch/{name}": v for name, v in values.items() if math.isfinite(v)}


def summary_of(history: Sequence[EpochRecord], num_epochs: int) -> str:
    """One line: what these epochs of a run have saved, and whether there is more to save."""
    trained = sum(record.trained for record in history)
    total = sum(record.total for record in history)
    said = (
        f"{saved_by(history):.1%} of {total:,} sample passes saved "
        f"({trained:,} used) in {len(history)} of {num_epochs} epochs"
    )
    scored_twice = [record for record in history if math.isfinite(record.rank_correlation)]
    if not scored_twice:
        return said
    last = scored_twice[-1]
    said += f"; headroom {last.headroom:.0%}, rank correlation {last.rank_correlation:.2f}"
    if last.headroom < NO_HEADROOM:
        said += ": the samples differ too little for any choice of them to pay"
    return said


def _batch_sums(losses: FloatArray, batches: list[int]) -> list[float]:
    """Float64 sum of each batch; a batch's sum does not depend on what stands beside it."""
    sums: list[float] = []
    start = 0
    for size, group in itertools.groupby(batches):
        left = sum(1 for _ in group)
        while left:
            count = min(left, max(1, _BLOCK // size))
            block = losses[start : start + count * size].astype(np.float64)
            with np.errstate(invalid="ignore"):  # inf - inf
                sums += block.reshape(count, size).sum(axis=1).tolist()
            start += count * size
            left -= count
    return sums
