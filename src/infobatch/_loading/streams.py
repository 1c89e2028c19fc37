"""StreamFilter: leave pruned samples out of a stream before they are decoded."""

from __future__ import annotations

import torch

from infobatch._core.plan import EpochPlan
from infobatch.errors import LossError


class StreamFilter:
    """Tells by its id whether a sample of a stream is trained on in the current epoch.

    Called in DataLoader workers, of which it may have as many copies as there are workers: the
    answers lie in shared memory, one byte a sample, and change when the pruner plans an epoch.
    What a worker has read ahead is what it was then. Made by `DataPruner.stream_filter`.
    """

    def __init__(self, num_samples: int) -> None:
        self._kept = torch.ones(num_samples, dtype=torch.uint8).share_memory_()

    def __call__(self, sample_id: int) -> bool:
        """Whether the sample with this id is kept.

        Args:
            sample_id: 0 to N - 1, the same in every epoch and on every rank.

        Raises:
            LossError: an id outside that range.
        """
        number = int(sample_id)
        if not 0 <= number < len(self._kept):
            raise LossError(
                f"sample ids must be 0 to {len(self._kept) - 1}, got {sample_id!r}; number the "
                "samples of the stream from 0, the same way in every epoch"
            )
        return bool(self._kept[number])

    def set_plan(self, plan: EpochPlan) -> None:
        """Let through what the plan keeps, and no more; seen by all workers at once."""
        self._kept.zero_()
        self._kept[plan.indices] = 1
