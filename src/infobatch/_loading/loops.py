"""Loops: which of the loops over a loader the account of an epoch follows."""

from __future__ import annotations

import math

from infobatch._core.user_warnings import warn_user
from infobatch._loading.delivered import DeliveredLedger
from infobatch._loading.drawn import DrawnLedger
from infobatch._loading.ledger import Batch, Ledger, ReadAhead
from infobatch._loading.loader_facts import LoaderFacts
from infobatch._loading.recorded import RecordedLedger
from infobatch.errors import MisalignedUpdateError, MissingUpdateWarning


class Loops:
    """The loop that is trained in, one that is only looked into, and that of the epoch before.

    Attributes:
        current: the account of the epoch that is due, from its first drawing on.
        finished: that of the epoch before, whose loop may still be at its last batch.
    """

    def __init__(self, *, reads_as_said: bool = False) -> None:
        self.current: Ledger | None = None
        self.finished: Ledger | None = None
        self._older: tuple[Ledger, int] | None = None  # before a look, and where it stood
        self._left_open: Ledger | None = None  # closed while its loop may have gone on
        self._reads_as_said = reads_as_said  # an update has shown it

    def of_a_copy(self) -> Loops:
        """For a copy of the pruner, from which no loader is drawing."""
        return Loops(reads_as_said=self._reads_as_said)

    # ------------------------------------------------------------------ losses

    def due(self, position: int, count: int | None, epoch: int) -> Batch:
        """The batch whose losses are due; `count` is None where they come with indices.

        Raises:
            MisalignedUpdateError: it cannot be told, or they cannot be of that batch.
        """
        if self._left_open is not None:
            self._check_open(epoch)
        if self._older is not None:
            self._end_look()
        if self.current is not None:
            return self.current.due(position, count)
        if count is None:
            return Batch(position, position)
        raise MisalignedUpdateError(
            "update or skip was called before any batch was drawn in this epoch, or once more "
            "than the epoch before had batches; iterate a loader built with "
            "sampler=pruner.sampler, and call update inside that loop, once per batch"
        )

    def coming(self, position: int, count: int) -> Batch:
        """The next samples whose losses are due."""
        self._end_look()
        if self.current is None:
            return Batch(position, position + count)
        return self.current.coming(position, count)

    def settle(self, batch: Batch, position: int, total: int) -> bool:
        """A batch that was due has been accounted for, `position` of `total` samples with it.

        Returns:
            whether no further loss of the epoch can come.
        """
        self._older = None
        ledger = self.current
        if ledger is None:
            return position >= total
        ledger.settle(batch)
        self._reads_as_said = self._reads_as_said or ledger.is_proven
        return ledger.is_complete(position)

    def _check_open(self, epoch: int) -> None:
        """Refuse losses while the loop of an epoch that a newer iterator has closed goes on."""
        if self._left_open is not None and self._left_open.is_running:
            raise MisalignedUpdateError(
                f"an iterator of epoch {epoch} was made while the loop over the epoch before "
                "was at its last batch, so it cannot be told to which these losses belong; make it "
                "after the last update of the epoch before"
            )
        self._left_open = None

    def _end_look(self) -> None:
        """Go back to an older loop, if a newer one was but a look at the first batch."""
        if self._older is None or self.current is None:
            return
        older, mark = self._older
        if older.is_running and not self.current.is_running:
            self.current, self._older = older, None
        elif older.mark != mark:
            raise MisalignedUpdateError(
                "the sampler was iterated anew while an earlier loop over it went on, so it "
                "cannot be told to which of the two these losses belong. Finish one loop "
                "before starting the next; to look at a batch, do so before the epoch"
            )

    # ------------------------------------------------------------------ a new iteration

    def arrive(self, loader: LoaderFacts, position: int, epoch: int) -> bool:
        """A loader is iterated: check that no loop within an epoch goes on.

        Returns:
            whether it is the iterator of the current loop, begun anew, as persistent workers do.

        Raises:
            MisalignedUpdateError: one goes on, or may do so.
        """
        older, is_reset = self.current, False
        if older is not None:
            is_reset = loader.is_seen and older.loader.iterator() is loader.iterator()
            if position > 0:
                self._check_left(older, position, epoch, is_reset=is_reset)
            elif older.loader.is_seen and older.has_delivered_all:
                warn_user(
                    f"all batches of epoch {epoch} were drawn, but update was never called, so "
                    "the same epoch is due again. Call pruner.update(losses) in every training "
                    "step; after an epoch that is to count without it, call pruner.end_epoch()",
                    MissingUpdateWarning,
                )
        self._left_open = None if is_reset or position == 0 else older
        return is_reset

    def enter(self, loader: LoaderFacts, ahead: ReadAhead, total: int, *, is_reset: bool) -> Ledger:
        """Follow a new loop that hands out `total` samples; the one before may go on after a look.

        Raises:
            InfoBatchError: nothing would be trained.
        """
        older = self.current
        ledger = self._ledger_for(loader, ahead, total)
        ledger.check_drawable()
        if older is not None and not is_reset and older.is_running:
            self._older = (older, older.mark)
        elif self._older is not None and not self._older[0].is_running:
            self._older = None
        self.current, self.finished = ledger, None
        return ledger

    def _ledger_for(self, loader: LoaderFacts, ahead: ReadAhead, total: int) -> Ledger:
        if not loader.is_seen and loader.recorded is None:
            return DrawnLedger(total, loader, ahead.group)
        kind = DeliveredLedger if loader.recorded is None else RecordedLedger
        is_proven = self._reads_as_said or ahead.batches == 0
        return kind(total, loader, ahead, is_proven=is_proven)

    def _check_left(self, older: Ledger, position: int, epoch: int, *, is_reset: bool) -> None:
        """Check that a loop within an epoch has been left: its iterator is gone, or at its end.

        Persistent workers begin the same iterator anew, so whether its loop goes on cannot be seen.
        """
        if (older.is_running or is_reset) and position < older.deliverable:
            if older.has_delivered_all:
                return
            alive = "its iterator, whose workers are persistent," if is_reset else "its iterator"
            raise MisalignedUpdateError(
                f"the loader is iterated anew while epoch {epoch} is under way and {alive} "
                f"is alive ({position} of {older.total} samples are accounted for). If that "
                "loop has been left for good, call pruner.end_epoch() first; to look at a batch, "
                "do so before the epoch"
            )

    # ------------------------------------------------------------------ the end of an epoch

    def close(self) -> None:
        """The epoch is over; a loss more than it had is an error from now on."""
        self.finished, self.current, self._older = self.current, None, None

    @property
    def has_drawn(self) -> bool:
        """Whether any sample of the epoch that is due has been handed out."""
        return self.current is not None and self.current.handed_out > 0

    @property
    def is_running(self) -> bool:
        """Whether a loop over the epoch that is due may be going on."""
        return self.current is not None and self.current.is_running

    @property
    def still_finishing(self) -> Ledger | None:
        """The account of the epoch before, while its loop is at its last batch."""
        return self.finished if self.finished is not None and self.finished.is_running else None

    def is_on_last(self, position: int) -> bool:
        """Whether the batch that is trained on, or was last, is the last of its epoch."""
        ledger = self.current or self.finished
        reached = position if self.current is not None else math.inf
        return ledger is not None and ledger.is_on_last(reached)
