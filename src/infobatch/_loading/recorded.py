"""The account of batches of the user's own making, noted as they were drawn."""

from __future__ import annotations

import bisect

import numpy as np

from infobatch._loading.batches import Record
from infobatch._loading.delivered import DeliveredLedger
from infobatch._loading.ledger import Batch


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
    def delivered(self) -> int:
        """See `DeliveredLedger.delivered`."""
        return len(self._record.batches) - len(self._outstanding)

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
