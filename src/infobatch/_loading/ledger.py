"""Whose losses these are: the account of one iteration over the share of an epoch plan.

A `DataLoader` returns batches in the order in which it drew their indices, and its iterator knows
how many it has delivered. So the losses of an `update` are those of the batch that was delivered
last, whatever the workers have read ahead, and no index has to travel with the data. Where no such
iterator can be seen, the account is kept by the indices that were drawn. The accounts: `delivered`,
`recorded` (batches that the user has formed), `drawn`.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infobatch._core.plan import IndexArray
from infobatch._loading.loader_facts import LoaderFacts, nothing
from infobatch.errors import InfoBatchError

_CHUNK = 1024  # indices turned into Python ints at a time
WITH_INDICES = "return each sample's index with it and call update(losses, indices=indices)"


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
    """What the accounts share: handing out, and the end of the epoch.

    Attributes:
        deliverable: position after the last loss that can come: whole batches under drop_last.
        is_proven: whether an update has shown that the host reads ahead as it says.

    Args:
        total: number of samples to hand out.
        loader: what is known of the loader.
    """

    def __init__(self, total: int, loader: LoaderFacts) -> None:
        self.total, self.loader = total, loader
        self.deliverable = loader.deliverable(total)
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
