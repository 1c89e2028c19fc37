"""PlanSampler hands out the epoch plan; the Ledger proves that losses come back in its order."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import BatchSampler, Sampler
from torch.utils.data.distributed import DistributedSampler

from infobatch.distributed import World
from infobatch.errors import InfoBatchError, MisalignedUpdateError, StateError
from infobatch.plan import IndexArray

_CHUNK = 1024  # indices turned into Python ints at a time


class PlanSampler(DistributedSampler[int]):
    """The order of the epoch that is about to run, for any DataLoader or BatchSampler.

    One object for the whole run. `len` is that of the coming epoch. Iterating starts that
    epoch; iterating again before any loss has arrived starts it again, so that a look at the
    first batch costs nothing.

    It is a `DistributedSampler`, as each rank gets its own share of the epoch from it: hosts
    that would otherwise shard a sampler of unknown kind a second time leave it alone.

    Attributes:
        batches_at_once: how many batches the host draws before it trains on the first of them.
            1 for nearly all; those that collect the batches of an optimizer step beforehand, as
            transformers' Trainer does, draw as many as they accumulate.
        host_counts_epochs: whether `set_epoch` announces the epochs of this run. False for hosts
            that call it with a count of their own, as Accelerate's loaders do.

    Args:
        begin: starts, or starts again, the epoch that is due; gives its indices.
        remaining: number of samples that the next iteration hands out.
        set_epoch: checks an epoch that is announced.
        has_begun: whether any loss of the run has come.
        world: the place of this process among those that share an epoch.
    """

    def __init__(
        self,
        begin: Callable[[LoaderFacts], Iterator[int]],
        remaining: Callable[[], int],
        set_epoch: Callable[[int], None],
        has_begun: Callable[[], bool],
        world: Callable[[], World],
    ) -> None:
        self._begin, self._remaining = begin, remaining
        self._set_epoch, self._has_begun, self._world = set_epoch, has_begun, world
        self.batches_at_once = 1
        self.host_counts_epochs = True

    def __iter__(self) -> Iterator[int]:
        facts = LoaderFacts.of_caller(self)
        return self._begin(replace(facts, batches_at_once=self.batches_at_once))

    def __len__(self) -> int:
        return self._remaining()

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process's place among those that share an epoch; hosts compare it with theirs."""
        return self._world().rank

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """How many processes share an epoch."""
        return self._world().size

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch that is about to run, as loops written for DistributedSampler do.

        Not needed: the pruner counts epochs by itself. Calling it again changes nothing. Does
        nothing where `host_counts_epochs` is False.

        Args:
            epoch: 0-based.

        Raises:
            EpochError: it is not that epoch's turn.
        """
        if self.host_counts_epochs:
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
    batches_at_once: int = 1
    sharded_by: str | None = None
    skips: bool = False

    @classmethod
    def of_caller(cls, sampler: object) -> LoaderFacts:
        """Look up the call stack for the BatchSampler and the DataLoader that are iterating.

        Used to give errors earlier and to know drop_last; everything works without it.
        """
        facts = cls()
        frame = sys._getframe(2)
        for _ in range(8):
            caller: Any = frame.f_locals.get("self")
            if isinstance(caller, BatchSampler) and getattr(caller, "sampler", None) is sampler:
                facts = replace(facts, batch_size=caller.batch_size, drop_last=caller.drop_last)
            elif isinstance(caller, Sampler) and caller is not sampler:
                facts = facts._with_wrapper(caller)
            elif hasattr(caller, "_index_sampler") and hasattr(caller, "_num_workers"):
                workers = int(caller._num_workers)
                prefetch = int(getattr(caller, "_prefetch_factor", None) or 0)
                in_order = bool(getattr(caller, "_in_order", True)) or workers == 0
                return replace(facts, batches_ahead=1 + workers * prefetch, in_order=in_order)
            if frame.f_back is None:
                break
            frame = frame.f_back
        return facts

    def _with_wrapper(self, wrapper: Any) -> LoaderFacts:
        """With what is seen of a host's sampler that draws from ours."""
        shards = max(getattr(wrapper, "num_processes", 1), getattr(wrapper, "num_replicas", 1))
        return replace(
            self,
            sharded_by=type(wrapper).__name__ if shards > 1 else self.sharded_by,
            skips=self.skips or getattr(wrapper, "skip_batches", 0) > 0,
        )

    def check_usable(self) -> None:
        """Check that the host neither shards nor skips what the pruner has planned.

        Raises:
            MisalignedUpdateError: it does.
        """
        if self.sharded_by is not None:
            raise MisalignedUpdateError(
                f"the host shards this sampler a second time (by {self.sharded_by}), although it "
                "already gives each rank its own share. Use the host's integration in "
                "infobatch.integrations, or have the host leave the loader's sampler alone"
            )
        if self.skips:
            raise MisalignedUpdateError(
                "the host skips batches at the start of the loader, but after load_state_dict this "
                "sampler by itself goes on where the saved run stood; iterate the loader without "
                "skip_first_batches"
            )


class Ledger:
    """The account of one iteration over a plan: handed out, against updated.

    A loader returns batches in the order in which it drew their indices, some batches after
    drawing them. For a given loader this look-ahead, indices handed out minus losses returned,
    is the same at every update until the plan is used up. If it grows, a batch was left out or
    something between sampler and loop drew more than it delivered; if it shrinks, an update
    came twice. So the account shows whether a vector of losses belongs to the next samples of
    the plan, and no index has to travel with the data. Where a host draws the batches of an
    optimizer step before it trains on the first of them, this holds from step to step.

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
        assert self._batch is not None
        drawn_for = position - position % (self.loader.batches_at_once * self._batch)
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
        unexplained = self._look_ahead - (batches + self.loader.batches_at_once - 1) * size
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
        """Check that the loader can be used, and that there is at least one batch to hand out.

        Raises:
            MisalignedUpdateError: see `LoaderFacts.check_usable`.
            InfoBatchError: the loader has drop_last=True and too few samples are left.
        """
        self.loader.check_usable()
        size = self.loader.batch_size
        if size is not None and self.is_complete(0):
            raise InfoBatchError(
                f"this epoch keeps {self._total} samples, fewer than one batch of "
                f"{size}, and the loader has drop_last=True, so nothing would ever be trained; "
                "use drop_last=False, a smaller batch_size or prune_ratio, or a larger budget"
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
