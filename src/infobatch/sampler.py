"""PlanSampler hands out the epoch plan; the Ledger proves that losses come back in its order."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler, Sampler

from infobatch.errors import InfoBatchError, MisalignedUpdateError, StateError
from infobatch.plan import IndexArray

_CHUNK = 1024  # indices turned into Python ints at a time


class PlanSampler(Sampler[int]):
    """The order of the epoch that is about to run, for any DataLoader or BatchSampler.

    One object for the whole run. `len` is that of the coming epoch. Iterating starts that
    epoch; iterating again before any loss has arrived starts it again, so that a look at the
    first batch costs nothing.

    Args:
        begin: starts, or starts again, the epoch that is due; gives its indices.
        remaining: number of samples that the next iteration hands out.
        set_epoch: checks an epoch that is announced.
        has_begun: whether any loss of the run has come.
    """

    def __init__(
        self,
        begin: Callable[[LoaderFacts], Iterator[int]],
        remaining: Callable[[], int],
        set_epoch: Callable[[int], None],
        has_begun: Callable[[], bool],
    ) -> None:
        self._begin, self._remaining = begin, remaining
        self._set_epoch, self._has_begun = set_epoch, has_begun

    def __iter__(self) -> Iterator[int]:
        return self._begin(LoaderFacts.of_caller(self))

    def __len__(self) -> int:
        return self._remaining()

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch that is about to run, as loops written for DistributedSampler do.

        Not needed: the pruner counts epochs by itself. Calling it again changes nothing.

        Args:
            epoch: 0-based.

        Raises:
            EpochError: it is not that epoch's turn.
        """
        self._set_epoch(epoch)

    def state_dict(self) -> dict[str, bool]:
        """For loaders that save their sampler's state, such as torchdata's StatefulDataLoader.

        Where the epoch stands is the pruner's state and not repeated here: a loader would save
        how far it has read ahead, and the pruner knows what has been trained on.
        """
        return {"has_begun": self._has_begun()}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        """Check that the pruner's own state has been loaded too, and before.

        Raises:
            StateError: it has not, so that the loader would start the run again.
        """
        if state.get("has_begun") and not self._has_begun():
            raise StateError(
                "the loader's state is that of a run which had begun, but the pruner stands at "
                "its start; save pruner.state_dict() beside the loader's state, and call "
                "pruner.load_state_dict() before iterating the loader"
            )


@dataclass(frozen=True)
class LoaderFacts:
    """What can be seen of the loader that draws from the sampler; None where it cannot."""

    batch_size: int | None = None
    drop_last: bool = False
    batches_ahead: int | None = None
    in_order: bool = True

    @classmethod
    def of_caller(cls, sampler: object) -> LoaderFacts:
        """Look up the call stack for the BatchSampler and the DataLoader that are iterating.

        Used to give errors earlier and to know drop_last; everything works without it.
        """
        batch_size: int | None = None
        drop_last = False
        frame = sys._getframe(2)
        for _ in range(6):
            caller: Any = frame.f_locals.get("self")
            if isinstance(caller, BatchSampler) and getattr(caller, "sampler", None) is sampler:
                batch_size, drop_last = caller.batch_size, caller.drop_last
            elif hasattr(caller, "_index_sampler") and hasattr(caller, "_num_workers"):
                workers = int(caller._num_workers)
                prefetch = int(getattr(caller, "_prefetch_factor", None) or 0)
                in_order = bool(getattr(caller, "_in_order", True)) or workers == 0
                return cls(batch_size, drop_last, 1 + workers * prefetch, in_order)
            if frame.f_back is None:
                break
            frame = frame.f_back
        return cls(batch_size, drop_last)


