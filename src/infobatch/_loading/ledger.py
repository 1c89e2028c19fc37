"""Whose losses these are: the account of one iteration over the share of an epoch plan.

A `DataLoader` returns batches in the order in which it drew their indices, and its iterator knows
how many it has delivered. So the losses of an `update` are those of the batch that was delivered
last, whatever the workers have read ahead, and no index has to travel with the data. Where no such
iterator can be seen, the account is kept by the indices that were drawn: see `DrawnLedger`.
"""

from __future__ import annotations

import bisect
import itertools
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infobatch._core.plan import IndexArray
from infobatch._loading.batches import Record
from infobatch._loading.loader_facts import LoaderFacts, nothing
from infobatch.errors import InfoBatchError, MisalignedUpdateError

_CHUNK = 1024  # indices turned into Python ints at a time
_WITH_INDICES = "return each sample's index with it and call update(losses, indices=indices)"


@dataclass(frozen=True)
class ReadAhead:
    """How a host draws batches from the loader before it trains on them.

    Attributes:
        batches: that it has drawn beyond the one, or the group, that it trains on; None: not said,
            to be found 0 at the first update.
        group: batches that it draws at once, to train on one after the other.
    """

    batches: int | None = None
    group: int = 1


class Batch(NamedTuple):
    """A batch of the share whose losses are due.

    Attributes:
        start, stop: positions in the share: how many samples were drawn for the batches before it,
            and with it.
        ids: (B,) int64 numbers of its samples in the data set, where they are not those of the
            plan from `start` on; None where they are.
        passed: (M,) int64 numbers of the samples of batches that were left out before it, where
            `ids` is given.
    """

    start: int
    stop: int
    ids: NDArray[np.int64] | None = None
    passed: NDArray[np.int64] | None = None


