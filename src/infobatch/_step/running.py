"""RunningEpoch: one epoch from its plan to its last loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infobatch._core.headroom import Headroom
from infobatch._core.history import LossTally
from infobatch._core.plan import EpochPlan
from infobatch._core.planner import Planner
from infobatch._core.scores import FloatArray
from infobatch._loading.ledger import Batch
from infobatch._ranks.agreement import PLANNING, SHARING, Header, Meeting, plan_digest
from infobatch._ranks.gathering import (
    NO_LOSS,
    OWN_ROWS,
    PendingLosses,
    cut_batches,
    gather_losses,
)
from infobatch._ranks.share import Share
from infobatch._ranks.world import World
from infobatch._step.buffer import LossBuffer
from infobatch._step.reordered import Reordered
from infobatch._step.rescale import Factors, Reduction
from infobatch.errors import MisalignedUpdateError


@dataclass(eq=False)
class RunningEpoch:
    """What an epoch trains on, and what of it has come.

    The losses of planned samples in the order of the plan go through a `LossBuffer`. Losses that
    come with indices, or of batches that the user has formed, are placed by their samples.

    Attributes:
        epoch: 0-based.
        planner: has the scores, and takes in new ones.
        before: some of the scores as they were before it.
        may_repeat: the user's own sampler may yield a sample several times.
        is_stream: samples come from a stream, in an order that is not the plan's.
        is_kept_apart: no other rank needs the losses, as each has scores of its own samples alone.
        start: plan position at which it begins: above 0 where it goes on from a saved state.
        steps_before: samples that each rank has had up to there.
        is_over: its loop had been left when that state was saved.
        planned: its plan; None until it is prepared.
        tally: sums over the losses so far.
        share: what this rank trains on of the plan; there is one once it is prepared.
        world: this rank's place when it was shared out.
        is_prepared: it has been planned and shared out.
        position: in the share, of the next loss.
        pending: losses that the other ranks do not know yet.
    """

    epoch: int
    planner: Planner
    before: FloatArray
    may_repeat: bool = False
    is_stream: bool = False
    is_kept_apart: bool = False
    start: int = 0
    steps_before: float = 0.0
    is_over: bool = False
    planned: EpochPlan | None = None
    tally: LossTally = field(default_factory=LossTally)
    share: Share = field(init=False)
    world: World = field(default_factory=World, init=False)
    is_prepared: bool = field(default=False, init=False)
    position: int = field(default=0, init=False)
    pending: PendingLosses = field(default_factory=PendingLosses, init=False)
    _buffer: LossBuffer | None = field(default=None, init=False)
    _told: int = field(default=0, init=False)  # position up to which `pending` has all
    _reordered: Reordered = field(default_factory=Reordered, init=False)
    _stream_steps: int = field(default=0, init=False)
    _stream_batch: int = field(default=0, init=False)

    # ------------------------------------------------------------------ where it stands

    @property
    def plan(self) -> EpochPlan:
        """Its plan, once there is one."""
        assert self.planned is not None
        return self.planned

    def share_out(self, share: Share, world: World) -> None:
        """This is the part of a rank in that place."""
        self.share, self.world, self.is_prepared = share, world, True

    @property
    def has_begun(self) -> bool:
        """Whether any of it has been trained on."""
        return self.position > 0 or self.start > 0

    @property
    def plan_position(self) -> int:
        """Position in the plan up to which losses have come."""
        if self.position == 0:
            return self.start
        if self._reordered.is_any:
            return self.start + len(self._reordered)
        return self.share.position(self.position)

    @property
    def steps(self) -> int:
        """Samples that each rank has had, padding included; alike on all ranks."""
        if self.position == 0 and self.start == 0 and self.steps_before == 0.0:
            return 0
        return math.ceil(self.share.before) + self.position

    @property
    def plan_as_trained(self) -> EpochPlan | None:
        """The plan, with what has come in another order first."""
        return None if self.planned is None else self._reordered.in_plan(self.planned)

    @property
    def left_out(self) -> int:
        """Planned samples, up to where it has come, of which no losses came."""
        reached = self.start if self.position == 0 else self.share.position(self.position)
        return max(0, reached - self.tally.trained)

    def fraction(self, planned: int | None) -> float:
        """Part of it that is done, in [0, 1].

        Args:
            planned: samples of the share that the loader delivers; None: all.
        """
        if not self.has_begun:
            return 0.0
        share, came = self.share, self.position
        if self.is_stream:  # counted in steps, so that it is the same on all ranks
            came = self._stream_steps * self._stream_batch
        planned = len(share) if planned is None else planned
        return min((share.before + came) / (share.before + planned), 1.0)

    @property
    def exchanges(self) -> bool:
        """Whether the losses of this rank have to be made known to others."""
        return not self.is_kept_apart and self.share.is_one_of_several

    # ------------------------------------------------------------------ a batch

    def placed(self, batch: Batch, ids: NDArray[np.int64]) -> Batch:
        """Where in the share these samples are, if they are of the batch that is due.

        There may be fewer than the batch has: a part of it, or what `collate_fn` has left.
        """
        if not self._reordered.is_any and batch.stop > max(batch.start, self.position):
            start = max(batch.start, self.position)
            planned = self.share.ids(batch.start, batch.stop)
            if start + len(ids) <= batch.stop and bool(np.isin(ids, planned).all()):
                return Batch(start, start + len(ids))
        return Batch(self.position, self.position)

    def take(
        self, batch: Batch, losses: Tensor, scores: Tensor | None, reduction: Reduction
    ) -> Factors:
        """Take in the losses of the batch that is due; by what to multiply them.

        Raises:
            MisalignedUpdateError: it cannot be told whose losses they are.
        """
        if batch.ids is not None:
            return self.take_by_index(batch, losses, scores, batch.ids)
        if self._reordered.is_any:
            raise MisalignedUpdateError(
                "losses of this epoch have come with indices and in another order than planned, "
                "so the place of those without cannot be told; pass indices= in all updates of "
                "an epoch or in none"
            )
        if batch.start > self.position:
            self.leave_out(batch)
        divisor = self._divisor(losses.shape[0])
        buffer = self._buffer
        if buffer is None or not buffer.takes(self.position, losses):
            self.flush()
            buffer = self._buffer = LossBuffer(self.share, self.position, losses)
        return buffer.put(self.position, losses, scores, reduction, divisor)

    def take_by_index(
        self,
        batch: Batch,
        losses: Tensor,
        scores: Tensor | None,
        ids: NDArray[np.int64],
    ) -> Factors:
        """Take in the losses of the samples `ids`, by their numbers in the data set.

        Args:
            batch: the place of these samples in the share.
            losses: (B,).
            scores: (B,) or None.
            ids: (B,).

        Returns:
            by what to multiply the losses.

        Raises:
            MisalignedUpdateError: they are not in the plan, or have come before.
        """
        in_order = batch.ids is None and batch.stop > batch.start  # the next ones of the plan
        plan = self.plan
        rows = plan.samples.rows(ids)
        if not (in_order or self.is_stream or self.exchanges or self.may_repeat):
            self._reordered.check_not_twice(rows, self.share, self.position, self.epoch)
        self._check_room(len(ids), max(self.position, batch.start))
        weights = plan.selection.weights_of(np.maximum(rows, 0))
        if not bool((weights[rows >= 0] > 0).all() and (rows >= 0).all()):
            pruned = ids[(weights == 0) | (rows < 0)][:5].tolist()
            raise MisalignedUpdateError(
                f"samples {pruned} are not in the plan of epoch {self.epoch}; draw "
                "batches from this pruner's sampler, and pass the data set's own indices"
            )
        if batch.start > self.position:
            self.leave_out(batch)
        divisor = self._divisor(len(ids))
        counted = weights > 0 if self.is_stream else self._reordered.counted(rows, self.share)
        self.flush()
        values = losses.detach().float().cpu().numpy()
        ranked = values if scores is None else scores.detach().float().cpu().numpy()
        if self.exchanges:
            own = None if scores is None else ranked
            self.pending.add(values, own, [len(rows)], np.where(counted, rows, NO_LOSS))
            self._told += len(rows)
        else:
            batches = [int(np.count_nonzero(counted))]
            self.note(rows[counted], values[counted], ranked[counted], batches)
            if not (in_order or self.is_stream):
                self.note_done(rows[counted])
        weights = np.where(counted, weights, 0.0)
        dtype = torch.float64 if losses.dtype == torch.float64 else torch.float32
        return Factors(torch.from_numpy(weights).to(losses.device, dtype), divisor)

    def _divisor(self, count: int) -> float | None:
        if self.world.size == 1 or self.is_stream:
            return None
        return self.share.divisor(self.position, self.position + count)

    def advance(self, batch: Batch, count: int) -> None:
        """A batch with `count` losses, or without any, has been accounted for."""
        is_placed = batch.stop > batch.start
        self.position = batch.stop if is_placed else self.position + count
        if self.is_stream:
            self._stream_batch = self._stream_batch or count
            self._stream_steps += 1

    def leave_out(self, batch: Batch) -> None:
        """Go on behind the samples that the loop has left out before a batch."""
        if batch.passed is not None:
            self.note_done(self.plan.samples.rows(batch.passed))
        self.position = batch.start

    def skip(self, batch: Batch) -> None:
        """The loop leaves out the batch that is due on purpose."""
        if batch.start > self.position:
            self.leave_out(batch)
        if batch.ids is not None:
            self.note_done(self.plan.samples.rows(batch.ids))

    def end(self, tail: int) -> None:
        """No losses will come of the last `tail` samples that were delivered."""
        self.position += tail
        self._reordered.note_nameless(tail)

    def note_done(self, rows: NDArray[np.int64]) -> None:
        """These rows have been accounted for, in another order than that of the plan."""
        if self.exchanges:
            return  # known to all ranks when they exchange
        self._reordered.note(rows, self.share.counted_rows(0, self.position))

    # ------------------------------------------------------------------ losses

    def flush(self) -> None:
        """Record what the buffer holds; what it has no losses of was left out."""
        for stretch in self._buffer.drain() if self._buffer is not None else ():
            start, losses, scores, batches = stretch
            if self.exchanges:
                self._tell_left_out(start)
                self.pending.add(losses, scores, batches)
                self._told += len(losses)
                continue
            rows = self.share.counted_rows(start, start + len(losses))
            if len(rows) < len(losses):  # padding
                batches = cut_batches(batches, len(rows))
                losses = losses[: len(rows)]
                scores = None if scores is None else scores[: len(rows)]
            self.note(rows, losses, losses if scores is None else scores, batches)
        if self.is_prepared and self.exchanges:
            self._tell_left_out(self.position)

    def _tell_left_out(self, position: int) -> None:
        """Samples up to that position that the other ranks will get no losses of."""
        if position > self._told:
            self.pending.skip(position - self._told)
            self._told = position

    def note(
        self,
        rows: NDArray[np.integer[Any]],
        losses: FloatArray,
        scores: FloatArray,
        batches: list[int],
    ) -> None:
        """Record losses and scores (M,) of rows, which came in batches of these sizes."""
        self.planner.record(rows, scores, batches)
        self.tally.add(losses, scores, batches)

    def headroom(self) -> Headroom:
        """By the scores of this rank, before the epoch and now."""
        planner = self.planner
        return Headroom.of(self.before, planner.scores.values, planner.policy.bounds)

    # ------------------------------------------------------------------ other ranks

    def header(self, occasion: int, count: int | None = None) -> Header:
        """Where this rank stands, for the others; `count` of what it will send."""
        is_planning = occasion in (PLANNING, SHARING)
        apart, plan = self.is_kept_apart, self.planned
        return Header(
            occasion=occasion,
            epoch=self.epoch,
            start=round(self.steps_before) if apart else self.start,
            position=0 if is_planning else self.position,
            plan=0 if apart or plan is None else plan_digest(plan),
            count=len(self.pending) if count is None else count,
            has_scores=self.pending.has_scores,
            rows=self.pending.kind_of_rows,
        )

    def gather(self, meeting: Meeting) -> None:
        """Make the losses of all ranks known to all; a collective operation."""
        plan, share = self.plan, self.share
        done = share.position(self.position - len(self.pending))
        planned = plan.order[done : share.position(self.position)]
        if any(header.count for header in meeting.headers):
            rows, losses, scores, batches = gather_losses(meeting, self.pending, planned)
            if max(header.rows for header in meeting.headers) == OWN_ROWS and not self.is_stream:
                self._reordered.note(rows, plan.order[self.start : done])
            self.note(rows, losses, scores, batches)
        self.pending = PendingLosses()

    # ------------------------------------------------------------------ checks

    def _check_room(self, count: int, position: int) -> None:
        plan, share = self.plan, self.share
        if not self.is_stream and position + count > len(share):
            raise MisalignedUpdateError(
                f"update got {count} more losses at position {position} of an epoch of "
                f"{len(share)} samples; call it once per batch"
            )
        if self.is_stream and position > 2 * len(plan):
            raise MisalignedUpdateError(
                f"more than twice as many samples have come as epoch {self.epoch} was planned "
                "with; call pruner.end_epoch() after each loop over the stream"
            )
