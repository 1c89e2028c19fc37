"""Planner: from the scores, the policy and the seed to an epoch's plan and this rank's share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from infobatch._core.plan import EpochPlan, Shard, Share, rest_rng, selection_rng, shuffled
from infobatch._core.policy import is_exact, selection_of
from infobatch._core.scores import FloatArray, ScoreTable
from infobatch._core.whole_batches import Batches, to_whole_batches
from infobatch._ranks.exchange import PLANNING, SHARING, Meeting
from infobatch.distributed import Ranks, World
from infobatch.errors import DistributedError, PolicyError, SamplerError
from infobatch.policies import (
    AnyPolicy,
    ExactPolicy,
    FixedSubset,
    MemoryPolicy,
    Selection,
    ShardedPolicy,
)

Meet = Callable[[int, int], Meeting]
"""Finds out whether all ranks are here, given the occasion and how many bytes each will send."""


@dataclass
class Planner:
    """Holds the scores, and plans any epoch from them.

    Attributes:
        num_samples: N.
        policy: decides what a pruned epoch keeps.
        num_epochs: of the run.
        pruned_epochs: those that the policy is asked for; the others use the full data.
        sizes: (num_epochs,) how many samples each epoch keeps, where a budget says it.
        seed: of orders and of the policy's draws.
        order_source: the user's own sampler, if there is one.
        sharded: whether this rank plans for the samples that it owns, and no others.
        score_ema: of the score table.
        ranks: those that share the data set.
        batch_size: of the loader on each rank, as far as it is known: pruned epochs are of whole
            batches of all ranks together.
        kept: how many samples each finished epoch kept.
    """

    num_samples: int
    policy: AnyPolicy
    num_epochs: int
    pruned_epochs: range
    sizes: Sequence[int] | None
    seed: int
    order_source: Iterable[int] | None
    sharded: bool
    score_ema: float
    ranks: Ranks
    batch_size: int | None = None
    kept: list[int] = field(default_factory=list, init=False)
    _remembers: bool = field(init=False)  # asked once: a protocol takes 20 microseconds to ask
    _shard: Shard | None = field(default=None, init=False)
    _table: ScoreTable | None = field(default=None, init=False)
    _memory: dict[str, FloatArray] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._remembers = isinstance(self.policy, MemoryPolicy)

    @property
    def passes(self) -> list[int]:
        """(num_epochs + 1,) how far the run has come before each epoch and after the last.

        Sample passes where their number is known beforehand, else epochs.
        """
        sizes = [1] * self.num_epochs if self.sizes is None else self.sizes_in(self.batch_size)
        return [0, *itertools.accumulate(sizes)]

    # ------------------------------------------------------------------ scores

    @property
    def shard(self) -> Shard:
        """The samples whose scores this process keeps: all of them, unless sharded.

        It is decided when first asked for, and then again as long as no score has come: hosts
        initialise process groups late.
        """
        now = self.shard_now()
        if self._shard is None or (now != self._shard and not self._has_scores()):
            if self.num_samples < now.count:  # on every rank alike
                raise DistributedError(
                    f"sharded=True needs at least one sample for each rank, but there are "
                    f"{self.num_samples} for {now.count} ranks; use sharded=False"
                )
            self._shard, self._table, self._memory = now, None, None
        return self._shard

    def _has_scores(self) -> bool:
        return self._table is not None and not bool(np.isnan(self._table.values).all())

    def _check_rank(self) -> None:
        if self.shard != self.shard_now():
            raise DistributedError(
                f"this rank has the scores of {self.shard}, but it is {self.ranks.world()} now; "
                "initialise the process group before training"
            )

    def shard_now(self) -> Shard:
        """The shard that goes with this process's rank as it is now."""
        world = self.ranks.world() if self.sharded else World()
        return Shard(world.rank, world.size, self.num_samples)

    @property
    def table(self) -> ScoreTable:
        """The scores of the samples in `shard`."""
        shard = self.shard
        if self._table is None:
            self._table = ScoreTable(len(shard), ema=self.score_ema)
        return self._table

    @property
    def memory(self) -> dict[str, FloatArray]:
        """What the policy remembers of the samples in `shard`, by column; empty for most."""
        rows = len(self.shard)
        if self._memory is None:
            columns = self.policy.columns if isinstance(self.policy, MemoryPolicy) else {}
            self._memory = {
                name: np.full(rows, value, dtype=np.float32) for name, value in columns.items()
            }
        return self._memory

    def record(
        self,
        rows: NDArray[np.integer[Any]],
        scores: FloatArray,
        batches: list[int],
        *,
        trained: bool = True,
    ) -> None:
        """Take in the newest scores (M,) of some rows, in the order in which they came."""
        self.table.record(rows, scores)
        if self._remembers and len(rows):
            policy = cast(MemoryPolicy, self.policy)
            policy.remember(self.memory, rows, scores, batches, trained=trained)

    def restore(self, shard: Shard, scores: FloatArray, memory: dict[str, FloatArray]) -> None:
        """Take over the scores (n,) and the memory of a shard from a saved state."""
        self._shard, self._table = shard, ScoreTable(len(shard), ema=self.score_ema)
        self._table.values, self._memory = scores, memory

    # ------------------------------------------------------------------ plan and share

    def plan(self, epoch: int, meet: Meet) -> EpochPlan:
        """Plan an epoch. A collective operation if sharded over several ranks and pruned.

        Args:
            epoch: 0-based.
            meet: finds out whether all ranks are here, before they talk.

        Raises:
            PolicyError, SamplerError: the policy or the user's sampler gave something unusable.
            DistributedError: this process has the scores of another rank.
        """
        self._check_rank()
        shard, own_order = self.shard, self.order_source is not None
        order, batch = self._unpruned_order(epoch), self._batch
        repeats = own_order and not _is_permutation(order, self.num_samples)
        selection = self._select(epoch, meet, None if repeats else batch)
        plan = EpochPlan.build(epoch, selection, order, shard=shard, own_order=own_order)
        if repeats and batch is not None and batch < len(plan) < plan.total:
            rng = rest_rng(self.seed, epoch, self.shard.index)
            plan = plan.in_whole_batches(batch, rng)
        if len(plan) == 0:
            raise PolicyError(
                f"{self.policy!r} keeps none of the samples of epoch {epoch}; a policy must keep "
                "at least one"
            )
        keep = self.keep(epoch)
        if keep is not None and len(plan) != keep:
            raise PolicyError(
                f"{self.policy!r} was to keep {keep} samples in epoch {epoch}, but kept {len(plan)}"
            )
        return plan

    def keep(self, epoch: int) -> int | None:
        """How many of the samples in `shard` an epoch is to keep; None where no budget says it."""
        if self.sizes is None or epoch >= self.num_epochs:  # a look past the end of the run
            return None
        return len(replace(self.shard, dataset_size=self.sizes_in(self.batch_size)[epoch]))

    def sizes_in(self, batch_size: int | None) -> list[int]:
        """(num_epochs,) what each epoch keeps under a budget, in whole batches of all ranks.

        Each pruned epoch makes good what those before it have kept too many or too few of, so that
        the run as a whole is within half a batch of its budget, also where the batch size changes.

        Args:
            batch_size: on each rank; None: not in batches.
        """
        assert self.sizes is not None
        sizes = list(self.kept[: self.num_epochs])
        due, taken = 0, sum(sizes)
        of_all_ranks = 1 if batch_size is None else batch_size * self.ranks.world().size
        whole = Batches(of_all_ranks, self._least)
        for epoch, size in enumerate(self.sizes):
            due += size
            if epoch >= len(sizes):
                is_pruned = epoch in self.pruned_epochs
                sizes.append(whole.nearest(due - taken, self.num_samples) if is_pruned else size)
                taken += sizes[-1]
        return sizes

    @property
    def _least(self) -> int:
        policy = self.policy
        if isinstance(policy, (ExactPolicy, MemoryPolicy)):
            return policy.min_keep(self.num_samples)
        return 1

    def _check_parts(self, epoch: int) -> None:
        """Refuse a size of which some rank would keep too little; on every rank alike."""
        if self.sizes is None or self.shard.count == 1:
            return
        assert isinstance(self.policy, (ExactPolicy, MemoryPolicy))
        total = self.sizes_in(self.batch_size)[epoch]
        for rank in range(self.shard.count):
            keep = len(Shard(rank, self.shard.count, total))
            least = self.policy.min_keep(len(Shard(rank, self.shard.count, self.num_samples)))
            if keep < least:
                raise PolicyError(
                    f"the budget leaves {total} samples in epoch {epoch}, {keep} of "
                    f"them for rank {rank}, but {self.policy!r} keeps at least {least} there; use "
                    "a larger budget, or sharded=False"
                )

    def share(
        self, plan: EpochPlan, start: int, world: World, meet: Meet, *, before: float = 0.0
    ) -> Share:
        """This rank's share of a plan, from a plan position on.

        `before` is how many samples each rank has had of it, where each has a plan of its own.

        A collective operation if sharded over several ranks, where they cannot know how many
        samples the others have: in pruned epochs without a budget, and within an epoch.
        """
        if not self.sharded:
            return Share.of_common_plan(plan, start, world.rank, world.size)
        # Not by what this rank has selected: another may have left out more.
        size: int | None = self.num_samples
        if plan.epoch in self.pruned_epochs:
            size = None if self.sizes is None else self.sizes_in(self.batch_size)[plan.epoch]
        if size is not None and start == 0 and not plan.own_order:
            shards = (Shard(rank, world.size, size) for rank in range(world.size))
            counts = np.array([len(shard) for shard in shards])
        else:
            counts = np.array([len(plan) - start], dtype=np.int64)
            if world.size > 1:
                parts = meet(SHARING, counts.nbytes).all_gather(counts, "numbers of samples")
                counts = np.concatenate([part.view(np.int64) for part in parts])
        return Share.of_own_plan(plan, start, world.rank, counts, before)

    def _select(self, epoch: int, meet: Meet, batch: int | None) -> Selection:
        num_rows = len(self.shard)
        if epoch not in self.pruned_epochs:
            return Selection.full(num_rows)
        self._check_parts(epoch)
        scores = self.table.values.view()
        scores.flags.writeable = False
        rng = selection_rng(self.seed, epoch, self.shard.index)
        keep = self.keep(epoch)
        if keep is None and self.sharded and isinstance(self.policy, ShardedPolicy):
            summary = self.policy.summarise(scores)
            if self.ranks.world().size > 1:
                meeting = meet(PLANNING, summary.nbytes)
                parts = meeting.all_gather(summary, "summaries of scores")
                summary = np.sum([part.view(np.float64) for part in parts], axis=0)
            selection = self.policy.select_with(scores, summary, epoch, rng)
        else:
            selection = selection_of(self.policy, self.memory, scores, keep, epoch, rng)
            if keep is None and is_exact(self.policy) and isinstance(selection, Selection):
                selection = self._asked_again(selection, scores, epoch, batch)
        if not isinstance(selection, Selection) or len(selection) != num_rows:
            size = f" of {len(selection)} samples" if isinstance(selection, Selection) else ""
            raise PolicyError(
                f"{type(self.policy).__name__} must return a Selection of all "
                f"{num_rows} samples, got {type(selection).__name__}{size}"
            )
        if keep is None and batch is not None:
            rng = rest_rng(self.seed, epoch, self.shard.index)
            return to_whole_batches(selection, batch, rng)
        return selection

    @property
    def _batch(self) -> int | None:
        """Samples of a batch of all the ranks that share this plan; None: do not round."""
        if self.batch_size is None or isinstance(self.policy, FixedSubset):
            return None  # a fixed subset is that and no other, as in any run on a subset
        return self.batch_size * (1 if self.sharded else self.ranks.world().size)

    def _asked_again(
        self, selection: Selection, scores: FloatArray, epoch: int, batch: int | None
    ) -> Selection:
        """For whole batches, of a policy that can be told how many samples to keep."""
        kept = selection.num_kept
        if batch is None or kept == len(selection):
            return selection
        keep = Batches(batch, self._least).nearest(kept, len(selection))
        if keep == kept:
            return selection
        rng = selection_rng(self.seed, epoch, self.shard.index)
        return selection_of(self.policy, self.memory, scores, keep, epoch, rng)

    def _unpruned_order(self, epoch: int) -> NDArray[np.int64]:
        if self.order_source is None:
            return shuffled(len(self.shard), self.seed, epoch, self.shard.index)
        set_epoch = getattr(self.order_source, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        try:
            order = np.fromiter(self.order_source, dtype=np.int64)
        except (TypeError, ValueError) as error:
            raise SamplerError(
                f"the sampler must yield indices, one after the other, but gave none ({error}); "
                "of a batch sampler pass the sampler inside it, and give the batch sampler the "
                "pruner's: DataLoader(dataset, batch_sampler=MyBatches(pruner.sampler))"
            ) from error
        if len(order) == 0 or order.min() < 0 or order.max() >= self.num_samples:
            span = f"{order.min()} to {order.max()}" if len(order) else "nothing"
            raise SamplerError(
                f"the sampler must yield indices 0 to {self.num_samples - 1}, got {span}; it must "
                "be one that can be iterated once per epoch"
            )
        if self.sizes is not None and not _is_permutation(order, self.num_samples):
            raise SamplerError(
                f"budget= needs a sampler that yields each of the {self.num_samples} samples once, "
                f"got {len(order)} of which {len(np.unique(order))} are different; to train on a "
                "part of the data, build loader and pruner with torch.utils.data.Subset"
            )
        return order


def _is_permutation(order: NDArray[np.int64], num_samples: int) -> bool:
    return len(order) == num_samples and int(np.bincount(order).max()) == 1