class Ledger(ABC):
    """What the two kinds of account share: handing out, and the end of the epoch.

    Attributes:
        is_proven: whether an update has shown that the host reads ahead as it says.

    Args:
        total: number of samples to hand out.
        loader: what is known of the loader.
    """

    def __init__(self, total: int, loader: LoaderFacts) -> None:
        self.total, self.loader = total, loader
        self.is_proven = False
        self._taken = 0
        self._chunk: Iterator[int] = iter(())
        self._polled_past_end = False
        self._chunks_of_loop: Callable[[], Any] = nothing
        self._thread = threading.get_ident()

    def draw(self, ids: Callable[[int, int], IndexArray]) -> Iterator[int]:
        """Hand out the samples ids(0, total); at C speed, and its own `iter`.

        The ledger keeps no reference to them: it outlives its epoch, and they should not.
        """
        chunks = self._chunks(ids)
        self._chunks_of_loop = weakref.ref(chunks)
        return itertools.chain.from_iterable(chunks)

    def _begin(self) -> None:  # noqa: B027  # nothing, for most
        """Called when the first index is drawn."""

    def _chunks(self, ids: Callable[[int, int], IndexArray]) -> Iterator[Iterator[int]]:
        self._begin()
        for start in range(0, self.total, _CHUNK):
            chunk: list[int] = ids(start, min(start + _CHUNK, self.total)).tolist()
            self._taken = start + len(chunk)
            self._chunk = iter(chunk)
            self._thread = threading.get_ident()
            yield self._chunk
        self._polled_past_end = True

    @property
    def handed_out(self) -> int:
        """How many indices have been drawn; costs nothing while drawing."""
        return self._taken - self._chunk.__length_hint__()  # type: ignore[attr-defined, no-any-return]

    @property
    def deliverable(self) -> int:
        """Position after the last loss that can come: whole batches under drop_last."""
        size = self.loader.batch_size
        if not self.loader.drop_last or size is None:
            return self.total
        return self.total - self.total % size

    def check_drawable(self) -> None:
        """Check that there is at least one batch to hand out.

        Raises:
            InfoBatchError: the loader has drop_last=True and too few samples are left.
        """
        if self.loader.batch_size is not None and self.deliverable == 0:
            raise InfoBatchError(
                f"this epoch keeps {self.total} samples, fewer than one batch of "
                f"{self.loader.batch_size}, and the loader has drop_last=True, so nothing would "
                "ever be trained; use drop_last=False, a smaller batch_size or prune_ratio, or a "
                "larger budget"
            )

    @abstractmethod
    def due(self, position: int, count: int | None) -> Batch:
        """The batch that `count` losses are of; nothing is changed.

        Args:
            position: position in the share after the last batch that was accounted for.
            count: None where the losses come with indices, and may be fewer than the batch's.

        Raises:
            MisalignedUpdateError: it cannot be told, or they cannot be of the batch that is due.
        """

    def coming(self, position: int, count: int) -> Batch:
        """The next `count` samples whose losses are due, of one batch or a group of batches."""
        return Batch(position, position + count)

    @property
    def mark(self) -> int:
        """A number that changes when the loop over the loader goes on."""
        return self.handed_out

    @abstractmethod
    def settle(self, batch: Batch) -> None:
        """The losses of a batch that was due have been taken in."""

    @abstractmethod
    def is_complete(self, position: int) -> bool:
        """Whether no further loss can come once `position` samples have been accounted for."""

    @abstractmethod
    def is_left(self, position: int) -> bool:
        """Whether it is certain that the loop has been left, so that no further loss will come."""

    @property
    def is_running(self) -> bool:
        """Whether a loop over the loader may be going on."""
        return self._chunks_of_loop() is not None

    def check_end(self, position: int) -> None:  # noqa: B027  # nothing, where all is seen at once
        """Check, when an epoch ends before its last loss, that it was merely left early."""

    def left_out(self, position: int) -> int:
        """How many samples were delivered and got no losses by the end of the epoch, if seen."""
        return 0

    @property
    def has_delivered_all(self) -> bool:
        """Whether the whole epoch has been delivered."""
        return self._polled_past_end

    def is_on_last(self, position: float) -> bool:
        """Whether the batch that is trained on, or was trained on last, is the epoch's last."""
        size = self.loader.batch_size or 0
        return self.handed_out >= self.deliverable and self.deliverable - position <= size


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
        return self._drawn - len(self._outstanding)

    @property
    def _drawn(self) -> int:
        drawn = -(-self.handed_out // self._size)
        return min(self._count, drawn)

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
                f"or {_WITH_INDICES}"
            )
        if not self.loader.in_order:
            raise MisalignedUpdateError(
                "the DataLoader was built with in_order=False, so losses come back in another "
                "order than that in which samples were drawn; leave in_order at True, or "
                + _WITH_INDICES
            )
        raise MisalignedUpdateError(
            "the loader is iterated in another thread than that which calls update, so it cannot "
            "be told how far that thread has read ahead; iterate it in the training loop itself "
            f"(workers and pinning read ahead as well), or {_WITH_INDICES}"
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


class RecordedLedger(DeliveredLedger):
    """The account of batches of the user's own making, noted as they were drawn.

    Its loader has a record.
    """

    @property
    def _record(self) -> Record:
        assert self.loader.recorded is not None
        return self.loader.recorded

    @property
    def num_batches(self) -> int | None:
        """See `DeliveredLedger.num_batches`."""
        return len(self._record.batches) if self._record.is_complete else None

    @property
    def _drawn(self) -> int:
        return len(self._record.batches)

    def _batch(self, number: int) -> Batch:
        noted, stop = self._record.batches, self._record.ends[number]
        passed = np.concatenate([np.empty(0, np.int64), *noted[self._next : number]])
        return Batch(stop - len(noted[number]), stop, noted[number], passed)

    def _number_of(self, batch: Batch) -> int:
        return bisect.bisect_left(self._record.ends, batch.stop)

    @property
    def _knows_batches(self) -> bool:
        return True

    @property
    def is_running(self) -> bool:
        """See `Ledger.is_running`."""
        return super().is_running if self.loader.is_seen else self._record.loop() is not None

    def is_complete(self, position: int) -> bool:
        """See `Ledger.is_complete`."""
        return self._record.is_complete and position >= self._record.ends[-1]

    def coming(self, position: int, count: int) -> Batch:
        """See `Ledger.coming`."""
        number = self._number()
        batch = self._batch(number)
        assert batch.ids is not None
        ids = np.concatenate(self._record.batches[number:])[:count]
        return Batch(batch.start, batch.start + len(ids), ids)

    def _due_by_index(self, position: int) -> Batch:
        return Batch(position, position)


def _count_of_references(holder: Any) -> int:
    iterator = holder.iterator()
    return sys.getrefcount(iterator)


class _Holder:
    """Stands for a loader that keeps its iterator, and for nothing else that does."""

    def __init__(self) -> None:
        self.kept = _Kept()

    def iterator(self) -> Any:
        return self.kept


class _Kept:
    pass


_ALONE = _count_of_references(_Holder())  # where a loader with persistent workers alone holds it


class DrawnLedger(Ledger):
    """The account by the indices that were drawn, where no DataLoader can be seen.

    Indices drawn minus losses returned, the look-ahead, is the same at every update until the plan
    is used up. If it grows, a batch was left out or something drew more than it delivered; if it
    shrinks, an update came twice. What this cannot see: batches left out before the first update
    or when all indices have been drawn, and any change of order.

    Args:
        total: number of samples to hand out.
        loader: what is known of the loader.
        batches_at_once: batches that the host draws before it trains on the first of them.
    """

    def __init__(self, total: int, loader: LoaderFacts, batches_at_once: int = 1) -> None:
        super().__init__(total, loader)
        self._at_once = batches_at_once
        self._look_ahead: int | None = None
        self._size: int | None = None  # of the first batch

    def due(self, position: int, count: int | None) -> Batch:
        """See `Ledger.due`."""
        if count is None:
            return Batch(position, position)
        if self.loader.reordered_by is not None:
            raise MisalignedUpdateError(
                f"{self.loader.reordered_by} stands around the pruner's sampler and may change its "
                "order, so it cannot be told whose losses these are. Let the pruner note batches "
                f"that you form yourself, pruner.batches(batch_sampler), or {_WITH_INDICES}"
            )
        total, handed_out = self.total, self.handed_out
        ahead = handed_out - position
        if ahead < count:
            raise MisalignedUpdateError(
                f"update got {count} losses, but only {ahead} samples have been handed out and "
                f"not been updated yet (position {position} of {total}). Call update once per "
                "batch, with the losses of that batch alone, and iterate the loader that was "
                "built with this pruner's sampler"
            )
        if self._look_ahead is None:
            self._check_first(ahead, count)
        elif ahead != count:  # with exactly this batch outstanding the account is balanced
            self._compare(position, count)
        return Batch(position, position + count)

    def _check_first(self, ahead: int, count: int) -> None:
        size = self.loader.batch_size
        if size is not None and count != min(size, ahead):
            raise MisalignedUpdateError(
                f"update got {count} losses for the first batch, but the loader's batch_size is "
                f"{size}; pass the losses of the whole batch, one per sample. If collate_fn "
                "drops samples, return their indices and call update(losses, indices=indices)"
            )
        if self.handed_out != self.total and ahead % count:
            raise MisalignedUpdateError(
                f"update got {count} losses for the first batch, but the loader has drawn {ahead} "
                "samples, which is no whole number of such batches; pass one loss per sample of "
                "the batch, or, where batches differ in size, update(losses, indices=indices)"
            )

    def _compare(self, position: int, count: int) -> None:
        assert self._look_ahead is not None
        assert self._size is not None
        total, handed_out = self.total, self.handed_out
        drawn_for = position - position % (self._at_once * self._size)
        expected = min(drawn_for + self._look_ahead, total)
        where = f"(position {position} of {total}, {handed_out} samples drawn, {expected} expected)"
        if handed_out > expected:
            raise MisalignedUpdateError(
                f"{handed_out - expected} samples were drawn whose losses never came {where}: a "
                "batch was left out, or something between sampler and loop drew more than it "
                "delivered, such as a second sharding. Call pruner.skip(batch_size) for a batch "
                "that you leave out on purpose; give an already sharded or prepared loader no "
                "second sharding; or pass update(losses, indices=indices)"
            )
        if handed_out < expected:
            raise MisalignedUpdateError(
                f"losses of {expected - handed_out} samples too many have come {where}: update was "
                "called twice for a batch, or with the losses of another loader. Call it once per "
                "batch"
            )
        if count != self._size and position + count < total:
            raise MisalignedUpdateError(
                f"update got {count} losses where the batches before had {self._size} {where}: a "
                "batch was left out earlier, or losses were filtered. Pass the losses of the "
                "whole batch, call pruner.skip(batch_size) for one left out on purpose, or, "
                "where batches differ in size, pass update(losses, indices=indices)"
            )

    def settle(self, batch: Batch) -> None:
        """See `Ledger.settle`."""
        if self._look_ahead is None and batch.stop > batch.start:
            self._look_ahead = self.handed_out - batch.start
            self._size = batch.stop - batch.start

    def is_complete(self, position: int) -> bool:
        """See `Ledger.is_complete`."""
        return position >= self.deliverable

    def is_left(self, position: int) -> bool:
        """See `Ledger.is_left`."""
        return not self.is_running and (not self._polled_past_end or self.handed_out == position)

    def check_end(self, position: int) -> None:
        """A batch left out before the first update looks like a larger look-ahead.

        The ledger took it for the loader's own. It shows in the end: all is drawn, and just as
        many losses are missing as the look-ahead was larger than a loader's without workers.

        Raises:
            MisalignedUpdateError: the losses of the epoch were shifted by a batch.
        """
        size = self.loader.batch_size
        if self._look_ahead is None or size is None:
            return
        missing = self.total - position
        unexplained = self._look_ahead - self._at_once * size
        partial = self.total % size
        if partial and not self.loader.drop_last:
            return  # the last batch, by its size, has shown it
        if unexplained > 0 and self._polled_past_end and missing == unexplained + partial:
            raise MisalignedUpdateError(
                f"all samples were drawn, but the losses of {missing} never came: a batch was left "
                "out before the first update, so that the scores of this epoch belong to other "
                "samples. Call pruner.skip(batch_size) for a batch that you leave out on purpose"
            )
