"""Reordered: samples of an epoch that come in another order than its plan's."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from infobatch._core.plan import EpochPlan, IndexArray
from infobatch._ranks.share import Share
from infobatch.errors import MisalignedUpdateError


class Reordered:
    """What has come of a share in an order that is not the plan's, and how often.

    Attributes:
        is_any: whether anything has.
    """

    def __init__(self) -> None:
        self.is_any = False
        self._done: list[NDArray[np.int64]] = []  # rows; the first are those that came in order
        self._came: NDArray[np.bool_] | None = None  # (n,) which rows have
        self._padding: Counter[int] | None = None  # how often a row still counts

    def __len__(self) -> int:
        return sum(map(len, self._done))

    def note(self, rows: NDArray[np.int64], before: IndexArray) -> None:
        """These rows have been accounted for; those `before` came in the order of the plan."""
        if not self.is_any:
            self._done, self.is_any = [before.astype(np.int64)], True
        self._done.append(rows)
        if self._came is not None:
            self._came[rows] = True

    def note_nameless(self, count: int) -> None:
        """The epoch ends without the losses of so many samples; only their number matters."""
        if self.is_any:
            self._done.append(np.empty(count, dtype=np.int64))

    def in_plan(self, plan: EpochPlan) -> EpochPlan:
        """The plan, with what has come first."""
        return plan.with_first(np.concatenate(self._done)) if self.is_any else plan

    def check_not_twice(
        self, rows: NDArray[np.int64], share: Share, position: int, epoch: int
    ) -> None:
        """Refuse a sample that stands for another.

        Raises:
            MisalignedUpdateError: one has come before.
        """
        if self._came is None:
            self._came = np.zeros(len(share.plan.samples), dtype=bool)
            if not self.is_any:
                self._came[share.counted_rows(0, position)] = True
        again = rows[self._came[rows]]
        if len(again) or len(np.unique(rows)) < len(rows):
            raise MisalignedUpdateError(
                f"samples {again[:5].tolist() or rows[:5].tolist()} have come twice in epoch "
                f"{epoch}; every sample of pruner.sampler must be in one batch, once"
            )

    def counted(self, rows: NDArray[np.int64], share: Share) -> NDArray[np.bool_]:
        """Which of these samples of a share are not padding, in whatever order they come.

        A sample that the share has several times, some of them as padding, counts as often as it
        stands there without: the first times.
        """
        if self._padding is None:
            self._padding = share.counts_of_padding()
        counted = np.ones(len(rows), dtype=bool)
        if self._padding:
            for place, row in enumerate(rows.tolist()):
                if row in self._padding:
                    counted[place] = self._padding[row] > 0
                    self._padding[row] -= 1
        return counted
