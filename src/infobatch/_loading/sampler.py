"""PlanSampler: the one object that hands the epoch plan to a loader."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import BatchSampler
from torch.utils.data.distributed import DistributedSampler

from infobatch._loading.ledger import ReadAhead
from infobatch._loading.loader_facts import LoaderFacts
from infobatch._ranks.world import World
from infobatch.errors import StateError


class PlanSampler(DistributedSampler[int]):
    """The order of the epoch that is about to run, for any DataLoader or BatchSampler.

    One object for the whole run. `len` is that of the running epoch as long as a loop over its
    loader goes on, and then that of the coming one. Iterating starts an epoch; iterating again
    before any loss has arrived starts it again, so that a look at the first batch costs nothing.

    It is a `DistributedSampler`, as each rank gets its own share of the epoch from it: hosts
    that would otherwise shard a sampler of unknown kind a second time leave it alone.

    Attributes:
        batches_ahead: how many batches the loop, or what stands around the loader, has drawn beyond
            the one that it trains on: 1 for a prefetcher that is one batch ahead. Workers of the
            loader do not count. None, the default: none, which the first update of a run checks.
            0: none, and it is not checked, so that a loop may leave out the very first batch.
        batches_at_once: how many batches the host draws before it trains on the first of them.
            1 for nearly all; those that collect the batches of an optimizer step beforehand, as
            transformers' Trainer does, draw as many as they accumulate.
        host_counts_epochs: whether `set_epoch` announces the epochs of this run. False for hosts
            that call it with a count of their own, as Accelerate's loaders do.
        is_paused: True while a host goes over the data for other ends than training, to find a
            learning rate or the means of batch norm: loaders then give full epochs, `update`
            returns the plain loss, and nothing is recorded. The epoch that is due stays so.

    Args:
        begin: starts, or starts again, the epoch that is due; gives its indices.
        remaining: number of samples of the epoch that runs or is due, given the loader's batch
            size where it can be seen.
        set_epoch: checks an epoch that is announced.
        has_begun: whether any loss of the run has come.
        world: the place of this process among those that share an epoch.
    """

    def __init__(
        self,
        begin: Callable[[LoaderFacts, ReadAhead], Iterator[int]],
        remaining: Callable[[int | None], int],
        set_epoch: Callable[[int], None],
        has_begun: Callable[[], bool],
        world: Callable[[], World],
    ) -> None:
        self._begin, self._remaining = begin, remaining
        self._set_epoch, self._has_begun, self._world = set_epoch, has_begun, world
        self.batches_ahead: int | None = None
        self.batches_at_once = 1
        self.host_counts_epochs = True
        self.is_paused = False

    def __iter__(self) -> Iterator[int]:
        facts = LoaderFacts.of_caller(self)
        return self._begin(facts, ReadAhead(self.batches_ahead, self.batches_at_once))

    def __len__(self) -> int:
        caller: Any = sys._getframe(1).f_locals.get("self")
        is_ours = isinstance(caller, BatchSampler) and getattr(caller, "sampler", None) is self
        return self._remaining(int(caller.batch_size) if is_ours else None)

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
