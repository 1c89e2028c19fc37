"""Sharing: what the ranks of a run have in common, and what each trains on.

Here every rank has all scores, so all make the same plan, and rank r of W takes its positions r,
r + W, ... Only losses have to be exchanged, once an epoch. For data sets whose scores do not fit
into one process see `infobatch._ranks.sharded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infobatch._core.headroom import Headroom
from infobatch._core.history import EpochRecord, LossTally
from infobatch._core.plan import EpochPlan, Rows
from infobatch._core.planner import AddUp, Size
from infobatch._core.scores import FloatArray
from infobatch._ranks.agreement import FIRST_UPDATE, RESCORE, Header, Meeting, meet
from infobatch._ranks.gathering import gather_rescored
from infobatch._ranks.share import Share
from infobatch._ranks.world import Ranks, World
from infobatch._settings import Settings


class Running(Protocol):
    """What the ranks have to know of an epoch under way; a `RunningEpoch`."""

    epoch: int
    start: int
    steps_before: float
    tally: LossTally
    world: World
    is_stream: bool

    @property
    def plan(self) -> EpochPlan:
        """Its plan."""
        ...

    @property
    def plan_position(self) -> int:
        """Position in the plan up to which losses have come."""
        ...

    def header(self, occasion: int, count: int | None = None) -> Header:
        """Where this rank stands, and how much it will send."""
        ...

    def gather(self, meeting: Meeting) -> None:
        """Make the losses of all ranks known to all."""
        ...

    def headroom(self) -> Headroom:
        """By the scores of this rank, before the epoch and now."""
        ...


class Totals(NamedTuple):
    """An epoch over all ranks."""

    kept: int
    total: int
    mean_weight: float
    mass_left_out: float
    headroom: Headroom

    @classmethod
    def of(cls, plan: EpochPlan, headroom: Headroom) -> Totals:
        """Of one plan."""
        left_out = plan.selection.mass_left_out
        return cls(len(plan), plan.total, plan.mean_weight, left_out, headroom)

    def record(self, epoch: int, tally: LossTally, threshold: float) -> EpochRecord:
        """The record of an epoch with these sums over its losses."""
        return EpochRecord(
            epoch=epoch,
            kept=self.kept,
            total=self.total,
            trained=tally.trained,
            left_out=max(0, tally.left_out),
            threshold=threshold,
            mass_left_out=self.mass_left_out,
            mean_loss=tally.mean_loss,
            mean_weight=self.mean_weight,
            non_finite=tally.non_finite,
            headroom=self.headroom.headroom,
            rank_correlation=self.headroom.rank_correlation,
        )


class Sharing:
    """Every rank has all scores and the same plan, and trains on its part of it.

    Args:
        ranks: those that share the data set.
        settings: of the run, which all must have alike.
    """

    is_apart = False  # whether each rank has scores and a plan of its own

    def __init__(self, ranks: Ranks, settings: Settings) -> None:
        self.ranks, self.settings = ranks, settings
        self._told = settings.as_dict()
        self.met: World | None = None  # as it was when all ranks last agreed

    def rows(self, world: World) -> Rows:
        """The samples whose scores this process keeps."""
        return Rows(0, 1, self.settings.num_samples)

    def sizes(
        self, batch_size: int | None, world: World, kept: Sequence[int] = ()
    ) -> list[int] | None:
        """(num_epochs,) how many samples each epoch keeps on all ranks; None without a budget."""
        budget = self.settings.sizes
        if budget is None:
            return None
        return budget.in_batches(None if batch_size is None else batch_size * world.size, kept)

    def size(
        self, epoch: int, batch_size: int | None, world: World, sizes: Sequence[int] | None
    ) -> Size:
        """How large this rank plans an epoch."""
        keep = None if sizes is None or epoch >= len(sizes) else sizes[epoch]
        return Size(keep, None if batch_size is None else batch_size * world.size)

    def add_up(self, running: Running, world: World) -> AddUp | None:
        """How sums over this rank's samples become those of all; None: it has all samples."""
        return None

    def talks_to_prepare(self, running: Running, sizes: Sequence[int] | None) -> bool:
        """Whether ranks have to talk to plan an epoch and share it out."""
        return False

    def share(self, running: Running, world: World, sizes: Sequence[int] | None) -> Share:
        """What this rank trains on of a plan, from where the epoch begins."""
        return Share.of_common_plan(running.plan, running.start, world.rank, world.size)

    # ------------------------------------------------------------------ collective operations

    def meet(self, running: Running, occasion: int, count: int | None = None) -> Meeting:
        """Find out whether all ranks stand at the same place.

        Raises:
            DistributedError: they do not, or one did not come; on every rank.
        """
        header, world = running.header(occasion, count), self.ranks.world()
        meeting = meet(self.ranks, world, self._told, header, uneven=running.is_stream)
        self.met = world
        return meeting

    def meet_once(self, running: Running) -> None:
        """Make sure, at the first update of a run, that all ranks are there and agree."""
        # A rank of a stream may have nothing to read; there they meet at the epoch's end.
        if running.world != self.met and not running.is_stream:
            self.meet(running, FIRST_UPDATE)

    def bring_together(self, running: Running, occasion: int) -> Totals:
        """Make the losses of all ranks known to all."""
        if running.world.size > 1:
            running.gather(self.meet(running, occasion))
        return Totals.of(running.plan, running.headroom())

    def rescored(
        self, running: Running, rows: NDArray[np.int64], scores: FloatArray
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """The rows and scores that all ranks have from forward passes."""
        if running.world.size == 1:
            return rows, scores
        return gather_rescored(self.meet(running, RESCORE, len(rows)), rows, scores)
