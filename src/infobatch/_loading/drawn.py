"""The account by the indices that were drawn, where no `DataLoader` can be seen."""

from __future__ import annotations

from infobatch._loading.ledger import WITH_INDICES, Batch, Ledger
from infobatch._loading.loader_facts import LoaderFacts
from infobatch.errors import MisalignedUpdateError


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
                f"that you form yourself, pruner.batches(batch_sampler), or {WITH_INDICES}"
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