class Ledger:
    """The account of one iteration over a plan: handed out, against updated.

    A loader returns batches in the order in which it drew their indices, some batches after
    drawing them. For a given loader this look-ahead, indices handed out minus losses returned,
    is the same at every update until the plan is used up. If it grows, a batch was left out or
    something between sampler and loop drew more than it delivered; if it shrinks, an update
    came twice. So the account shows whether a vector of losses belongs to the next samples of
    the plan, and no index has to travel with the data.

    Args:
        total: number of samples to hand out.
        loader: what is known of the loader.
    """

    def __init__(self, total: int, loader: LoaderFacts) -> None:
        self.loader = loader
        self._total = total
        self._taken = 0
        self._chunk: Iterator[int] = iter(())
        self._polled_past_end = False
        self._look_ahead: int | None = None
        self._batch: int | None = None

    def draw(self, ids: Callable[[int, int], IndexArray]) -> Iterator[int]:
        """Hand out the samples ids(0, total); at C speed, and its own `iter`.

        The ledger keeps no reference to them: it outlives its epoch, and they should not.
        """
        return itertools.chain.from_iterable(self._chunks(ids))

    def _chunks(self, ids: Callable[[int, int], IndexArray]) -> Iterator[Iterator[int]]:
        for start in range(0, self._total, _CHUNK):
            chunk: list[int] = ids(start, min(start + _CHUNK, self._total)).tolist()
            self._taken = start + len(chunk)
            self._chunk = iter(chunk)
            yield self._chunk
        self._polled_past_end = True

    @property
    def handed_out(self) -> int:
        """How many indices have been drawn; costs nothing while drawing."""
        return self._taken - self._chunk.__length_hint__()  # type: ignore[attr-defined, no-any-return]

    def check(self, position: int, count: int) -> None:
        """Check that `count` losses are those of the plan from `position` on.

        Raises:
            MisalignedUpdateError: they cannot be, or the loader does not keep the order.
        """
        total, handed_out = self._total, self.handed_out
        ahead = handed_out - position
        if not self.loader.in_order:
            raise MisalignedUpdateError(
                "the DataLoader was built with in_order=False, so losses come back in another "
                "order than that in which samples were drawn; leave in_order at True, or return "
                "each sample's index with it and call update(losses, indices=indices)"
            )
        if ahead < count:
            raise MisalignedUpdateError(
                f"update got {count} losses, but only {ahead} samples have been handed out and "
                f"not been updated yet (position {position} of {total}). Call update once per "
                "batch, with the losses of that batch alone, and iterate the loader that was "
                "built with this pruner's sampler"
            )
        if self._look_ahead is None:
            self._learn(ahead, count, exhausted=handed_out == total)
        elif ahead != count:  # with exactly this batch outstanding the account is balanced
            self._compare(position, count)

    def _learn(self, ahead: int, count: int, *, exhausted: bool) -> None:
        size = self.loader.batch_size
        if size is not None and count != min(size, ahead):
            raise MisalignedUpdateError(
                f"update got {count} losses for the first batch, but the loader's batch_size is "
                f"{size}; pass the losses of the whole batch, one per sample. If collate_fn "
                "drops samples, return their indices and call update(losses, indices=indices)"
            )
        if not exhausted and ahead % count:
            raise MisalignedUpdateError(
                f"update got {count} losses for the first batch, but the loader has drawn {ahead} "
                "samples, which is no whole number of such batches; pass one loss per sample of "
                "the batch, or, where batches differ in size, update(losses, indices=indices)"
            )
        self._look_ahead, self._batch = ahead, count

    def _compare(self, position: int, count: int) -> None:
        assert self._look_ahead is not None
        total, handed_out = self._total, self.handed_out
        expected = min(position + self._look_ahead, total)
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
        if count != self._batch and position + count < total:
            raise MisalignedUpdateError(
                f"update got {count} losses where the batches before had {self._batch} {where}: a "
                "batch was left out earlier, or losses were filtered. Pass the losses of the "
                "whole batch, call pruner.skip(batch_size) for one left out on purpose, or, "
                "where batches differ in size, pass update(losses, indices=indices)"
            )

    def check_end(self, position: int) -> None:
        """Check, when an epoch ends before its last loss, that it was merely left early.

        A batch left out before the first update looks like a larger look-ahead, which the
        ledger would take for the loader's own. It shows in the end: the loader is used up and
        just as many losses are missing as the look-ahead was larger than the loader's own.

        Raises:
            MisalignedUpdateError: the losses of the epoch were shifted by a batch.
        """
        size, batches = self.loader.batch_size, self.loader.batches_ahead
        if self._look_ahead is None or size is None or batches is None:
            return
        missing = self._total - position
        unexplained = self._look_ahead - batches * size
        partial = self._total % size
        if partial and not self.loader.drop_last:
            return  # the last batch, by its size, has shown it
        # A host that reads ahead, left before the last batch, has not asked for more yet.
        if unexplained > 0 and self._polled_past_end and missing == unexplained + partial:
            raise MisalignedUpdateError(
                f"all samples were drawn, but the losses of {missing} never came: a batch was left "
                "out before the first update, so that the scores of this epoch belong to other "
                "samples. Call pruner.skip(batch_size) for a batch that you leave out on purpose"
            )

    def check_drawable(self) -> None:
        """Check that what there is to hand out makes at least one batch.

        Raises:
            InfoBatchError: the loader has drop_last=True and too few samples are left.
        """
        size = self.loader.batch_size
        if size is not None and self.is_complete(0):
            raise InfoBatchError(
                f"this epoch keeps {self._total} samples, fewer than one batch of "
                f"{size}, and the loader has drop_last=True, so nothing would ever be trained; "
                "use drop_last=False, a smaller batch_size or a smaller prune_ratio"
            )

    @property
    def deliverable(self) -> int:
        """Plan position after the last loss that can come: whole batches under drop_last."""
        size = self.loader.batch_size
        if not self.loader.drop_last or size is None:
            return self._total
        return self._total - self._total % size

    def is_complete(self, position: int) -> bool:
        """Whether no further loss can come once `position` samples have been accounted for."""
        return position >= self.deliverable
