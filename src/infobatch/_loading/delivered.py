"""The account by the batches that a `DataLoader` has delivered."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sized

from infobatch._loading.ledger import WITH_INDICES, Batch, Ledger, ReadAhead
from infobatch._loading.loader_facts import LoaderFacts
from infobatch.errors import MisalignedUpdateError


class DeliveredLedger(Ledger):
    """The account by the batches that a DataLoader has delivered.

    With d batches delivered, the losses belong to batch d - 1 - ahead, where `ahead` is what the
    host declares to have drawn beyond it, 0 in a plain loop. A number that is skipped is a batch
    that the loop has left out. At an epoch's end a host that reads ahead has all batches delivered
    while it trains on the last of them; there, and within a group that is drawn at once, batches
    are taken one after the other.

    Args:
        total: number of samples to hand out.
        loader: what is known of the loader, its iterator among it.
        ahead: how the host reads ahead.
        is_proven: whether an update of the run has shown before that a host that declares nothing
            reads nothing ahead.
    """

    def __init__(
        self,
        total: int,
        loader: LoaderFacts,
        ahead: ReadAhead,
        *,
        is_proven: bool,
    ) -> None:
        super().__init__(total, loader)
        self.is_proven = is_proven
        self._ahead, self._group = ahead.batches or 0, ahead.group
        self._is_said = ahead.batches is not None
        self._is_plain = self._ahead == 0 and self._group == 1
        self._keeps_order = self._knows_batches and loader.in_order
        self._size = loader.batch_size or 1
        self._count = -(-self.deliverable // self._size)
        self._next = 0  # the first batch that may still get losses
        self._outstanding: Sized = ()  # what workers have drawn and not delivered
        self._unplaced = 0  # batches whose losses came with indices, in an unknown order

    # ------------------------------------------------------------------ batches

    @property
    def num_batches(self) -> int | None:
        """How many batches the loader delivers; None as long as it is not known."""
        return self._count if self._knows_batches else None

    @property
    def delivered(self) -> int:
        """How many batches the loader has delivered, those whose loading failed among them.

        Drawn less outstanding; also when the iterator is gone. Not the iterator's own count of what
        it has yielded, which leaves out a batch whose loading has failed.
        """
        handed_out: int = self._taken - self._chunk.__length_hint__()  # type: ignore[attr-defined]
        return min(self._count, -(-handed_out // self._size)) - len(self._outstanding)

    def _begin(self) -> None:
        """Take hold of what workers have not delivered yet; it is new in each iteration."""
        iterator = self.loader.iterator()
        if self.loader.num_workers and iterator is not None:
            # Not there where a batch sampler draws all when it is iterated, before the workers are.
            self._outstanding = getattr(iterator, "_task_info", ())

    def _batch(self, number: int) -> Batch:
        start = number * self._size
        stop = start + self._size
        return Batch(start, min(self.total, stop))

    @property
    def _knows_batches(self) -> bool:
        return self.loader.batch_size is not None and self.loader.reordered_by is None

    # ------------------------------------------------------------------ losses

    def due(self, position: int, count: int | None) -> Batch:
        """See `Ledger.due`."""
        if count is None:
            return self._due_by_index(position)
        if not self._keeps_order or threading.get_ident() != self._thread:
            self._refuse_order()
        number = self._number()
        batch = self._batch(number)
        if count != batch.stop - batch.start:
            size = batch.stop - batch.start
            raise MisalignedUpdateError(
                f"update got {count} losses, but batch {number} of this epoch has {size} samples "
                f"({self._seen()}); pass the losses of the whole batch, one per sample. If "
                "collate_fn drops samples, return the indices of the others and call "
                "update(losses, indices=indices)"
            )
        return batch

    def coming(self, position: int, count: int) -> Batch:
        """See `Ledger.coming`."""
        if not self._keeps_order:
            self._refuse_order()
        start = self._batch(self._number()).start
        return Batch(start, start + count)

    @property
    def mark(self) -> int:
        """See `Ledger.mark`."""
        return self.delivered

    def _due_by_index(self, position: int) -> Batch:
        """The batch whose indices came, if it is the next, or more of the one before.

        Whether it is has to be checked by its samples. Where batches are missing in between, they
        may have been left out or be still to come, and the place is not known.
        """
        if self._knows_batches and not self._unplaced:
            number = self.delivered - 1
            if number >= 0 and self._next - 1 <= number <= self._next:
                return self._batch(number)
        return Batch(position, position)

    def _refuse_order(self) -> None:
        if self.loader.reordered_by is not None or not self._knows_batches:
            by = self.loader.reordered_by or "an unknown batch sampler"
            raise MisalignedUpdateError(
                f"the loader's batches are formed by {by}, which may change the order of the "
                "pruner's sampler, so it cannot be told whose losses these are. Let the pruner "
                f"note the batches: DataLoader(..., batch_sampler=pruner.batches(batch_sampler)); "
                f"or {WITH_INDICES}"
            )
        if not self.loader.in_order:
            raise MisalignedUpdateError(
                "the DataLoader was built with in_order=False, so losses come back in another "
                "order than that in which samples were drawn; leave in_order at True, or "
                + WITH_INDICES
            )
        raise MisalignedUpdateError(
            "the loader is iterated in another thread than that which calls update, so it cannot "
            "be told how far that thread has read ahead; iterate it in the training loop itself "
            f"(workers and pinning read ahead as well), or {WITH_INDICES}"
        )

    def _number(self) -> int:
        """The number of the batch that the host trains on."""
        delivered = self.delivered
        if self._is_plain and self.is_proven and 0 < self._next < delivered:
            return delivered - 1
        if not delivered:
            raise MisalignedUpdateError(
                "update or skip was called before the loader has delivered a batch of this epoch. "
                "Call update once per batch, inside `for batch in loader`, and make an epoch's "
                "iterator after the last update of the epoch before"
            )
        count, ahead, group = self.num_batches, self._ahead, self._group
        at_first = group + ahead if count is None else min(group + ahead, count)
        drew_all = not self._is_said and count is not None and delivered == count > at_first
        if self._next == 0 and (drew_all or not self.is_proven):
            self._check_first(delivered, at_first)
        if count is not None and delivered >= count:
            last = count - 1
            first = max(0, -(-(count - ahead) // group) - 1) * group
        else:
            last = delivered - ahead - 1
            first = last - group + 1
        if first < 0 or first % group:
            raise MisalignedUpdateError(
                f"{self._seen()}, but a host that reads ahead {ahead} and draws {group} at a time "
                "has another number; set pruner.sampler.batches_ahead and batches_at_once to what "
                "it does"
            )
        if self._next % group and first > self._next:
            raise MisalignedUpdateError(
                f"of {group} batches that were drawn at once one was left out, and it cannot be "
                f"told which ({self._seen()}); call pruner.skip(batch_size) where it is left out"
            )
        number = max(first, self._next)
        if number > last:
            raise MisalignedUpdateError(
                f"batch {last} of this epoch has got its losses already: update was called twice "
                f"for it, or with the losses of another loader ({self._seen()}). Call it once per "
                "batch, with one loss per sample; add several losses of a sample before"
            )
        return number

    def _seen(self) -> str:
        """What was seen, for messages."""
        count = "an unknown number" if self.num_batches is None else str(self.num_batches)
        return f"the loader has delivered {self.delivered} of {count} batches"

    def _check_first(self, delivered: int, due: int) -> None:
        if delivered == due:
            return
        if self._ahead:
            raise MisalignedUpdateError(
                f"pruner.sampler.batches_ahead is {self._ahead}, so {due} batches had to be "
                f"delivered before the first update, but there were {delivered}; set it to what "
                "the loop does, and leave no batch out before the first update"
            )
        raise MisalignedUpdateError(
            f"the loader has delivered {delivered} batches before the first update, where {due} "
            "was due, and it cannot be told which of them is trained on. If your loop or something "
            "around the loader reads ahead, say by how much before the loop: "
            f"pruner.sampler.batches_ahead = {delivered - self._group}. If the loop has left out "
            "what came before, say that it reads nothing ahead: pruner.sampler.batches_ahead = 0"
        )

    def settle(self, batch: Batch) -> None:
        """See `Ledger.settle`."""
        if batch.stop == batch.start:
            self._unplaced += 1
            return
        self._next = self._number_of(batch) + 1
        if not self.is_proven:
            self.is_proven = self.num_batches != 1

    def _number_of(self, batch: Batch) -> int:
        return batch.start // self._size

    # ------------------------------------------------------------------ the end

    def is_complete(self, position: int) -> bool:
        """See `Ledger.is_complete`."""
        return position >= self.deliverable

    def is_left(self, position: int) -> bool:
        """See `Ledger.is_left`."""
        if (self._ahead or self._unplaced) and self.has_delivered_all:
            return False  # the last batches may still have to be trained on
        return not self.is_running

    @property
    def is_running(self) -> bool:
        """See `Ledger.is_running`."""
        iterator = self.loader.iterator()
        if iterator is None:
            return False
        if self.loader.is_kept:
            return sys.getrefcount(iterator) > _ALONE
        if self.loader.num_workers == 0:
            drawing = getattr(iterator, "_sampler_iter", None)
            return getattr(drawing, "gi_frame", True) is not None  # None: it has returned
        return not getattr(iterator, "_shutdown", False)

    @property
    def has_delivered_all(self) -> bool:
        """See `Ledger.has_delivered_all`."""
        return self.num_batches is not None and self.delivered == self.num_batches

    def is_on_last(self, position: float) -> bool:
        """See `Ledger.is_on_last`."""
        count, delivered = self.num_batches, self.delivered
        if count is None:
            return False
        return self._next >= count or (delivered >= count and self._is_plain)

    def left_out(self, position: int) -> int:
        """See `Ledger.left_out`."""
        delivered = self.delivered
        if not self._knows_batches or self._ahead or delivered == 0:
            return 0
        return max(0, self._batch(delivered - 1).stop - position)


class _Kept:
    """Stands for an iterator that one other object keeps, as a loader with persistent workers."""

    def iterator(self) -> _Kept:
        """Itself: what a weak reference to it gives."""
        return self


def _count_alone(keeper: list[_Kept]) -> int:
    """What `is_running` counts of an iterator that no loop holds."""
    iterator = keeper[0].iterator()
    return sys.getrefcount(iterator)


_ALONE = _count_alone([_Kept()])
