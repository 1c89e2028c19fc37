"""DataPruner, the one stateful object; and InfoBatch, which is it with the paper's policy."""

from __future__ import annotations

import copy
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import BatchSampler

from infobatch._core.history import EpochRecord, LossTally
from infobatch._core.plan import EpochPlan, Share
from infobatch._core.planner import Planner
from infobatch._core.policy import for_run, is_exact, is_native, is_policy
from infobatch._core.scores import headroom
from infobatch._core.user_warnings import warn_user
from infobatch._core.validation import Setting, check_fraction, check_int, length
from infobatch._loading.batches import Record, RecordedBatches
from infobatch._loading.ledger import (
    Batch,
    DeliveredLedger,
    DrawnLedger,
    Ledger,
    ReadAhead,
    RecordedLedger,
)
from infobatch._loading.loader_facts import LoaderFacts
from infobatch._loading.sampler import PlanSampler
from infobatch._loading.streams import StreamFilter
from infobatch._ranks.exchange import (
    EPOCH_END,
    FIRST_UPDATE,
    NO_LOSS,
    OWN_ROWS,
    PLANNING,
    RESCORE,
    SHARING,
    SYNCHRONIZE,
    Header,
    Meeting,
    PendingLosses,
    cut_batches,
    gather_losses,
    gather_rescored,
    meet,
    plan_digest,
)
from infobatch._state.snapshot import Snapshot, describe_policy
from infobatch._step.buffer import LossBuffer
from infobatch._step.compiled import outside_graphs
from infobatch._step.rescale import Reduction, check_indices, check_losses, rescale
from infobatch.distributed import Ranks, World
from infobatch.errors import (
    DistributedError,
    EpochError,
    IndistinctScoresWarning,
    LossError,
    MisalignedUpdateError,
    MissingUpdateWarning,
    NonFiniteLossWarning,
    NothingPrunedWarning,
    StateError,
)
from infobatch.policies import (
    AnyPolicy,
    BudgetThreshold,
    ExactPolicy,
    FullData,
    MeanThreshold,
    MemoryPolicy,
    ProportionalSampling,
    QuantileThresholds,
    ShardedPolicy,
    WithinGroups,
)
from infobatch.policies.groups import check_groups, has_groups
from infobatch.policies.infobatch import normalise_quantiles
from infobatch.schedule import RatioSchedule, epoch_sizes, pruned_epochs

_PRUNE_RATIO = 0.5  # the paper's
_INDISTINCT = 0.9  # of the gradient mass in a random part of the samples
_NO_HEADROOM = 0.05


class DataPruner:
    """Plans every epoch of a training run: which samples, in which order, with what weight.

        pruner = DataPruner(train_set, num_epochs=200, policy=MeanThreshold(0.5))
        loader = DataLoader(train_set, batch_size=128, sampler=pruner.sampler)
        ...
        loss = pruner.update(F.cross_entropy(model(x), y, reduction="none"))
        loss.backward()

    The data set, its items, the loader and the model stay as they are. An epoch is planned as a
    whole before it starts, and loaders keep the order of their sampler, so the k-th loss is that
    of the k-th planned sample. That is checked at every update and not assumed.

    Args:
        dataset: anything with a length, or the length itself. It is not kept.
        num_epochs: length of the whole run, at least 1. Annealing depends on it.
        policy: decides which samples an epoch keeps; see `infobatch.policies`. With `budget=` it
            may be left away: `ProportionalSampling`, which has been as good at equal cost or
            better than the paper's rule. It leaves out what is learned and scales nothing up, so it
            is biased towards what is not learned yet. Its scores are cross-entropies: with label
            smoothing pass `update(losses, scores=...)` those without. Where the model is sure of no
            sample it leaves out a random part, and says so in a warning.
        delta: pruning ends after this fraction of the epochs, in [0, 1]; the full data with
            weight 1 follows.
        seed: of the order and of the policy's draws, 0 to 2**63 - 1. Global random generators
            are neither read nor written.
        sampler: your own sampler over the data set, finite. The order that it yields is kept,
            repeats included, and pruned samples are left out. It is iterated once per epoch,
            when that epoch is planned, after its `set_epoch(epoch)` if it has one.
        warmup_epochs: epochs at the start that use the full data, at least 0. While a sample
            has no score it is kept in any case, as far as a budget allows.
        score_ema: a in [0, 1): a sample's score is a * score + (1 - a) * loss. 0: its last loss.
        budget: what the whole run may cost, as a part of the num_epochs * N sample passes of the
            full run, in (0, 1]; warm-up and annealing are included. It is met exactly, whatever
            the losses are. The policy must be one that can be told how many samples to keep.
        ratio_schedule: how the budget's saving is spread over the pruned epochs: "constant",
            "rising", "falling", "cosine", or a function of the place among them, in (0, 1).
        batch_size: of the loader, on each process. Pruned epochs are planned in whole batches of
            all processes together. None: that of the loader, once it is seen.
        groups: (N,) integers, such as the labels: the policy is applied within each group, so that
            small or easy classes are not pruned away; see `infobatch.policies.WithinGroups`.
        process_group: the ranks that share the data set, where they are not those of the default
            process group: a `torch.distributed` group, a one-dimensional `DeviceMesh`, or an
            `infobatch.distributed.Communicator`. Without any group the run has one process.
        rank, world_size: this process's data-parallel place, where it is not that in the group:
            processes of equal rank are replicas and see the same samples.
        sharded: every rank keeps the scores of the samples that it owns (numbers rank,
            rank + world_size, ...) and trains on no others: memory N / world_size, for data sets
            whose scores do not fit into one process.

    Raises:
        TypeError, ValueError: an argument outside its range; the message names it.
    """

    num_samples = Setting[int]()
    num_epochs = Setting[int]()
    policy = Setting[AnyPolicy]()
    delta = Setting[float]()
    seed = Setting[int]()
    warmup_epochs = Setting[int]()
    score_ema = Setting[float]()
    budget = Setting["float | None"]()
    batch_size = Setting["int | None"]()
    sharded = Setting[bool]()
    sampler = Setting[PlanSampler]()

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        policy: AnyPolicy | None = None,
        *,
        delta: float = 0.875,
        seed: int = 0,
        sampler: Iterable[int] | None = None,
        warmup_epochs: int = 1,
        score_ema: float = 0.0,
        budget: float | None = None,
        ratio_schedule: RatioSchedule = "constant",
        batch_size: int | None = None,
        groups: ArrayLike | None = None,
        process_group: object = None,
        rank: int | None = None,
        world_size: int | None = None,
        sharded: bool = False,
    ) -> None:
        self.num_samples = length(dataset)
        self.num_epochs = check_int("num_epochs", num_epochs, at_least=1)
        if policy is None:
            if budget is None:
                raise TypeError(
                    "DataPruner needs a policy, such as infobatch.policies.MeanThreshold(0.5), or "
                    "budget=, such as 0.7, for which it has one"
                )
            policy = ProportionalSampling()
        policy = for_run(_checked_policy(policy, budget, groups, self.num_samples), self.num_epochs)
        self.policy = policy
        self.delta = check_fraction("delta", delta)
        self.seed = check_int("seed", seed, at_least=0, at_most=2**63 - 1)
        self.warmup_epochs = check_int("warmup_epochs", warmup_epochs, at_least=0)
        self.score_ema = check_fraction("score_ema", score_ema, below_one=True)
        self._ranks = Ranks(process_group, rank, world_size)
        self.batch_size = (
            None if batch_size is None else check_int("batch_size", batch_size, at_least=1)
        )
        self.sampler = PlanSampler(
            self._begin, self._remaining, self._set_epoch, self._has_begun, self._ranks.world
        )
        self.budget = budget if budget is None else check_fraction("budget", budget)
        self.sharded = bool(sharded)
        self._check_sharded(sampler)
        pruned = pruned_epochs(self.num_epochs, self.delta, self.warmup_epochs)
        self._planner = Planner(
            self.num_samples,
            self.policy,
            num_epochs=self.num_epochs,
            pruned_epochs=pruned,
            sizes=self._sizes(pruned, ratio_schedule),
            seed=self.seed,
            order_source=_checked_sampler(sampler),
            sharded=self.sharded,
            score_ema=self.score_ema,
            ranks=self._ranks,
            batch_size=self.batch_size,
        )
        self._history: list[EpochRecord] = []
        self._epoch = 0
        self._plan: EpochPlan | None = None
        self._share: Share | None = None
        self._world: World | None = None  # as it was when the share was made
        self._start = 0  # plan position at which an iteration begins: above 0 after a resume
        self._before = 0.0  # samples that each rank has had up to there
        self._position = 0  # position in the share of the next loss
        self._tally = LossTally()
        self._buffer: LossBuffer | None = None
        self._pending = PendingLosses()
        self._done: list[NDArray[np.int64]] | None = None  # rows, once they come in another order
        self._came: NDArray[np.bool_] | None = None  # (n,) which rows have, in another order
        self._padding: Counter[int] | None = None  # of this share's padding: what still counts
        self._has_met = False  # whether the ranks have found that they agree
        self._filter: StreamFilter | None = None
        self._is_over = False  # loaded from a state whose loop had left the epoch
        self._ledger: Ledger | None = None  # of the current epoch, from its first drawing on
        self._looked_from: tuple[Ledger, int] | None = None  # an older one, and where it stood
        self._finished: Ledger | None = None  # of the epoch before, whose loop may still go on
        self._left_open: Ledger | None = None  # of an epoch closed while its loop may have gone on
        self._reads_as_said = False  # an update has shown it
        self._stream_steps, self._stream_batch = 0, 0
        self._warn_if_nothing_is_pruned(pruned)

    def _warn_if_nothing_is_pruned(self, pruned: range) -> None:
        asks = not isinstance(self.policy, FullData) and getattr(self.policy, "prune_ratio", 1) > 0
        if len(pruned) or not asks or self.delta == 0.0 or self.num_epochs == 1:
            return
        warn_user(
            f"nothing will be pruned: the first warmup_epochs={self.warmup_epochs} of "
            f"{self.num_epochs} epochs use the full data, and so do all from delta={self.delta:g} "
            "of them on; use fewer warm-up epochs or a longer run, or FullData() if it is meant",
            NothingPrunedWarning,
        )

    def _check_sharded(self, sampler: object) -> None:
        if not self.sharded:
            return
        if sampler is not None:
            raise ValueError(
                "sharded=True shuffles each rank's own samples, so sampler= cannot be used; use "
                "sharded=False, which plans the order of your sampler on every rank"
            )
        if has_groups(self.policy):
            raise TypeError(
                "sharded=True cannot keep groups, as a rank knows of its own samples only; use "
                "sharded=False"
            )
        if self.budget is None and not isinstance(self.policy, ShardedPolicy):
            raise TypeError(
                "sharded=True needs a policy with summarise and select_with (see "
                "infobatch.policies.ShardedPolicy), or, with budget=, one that can be told how "
                f"many samples to keep, got {self.policy!r}"
            )

    def _sizes(self, pruned: range, ratio_schedule: RatioSchedule) -> list[int] | None:
        """(num_epochs,) how many samples each epoch keeps, if there is a budget."""
        if self.budget is None:
            if ratio_schedule != "constant":
                raise ValueError(
                    "ratio_schedule spreads the saving of a budget; pass budget= with it"
                )
            return None
        assert isinstance(self.policy, (ExactPolicy, MemoryPolicy))
        return epoch_sizes(
            self.num_samples,
            self.num_epochs,
            pruned,
            self.budget,
            min_keep=self.policy.min_keep(self.num_samples),
            ratio_schedule=ratio_schedule,
        )

    # ------------------------------------------------------------------ the training step

    @outside_graphs
    def update(
        self,
        losses: Tensor,
        *,
        scores: Tensor | None = None,
        indices: Tensor | Sequence[int] | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Take in the losses of the next batch and return the loss to call `backward` on.

        Args:
            losses: (B,) one loss per sample, any float dtype, any device; not modified.
                Non-finite ones are counted, warned about once per epoch, and their samples kept as
                far as a budget allows.
            scores: (B,) what to rank the samples by, if not by their losses. With label smoothing
                and `DataPruner(budget=...)`: the cross-entropies without it.
            indices: (B,) the samples' indices in the data set, where a loader cannot keep the
                sampler's order or forms batches of its own. Not needed otherwise; it costs a
                look-up and, on an accelerator, a synchronisation.
            reduction: "mean" gives sum(weight * loss) / B, "sum" the sum, "none" the rescaled
                losses (B,). Where a rank has padding, which weighs 0, "mean" divides by the
                mean number over ranks of samples that count; otherwise the division is yours.

        Returns:
            A new tensor of the losses' dtype and device, with exact gradients.

        Raises:
            LossError: `losses` or `scores` are not (B,) floats; the message says what to write.
            MisalignedUpdateError: they are not those of the batch that was delivered, or it cannot
                be told of which batch they are; nothing has been written.
            EpochError: all `num_epochs` epochs are over.
            DistributedError: in the first update of a run and the last of an epoch: the ranks
                do not agree, or one did not come.
        """
        check_losses("losses", losses)
        if scores is not None:
            check_losses("scores", scores)
            if len(scores) != len(losses):
                raise LossError(f"scores must be one per loss: got {len(scores)} for {len(losses)}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
        if self.sampler.is_paused:
            return rescale(losses, None, reduction, None)
        count = losses.shape[0]
        batch = self._due(count if indices is None else None)
        share = self._share_met()
        ids = batch.ids
        if indices is not None:
            ids = check_indices(indices, count, self.num_samples)
            batch = self._placed(batch, ids)
        if batch.start > self._position:
            self._leave_out(batch)
        divisor = None
        if not self._is_stream:
            divisor = share.divisor(self._position, self._position + count)
        if ids is None:
            weights = self._take_in_order(losses, scores)
        else:
            in_order = batch.ids is None and batch.stop > batch.start
            weights = self._take_by_index(losses, scores, ids, in_order=in_order)
        result = rescale(losses, weights, reduction, divisor)
        self._advance(batch, count)
        return result

    @outside_graphs
    def skip(self, batch_size: int) -> None:
        """Say that the next batch is left out on purpose: its samples keep their scores.

        With a `DataLoader` it is not needed: the pruner sees that a batch got no update. It is for
        loaders of another kind, and for loops that read ahead.

        Args:
            batch_size: number of samples in that batch.

        Raises:
            MisalignedUpdateError: no such batch is due.
        """
        batch_size = check_int("batch_size", batch_size, at_least=1)
        if self.sampler.is_paused:
            return
        batch = self._due(batch_size)
        self._share_met()
        if batch.start > self._position:
            self._leave_out(batch)
        self._pass_over(batch_size)
        if batch.ids is not None:
            self._note_done(self._planner.shard.rows(batch.ids))
        self._advance(batch, batch_size)

    def batches(self, batch_sampler: Iterable[Sequence[int]]) -> RecordedBatches:
        """Let batches of your own making, of any size and in any order, be trained on.

            class ByLength:  # draws pruner.sampler, yields lists of indices
                ...

            loader = DataLoader(train_set, batch_sampler=pruner.batches(ByLength(pruner.sampler)))

        What it yields is noted as it is drawn, so that `update` knows whose losses come. A sample
        that is not in the plan, and more samples than the plan has, are errors in `update`.

        Args:
            batch_sampler: what to wrap.

        Returns:
            a batch sampler for one loader, with the same batches.

        Raises:
            TypeError: it cannot be iterated.
        """
        return RecordedBatches(batch_sampler, self.sampler, self._keeps_record)

    def _keeps_record(self, record: Record) -> bool:
        return self._ledger is not None and self._ledger.loader.recorded is record

    def _share_met(self) -> Share:
        """This rank's share; the ranks have made sure, once, that they agree on what is shared."""
        share = self.share if self._share is None else self._share
        # A rank of a stream may have nothing to read; there they meet at the epoch's end.
        if share.is_one_of_several and not self._has_met and not self._is_stream:
            self._meet(FIRST_UPDATE)
        return share

    def _take_in_order(self, losses: Tensor, scores: Tensor | None) -> Tensor | None:
        buffer = self._buffer
        has_scores = scores is not None
        if buffer is None or not buffer.takes(self._position, losses, has_scores=has_scores):
            self._flush()
            buffer = LossBuffer(self.share, self._position, losses, has_scores=has_scores)
            self._buffer = buffer
        return buffer.put(losses, scores)

    def _placed(self, batch: Batch, ids: NDArray[np.int64]) -> Batch:
        """Where in the share these samples are, if they are of the batch that is due.

        There may be fewer than the batch has: a part of it, or what `collate_fn` has left.
        """
        if self._done is None and batch.stop > max(batch.start, self._position):
            start = max(batch.start, self._position)
            planned = self.share.ids(batch.start, batch.stop)
            if start + len(ids) <= batch.stop and bool(np.isin(ids, planned).all()):
                return Batch(start, start + len(ids))
        return Batch(self._position, self._position)

    def _leave_out(self, batch: Batch) -> None:
        """Go on behind the samples that the loop has left out before a batch."""
        self._pass_over(batch.start - self._position)
        if batch.passed is not None:
            self._note_done(self._planner.shard.rows(batch.passed))
        self._position = batch.start

    def _note_done(self, rows: NDArray[np.int64]) -> None:
        """These rows have been accounted for, in another order than that of the plan."""
        if self._exchanges:
            return  # known to all ranks when they exchange
        if self._done is None:
            self._done = [self.share.counted_rows(0, self._position).astype(np.int64)]
        self._done.append(rows)

    def _pass_over(self, count: int) -> None:
        """No losses will come of the next samples of the plan."""
        if self._exchanges:
            self._flush()
            self._pending.skip(count)

    def _take_by_index(
        self,
        losses: Tensor,
        scores: Tensor | None,
        ids: NDArray[np.int64],
        *,
        in_order: bool,
    ) -> Tensor:
        share, rows = self.share, self._planner.shard.rows(ids)
        if not (in_order or self._is_stream):
            self._check_not_twice(rows)
        if self._position + len(ids) > len(share) and not self._is_stream:
            raise MisalignedUpdateError(
                f"update got {len(ids)} more losses at position {self._position} of an epoch of "
                f"{len(share)} samples; call it once per batch"
            )
        if self._is_stream and self._position > 2 * len(share.plan):
            raise MisalignedUpdateError(
                f"more than twice as many samples have come as epoch {self._epoch} was planned "
                "with; call pruner.end_epoch() after each loop over the stream"
            )
        weights = share.plan.selection.weights_of(np.maximum(rows, 0))
        if not bool((weights[rows >= 0] > 0).all() and (rows >= 0).all()):
            pruned = ids[(weights == 0) | (rows < 0)][:5].tolist()
            raise MisalignedUpdateError(
                f"samples {pruned} are not in the plan of epoch {self._epoch}; draw "
                "batches from this pruner's sampler, and pass the data set's own indices"
            )
        counted = weights > 0 if self._is_stream else self._counted(rows)
        self._flush()
        values = losses.detach().float().cpu().numpy()
        ranked = values if scores is None else scores.detach().float().cpu().numpy()
        if self._exchanges:
            own = None if scores is None else ranked
            self._pending.add(values, own, [len(rows)], np.where(counted, rows, NO_LOSS))
        else:
            batches = [int(np.count_nonzero(counted))]
            self._record(rows[counted], values[counted], ranked[counted], batches)
            if not (in_order or self._is_stream):
                self._note_done(rows[counted])
                if self._came is not None:
                    self._came[rows] = True
        weights = np.where(counted, weights, 0.0)
        dtype = torch.float64 if losses.dtype == torch.float64 else torch.float32
        return torch.from_numpy(weights).to(losses.device, dtype)

    def _check_not_twice(self, rows: NDArray[np.int64]) -> None:
        """In an order that is not the plan's a sample must not stand for another."""
        if self._exchanges or self._planner.order_source is not None:
            return  # some come twice by plan
        if self._came is None:
            self._came = np.zeros(len(self._planner.shard), dtype=bool)
            if self._position and self._done is None:
                self._came[self.share.counted_rows(0, self._position)] = True
        again = rows[self._came[rows]]
        if len(again) or len(np.unique(rows)) < len(rows):
            raise MisalignedUpdateError(
                f"samples {again[:5].tolist() or rows[:5].tolist()} have come twice in epoch "
                f"{self._epoch}; every sample of pruner.sampler must be in one batch, once"
            )

    def _counted(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these samples of the share are not padding, in whatever order they come.

        A sample that the share has several times, some of them as padding, counts as often as it
        stands there without: the first times.
        """
        if self._padding is None:
            self._padding = self.share.counts_of_padding()
        counted = np.ones(len(rows), dtype=bool)
        if self._padding:
            for place, row in enumerate(rows.tolist()):
                if row in self._padding:
                    counted[place] = self._padding[row] > 0
                    self._padding[row] -= 1
        return counted

    def _check_not_over(self) -> None:
        if self._epoch >= self.num_epochs:
            raise EpochError(
                f"all num_epochs={self.num_epochs} epochs are over, but training goes on; build "
                "the pruner with the number of epochs that the run really has"
            )

    def _due(self, count: int | None) -> Batch:
        """The batch whose losses are due; `count` is None where they come with indices."""
        if self._epoch >= self.num_epochs:
            self._check_not_over()
        if self._left_open is not None:
            self._check_open()
        if self._looked_from is not None:
            self._end_look()
        if self._ledger is not None:
            batch = self._ledger.due(self._position, count)
            if self._done is not None and count is not None and batch.ids is None:
                raise MisalignedUpdateError(
                    "losses of this epoch have come with indices and in another order than "
                    "planned, so the place of those without cannot be told; pass indices= in all "
                    "updates of an epoch or in none"
                )
            return batch
        if count is None:
            return Batch(self._position, self._position)
        raise MisalignedUpdateError(
            "update or skip was called before any batch was drawn in this epoch, or once more "
            "than the epoch before had batches; iterate a loader built with "
            "sampler=pruner.sampler, and call update inside that loop, once per batch"
        )

    def _check_open(self) -> None:
        """Refuse losses while the loop of an epoch that a newer iterator has closed goes on."""
        if self._left_open is not None and self._left_open.is_running:
            raise MisalignedUpdateError(
                f"an iterator of epoch {self._epoch} was made while the loop over the epoch before "
                "was at its last batch, so it cannot be told to which these losses belong; make it "
                "after the last update of the epoch before"
            )
        self._left_open = None

    def _end_look(self) -> None:
        """Go back to an older loop, if a newer one was but a look at the first batch."""
        if self._looked_from is None or self._ledger is None:
            return
        older, mark = self._looked_from
        if older.is_running and not self._ledger.is_running:
            self._ledger, self._looked_from = older, None
        elif older.mark != mark:
            raise MisalignedUpdateError(
                "the sampler was iterated anew while an earlier loop over it went on, so it "
                "cannot be told to which of the two these losses belong. Finish one loop "
                "before starting the next; to look at a batch, do so before the epoch"
            )

    def _advance(self, batch: Batch, count: int) -> None:
        is_placed = batch.stop > batch.start
        self._position = batch.stop if is_placed else self._position + count
        self._looked_from = None
        if self._is_stream:
            self._stream_batch = self._stream_batch or count
            self._stream_steps += 1
            return
        share = self.share if self._share is None else self._share
        ledger = self._ledger
        if ledger is None:
            is_complete = self._position >= len(share)
        else:
            ledger.settle(batch)
            is_complete = ledger.is_complete(self._position)
            if ledger.is_proven:
                self._reads_as_said = True
        if is_complete:
            self._commit()

    # ------------------------------------------------------------------ epochs

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch: `epoch`, `indices`, `weights`, `threshold`, `len`.

        The same on every rank, which trains on its `share` of it; under `sharded=True` that of
        the rank's own samples.
        """
        if self._plan is None or self._plan.shard != self._planner.shard:
            self._plan = self._planner.plan(self._epoch, self._meet_to_plan)
        return self._plan

    @property
    def share(self) -> Share:
        """What this rank trains on of the plan, in its order; all of it in one process."""
        world = self._ranks.world()
        if self._share is None or (world != self._world and self._position == 0):
            self._share = self._planner.share(
                self.plan, self._start, world, self._meet_to_plan, before=self._before
            )
            self._world, self._has_met = world, self._has_met and world == self._world
        elif world != self._world:
            raise DistributedError(
                f"this epoch was begun as {self._world}, but this process is now {world}; "
                "initialise or leave the process group between epochs"
            )
        return self._share

    @property
    def _is_stream(self) -> bool:
        return self._filter is not None

    def stream_filter(self) -> StreamFilter:
        """For a stream of samples with ids: tells which of them this epoch leaves out.

        For an `IterableDataset`, whose loader takes no sampler: put it before decoding, pass the
        ids that came to `update(losses, indices=ids)`, and call `end_epoch()` after each loop.
        One object for the whole run; works in workers of any kind, persistent ones included.

        Returns:
            a function of an id, 0 to N - 1, that is True where the sample is to be trained on.

        Raises:
            ValueError: under `sharded=True`, where a stream's samples have no fixed rank.
            MisalignedUpdateError: this epoch is being trained through the sampler.
        """
        if self.sharded:
            raise ValueError(
                "stream_filter needs the plan of the whole data set on every rank, which "
                "sharded=True does not make; use sharded=False"
            )
        if self._filter is None:
            if self._position > 0:
                raise MisalignedUpdateError(
                    "stream_filter was called while an epoch is being trained through the "
                    "sampler; call it before training"
                )
            self._filter = StreamFilter(self.num_samples)
            self._filter.set_plan(self.plan)
        return self._filter

    def _show_plan_to_stream(self) -> None:
        """Tell the filter of a stream, if there is one, that the plan is another now."""
        if self._filter is not None and self._epoch < self.num_epochs:
            self._filter.set_plan(self.plan)

    def _begin(self, loader: LoaderFacts, ahead: ReadAhead) -> Iterator[int]:
        """Start the epoch that is due, or start it again; called by the sampler."""
        if self._is_stream:
            raise MisalignedUpdateError(
                "this pruner plans for a stream (stream_filter was called), so its sampler is "
                "not used; leave the sampler away, or build another pruner"
            )
        loader.check_usable(self.num_samples)
        if self.sampler.is_paused or self._epoch >= self.num_epochs:
            share = self._full_share()
            return iter(share.ids(0, len(share)).tolist())
        older, is_reset = self._ledger, False
        if older is not None:
            is_reset = loader.is_seen and older.loader.iterator() is loader.iterator()
            if self._position > 0:
                self._check_left(older, is_reset=is_reset)
            if self._position == 0 and older.loader.is_seen and older.has_delivered_all:
                self._warn_of_missing_updates()
        self._left_open = None if is_reset or self._position == 0 else older
        if self._position > 0 or self._is_over:
            self._end_early()
            older = None
        if older is None or is_reset or not older.is_running or older.handed_out == 0:
            self._see_batch_size(loader.batch_size)
        ledger = self._new_ledger(loader, ahead)
        if self._start > 0 and ledger.deliverable == 0:
            self._commit()  # resumed where only a batch that drop_last drops was left
            ledger = self._new_ledger(loader, ahead)
        ledger.check_drawable()
        if older is not None and not is_reset and older.is_running:
            self._looked_from = (older, older.mark)
        elif self._looked_from is not None and not self._looked_from[0].is_running:
            self._looked_from = None
        self._ledger, self._finished = ledger, None
        return ledger.draw(self.share.ids)

    def _full_share(self) -> Share:
        """This rank's share of a pass over all samples that is not an epoch of the run."""
        plan = self._planner.plan(self.num_epochs, self._meet_to_plan)
        return self._planner.share(plan, 0, self._ranks.world(), self._meet_to_plan)

    def _new_ledger(self, loader: LoaderFacts, ahead: ReadAhead) -> Ledger:
        total = len(self.share)
        if not loader.is_seen and loader.recorded is None:
            return DrawnLedger(total, loader, ahead.group)
        kind = DeliveredLedger if loader.recorded is None else RecordedLedger
        is_proven = self._reads_as_said or ahead.batches == 0
        return kind(total, loader, ahead, is_proven=is_proven)

    def _check_left(self, older: Ledger, *, is_reset: bool) -> None:
        """Check that a loop within an epoch has been left: its iterator is gone, or at its end.

        Persistent workers begin the same iterator anew, so whether its loop goes on cannot be seen.
        """
        if (older.is_running or is_reset) and self._position < older.deliverable:
            if older.has_delivered_all:
                return
            alive = "its iterator, whose workers are persistent," if is_reset else "its iterator"
            raise MisalignedUpdateError(
                f"the loader is iterated anew while epoch {self._epoch} is under way and {alive} "
                f"is alive ({self._position} of {older.total} samples are accounted for). If that "
                "loop has been left for good, call pruner.end_epoch() first; to look at a batch, "
                "do so before the epoch"
            )

    def _warn_of_missing_updates(self) -> None:
        if self._epoch < self.num_epochs:
            warn_user(
                f"all batches of epoch {self._epoch} were drawn, but update was never called, so "
                "the same epoch is due again. Call pruner.update(losses) in every training step; "
                "after an epoch that is to count without it, call pruner.end_epoch()",
                MissingUpdateWarning,
            )

    def _see_batch_size(self, size: int | None) -> None:
        """Plan in whole batches of the loader from now on; also a plan that is not yet begun."""
        planner = self._planner
        if size is None or self.batch_size is not None or size == planner.batch_size:
            return
        planner.batch_size = size
        plan = self._plan
        if plan is not None and self._plan_position == 0 and not plan.selection.is_full:
            self._plan = self._share = None
            self._show_plan_to_stream()

    def _remaining(self, batch_size: int | None) -> int:
        """Number of samples of the epoch that runs, or that the next iteration hands out."""
        if self.sampler.is_paused:
            return len(self._full_share())
        if self._finished is not None and self._finished.is_running:
            return self._finished.total
        self._settle()
        if not self.sharded and (self._ledger is None or not self._ledger.is_running):
            self._see_batch_size(batch_size)
        return len(self.share)

    def _settle(self) -> None:
        """Close an epoch whose loop has been left, where that takes no other rank."""
        if self._position == 0 and not self._is_over:
            return
        if self._has_left and not self.share.is_one_of_several:
            self._end_early()

    @property
    def _has_left(self) -> bool:
        """Whether an epoch is under way, and the loop over it has been left."""
        ledger = self._ledger
        if self._is_stream or self._position == 0 or ledger is None:
            return self._is_over
        return ledger.is_left(self._position)

    def _has_begun(self) -> bool:
        return self._epoch > 0 or self._plan_position > 0

    def _set_epoch(self, epoch: int) -> None:
        epoch = check_int("epoch", epoch, at_least=0)
        if epoch == self._epoch + 1 and self._plan_position > 0:
            self._end_early()
        if epoch != self._epoch:
            raise EpochError(
                f"set_epoch({epoch}) was called, but epoch {self._epoch} (0-based) is due: every "
                "epoch must be trained once, in order. To go on from a checkpoint, call "
                "pruner.load_state_dict first and start the loop at pruner.epoch. If it is a host "
                "that calls set_epoch with a count of its own (Accelerate, Fabric and MONAI do), "
                "set pruner.sampler.host_counts_epochs = False"
            )

    def _end_early(self) -> None:
        if self._ledger is not None:
            self._ledger.check_end(self._position)
        self._commit()

    def end_epoch(self) -> None:
        """Close the current epoch now, whatever of it has been trained.

        A loop over a stream has to say so, and one that leaves an epoch early while something
        still holds the loader's iterator. Elsewhere an epoch ends with its last loss, or when the
        loader is iterated the next time. In a distributed run every rank must call it. An epoch
        whose batches were drawn and got no `update` counts as well.

        Does nothing where the epoch has ended by itself.

        Raises:
            EpochError: all `num_epochs` epochs of a stream are over.
        """
        if self._is_stream:
            self._check_not_over()
        elif self._epoch == self.num_epochs:
            return  # a look past the end of the run may have been drawn
        ledger = self._ledger
        has_drawn = ledger is not None and ledger.handed_out > 0
        if self.sampler.is_paused:
            return
        if self._is_stream or self._plan_position > 0 or has_drawn:
            self._end_early()
        self._finished = None

    def _commit(self) -> None:
        """Close the current epoch: its scores count from now on."""
        if self._ledger is not None and (tail := self._ledger.left_out(self._position)):
            self._pass_over(tail)
            self._position += tail
            if self._done is not None:
                self._done.append(np.empty(tail, dtype=np.int64))  # only their number matters now
        kept, total, mean_weight, mass_left_out = self._bring_together(EPOCH_END)
        plan, tally = self.plan, self._tally
        if not self._is_stream and not self.sharded:
            tally.left_out = self.share.position(self._position) - tally.trained
            if self._position == 0:
                tally.left_out = self._start - tally.trained
        self._history.append(
            EpochRecord(
                epoch=self._epoch,
                kept=kept,
                total=total,
                trained=tally.trained,
                left_out=max(0, tally.left_out),
                threshold=plan.threshold,
                mass_left_out=mass_left_out,
                mean_loss=tally.mean_loss,
                mean_weight=mean_weight,
                non_finite=tally.non_finite,
            )
        )
        self._epoch += 1
        self._plan = self._share = None
        self._start = self._position = self._stream_steps = self._stream_batch = 0
        self._before = 0.0
        self._finished, self._ledger = self._ledger, None  # a loss more than planned is an error
        self._looked_from, self._is_over = None, False
        self._done = self._came = self._padding = None
        self._tally = LossTally()
        self._planner.kept.append(kept)
        if self._epoch < self.num_epochs and self.sharded:
            _ = self.share  # planned now, where all ranks are: it takes a collective
        self._show_plan_to_stream()
        self._warn_if_indistinct()
        if tally.non_finite:
            warn_user(
                f"epoch {plan.epoch}: {tally.non_finite} of {tally.trained} samples had a NaN or "
                "infinite loss; they are kept in the next epoch, as far as a budget allows, and "
                "leave the threshold untouched",
                NonFiniteLossWarning,
            )

    def _warn_if_indistinct(self) -> None:
        """Say so, once and in time to act, if what the run leaves out is as good as random."""
        pruned = [record for record in self._history if record.kept < record.total]
        last = self._planner.pruned_epochs.stop - 1
        second = len(pruned) == 2 and self._history[-1] is pruned[-1]
        if not (second or (len(pruned) == 1 and self._history[-1].epoch == last)):
            return
        if self._ranks.world().rank != 0:
            return
        saved = sum(1.0 - record.kept / record.total for record in pruned)
        mass = sum(record.mass_left_out for record in pruned)
        gain = headroom(self._planner.table.values)
        if mass >= _INDISTINCT * saved > 0.0:
            seen = (
                f"{saved / len(pruned):.0%} of the samples were left out of each pruned epoch so "
                f"far, and {mass / len(pruned):.0%} of what bounds the gradients with them"
            )
        elif self.budget is not None and math.isnan(mass) and gain < _NO_HEADROOM:
            seen = (
                f"what bounds the gradients, 1 - exp(-loss), hardly differs: by choosing samples "
                f"at most {gain:.1%} of the gradients' second moment can be saved"
            )
        else:
            return
        warn_user(
            f"{seen}. So the scores tell hardly any samples apart, or the budget leaves no choice, "
            "and the run is one on the full data for fewer epochs, until that changes. With label "
            "smoothing, or any loss that is not near 0 for what is learned, pass one that is: "
            "update(losses, scores=F.cross_entropy(...)); for other losses there are other "
            "policies: docs/methods/proportional.md",
            IndistinctScoresWarning,
        )

    def _flush(self) -> None:
        if self._buffer is None:
            return
        first = self._buffer.start
        losses, scores, batches = self._buffer.drain()
        self._buffer = None
        if self._exchanges:
            self._pending.add(losses, scores, batches)
            return
        rows = self.share.counted_rows(first, first + len(losses))
        if len(rows) < len(losses):  # padding
            batches = cut_batches(batches, len(rows))
            losses = losses[: len(rows)]
            scores = None if scores is None else scores[: len(rows)]
        self._record(rows, losses, losses if scores is None else scores, batches)

    def _record(
        self,
        rows: NDArray[np.integer[Any]],
        losses: NDArray[np.float32],
        scores: NDArray[np.float32],
        batches: list[int],
    ) -> None:
        self._planner.record(rows, scores, batches)
        self._tally.add(losses, scores, batches)

    def rescore(self, indices: Tensor | Sequence[int], scores: Tensor) -> None:
        """Take in fresh scores of samples that were passed forward and not trained on.

        For policies that look at what they have left out, between two epochs:

            left_out = pruner.plan.pruned  # before the epoch
            ...  # the epoch
            pruner.rescore(left_out, losses_of(left_out))

        A collective operation in a distributed run, where each rank passes what it has scored,
        such as `left_out[rank::world_size]`.

        Args:
            indices: (M,) the samples' indices in the data set; M may be 0.
            scores: (M,) float.

        Raises:
            LossError: not one number per index.
            MisalignedUpdateError: within an epoch, or when the next one has been begun.
            DistributedError: not all ranks are here.
        """
        ids = check_indices(indices, len(scores), self.num_samples)
        if len(scores):
            check_losses("scores", scores)
        drawn = self._ledger is not None and self._ledger.handed_out > 0
        if self._plan_position > 0 or drawn:
            raise MisalignedUpdateError(
                "rescore was called within an epoch; call it between two epochs: after the last "
                "update of one, and before the loader is iterated for the next"
            )
        values = scores.detach().float().cpu().numpy()
        rows = self._planner.shard.rows(ids)
        if len(rows) and rows.min() < 0:
            raise MisalignedUpdateError(
                f"samples {ids[rows < 0][:5].tolist()} belong to other ranks; under sharded=True "
                "rescore those of pruner.plan.pruned"
            )
        world = self._ranks.world()
        if world.size > 1 and not self.sharded:
            rows, values = gather_rescored(self._meet(RESCORE, count=len(rows)), rows, values)
        self._planner.record(rows, values, [len(rows)], trained=False)
        self._plan = self._share = self._ledger = None
        if self.sharded:
            _ = self.share  # planned now, where all ranks are: it takes a collective
        self._show_plan_to_stream()

    # ------------------------------------------------------------------ ranks

    @property
    def _exchanges(self) -> bool:
        """Whether the losses of this rank have to be made known to others."""
        return not self.sharded and self.share.is_one_of_several

    def _meet(self, occasion: int, *, count: int | None = None) -> Meeting:
        """Find out whether all ranks stand at the same place; a collective operation."""
        planning = occasion in (PLANNING, SHARING)
        header = Header(
            occasion=occasion,
            epoch=self._epoch,
            start=round(self._before) if self.sharded else self._start,
            position=0 if planning else self._position,
            plan=0 if self.sharded else plan_digest(self.plan),
            count=len(self._pending) if count is None else count,
            has_scores=self._pending.has_scores,
            rows=self._pending.kind_of_rows,
        )
        world = self._ranks.world()
        meeting = meet(self._ranks, world, self._settings(), header, uneven=self._is_stream)
        self._has_met = True
        return meeting

    def _meet_to_plan(self, occasion: int, num_bytes: int) -> Meeting:
        return self._meet(occasion, count=num_bytes)

    def _bring_together(self, occasion: int) -> tuple[int, int, float, float]:
        """Make the losses of all ranks known to all; a collective operation.

        Returns:
            Of the current epoch over all ranks: samples kept, samples without pruning, the mean
            weight, and the mass left out.
        """
        self._flush()
        plan = self.plan
        facts = len(plan), plan.total, plan.mean_weight, plan.selection.mass_left_out
        if not self.share.is_one_of_several:
            return facts
        meeting = self._meet(occasion)
        if self.sharded:
            return self._add_up(meeting)
        share, pending = self.share, self._pending
        done = share.position(self._position - len(pending))
        planned = plan.order[done : share.position(self._position)]
        if any(header.count for header in meeting.headers):
            rows, losses, scores, batches = gather_losses(meeting, pending, planned)
            if max(h.rows for h in meeting.headers) == OWN_ROWS and not self._is_stream:
                if self._done is None:
                    self._done = [plan.order[self._start : done].astype(np.int64)]
                self._done.append(rows)
            self._record(rows, losses, scores, batches)
        self._pending = PendingLosses()
        return facts

    def _add_up(self, meeting: Meeting) -> tuple[int, int, float, float]:
        """Sharded: the tally of the epoch becomes that of all ranks."""
        plan, tally = self.plan, self._tally
        own = np.array(
            [
                *(tally.trained, tally.non_finite, tally.loss_count, tally.loss_sum),
                self._plan_position - tally.trained,
                *(len(plan), plan.total, len(plan) * plan.mean_weight),
                plan.total * plan.selection.mass_left_out,
            ],
            dtype=np.float64,
        )
        sums = np.sum([part.view(np.float64) for part in meeting.all_gather(own)], axis=0)
        trained, non_finite, loss_count, loss_sum, left, kept, total, weight, mass = sums.tolist()
        self._tally = LossTally(int(trained), int(non_finite), int(loss_count), loss_sum, int(left))
        return int(kept), int(total), weight / kept, mass / total

    def synchronize(self) -> None:
        """Make the losses that have come so far in this epoch known to all ranks.

        Every rank must call it, after the same batch. Needed before `state_dict` within an
        epoch of a distributed run, and nowhere else; in one process it does nothing.

        Raises:
            DistributedError: the ranks do not stand at the same place, or one did not come.
        """
        if self._position > 0 and not self.sharded:
            self._bring_together(SYNCHRONIZE)

    # ------------------------------------------------------------------ what can be read

    @property
    def epoch(self) -> int:
        """The epoch that is running or about to run, 0-based; `num_epochs` after the last.

        In one process an epoch whose loop has been left is over.
        """
        self._settle()
        return self._epoch

    @property
    def is_within_epoch(self) -> bool:
        """Whether part of the current epoch has been trained on, so that only a rest is left."""
        return self._plan_position > 0

    @property
    def scores(self) -> Tensor:
        """(N,) float32: every sample's latest score, NaN = never seen; a copy, on the host.

        In a distributed run, as of the last exchange: the end of an epoch or `synchronize`.
        Under `sharded=True` (n,), of the samples rank, rank + world_size, ... that this rank owns.
        """
        self._flush()
        return torch.from_numpy(self._planner.table.values.copy())

    @property
    def history(self) -> list[EpochRecord]:
        """One record per finished epoch; in one process also of one whose loop has been left."""
        self._settle()
        return list(self._history)

    @property
    def saved_fraction(self) -> float:
        """Fraction of sample passes that the finished epochs did not take, in [0, 1].

        Of what was trained and not of what was planned: batches that a loop left out count.
        """
        records = self.history
        total = sum(record.total for record in records)
        return 1.0 - sum(record.trained for record in records) / total if total else 0.0

    @property
    def progress(self) -> float:
        """How far the run has come, in [0, 1], for schedules to follow.

        Finished epochs plus the part of the current, by their number, as in the paper. With
        `budget=`, where the size of every epoch is known, by their sizes: it then rises by as much
        with every sample, and a schedule that follows it is one over `total_steps`.
        """
        self._settle()
        done, upto = self.fractional_epoch, self._planner.passes
        whole = min(int(done), self.num_epochs - 1)
        before, after = upto[whole], upto[whole + 1]
        return (before + (done - whole) * (after - before)) / upto[-1]

    @property
    def fractional_epoch(self) -> float:
        """Finished epochs plus the part of the current that is done, 0 to num_epochs."""
        if self._plan_position == 0:
            return float(self._epoch)
        share, came = self.share, self._position
        planned = len(share) if self._ledger is None else self._ledger.deliverable
        if self._is_stream:  # counted in steps, so that it is the same on all ranks
            came = self._stream_steps * self._stream_batch
        done = (share.before + came) / (share.before + planned)
        return self._epoch + min(done, 1.0)

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch that is trained on is the last of its epoch, before `update` and after.

        For loops that step, validate or save at an epoch's end:
        `if (i + 1) % accumulate == 0 or pruner.is_last_batch: optimizer.step()`. Before `update`
        it is False in loops that read ahead, which cannot be told apart from one batch earlier.
        """
        ledger = self._ledger or self._finished
        position = self._position if self._ledger is not None else math.inf
        return ledger is not None and ledger.is_on_last(position)

    def total_steps(self, batch_size: int, *, drop_last: bool = False, accumulate: int = 1) -> int:
        """The number of optimizer steps of the whole run.

        Exact from the start with `budget=`, so a schedule that wants the number of steps can be
        built before training. It ends as if all epochs ran to their end.

        Args:
            batch_size: of the loader, on this rank.
            drop_last: as the loader's.
            accumulate: batches to an optimizer step; the last of an epoch may have fewer.

        Raises:
            ValueError: it depends on losses that have not come yet.
        """
        batch_size = check_int("batch_size", batch_size, at_least=1)
        planner, world = self._planner, self._ranks.world()
        if planner.sizes is not None:
            sizes: Sequence[int] = planner.sizes_in(self.batch_size or batch_size)
        elif planner.order_source is not None:
            raise ValueError(
                "total_steps does not know how many samples your own sampler= will yield; count "
                "them, leave sampler= away, or pass budget="
            )
        elif isinstance(self.policy, FullData) or not planner.pruned_epochs:
            sizes = [self.num_samples] * self.num_epochs
        else:
            raise ValueError(
                "the number of steps depends on the losses that will come; pass budget= (such as "
                "budget=0.7: 70% of the sample passes of the full run) to fix it beforehand, or "
                "let schedules follow pruner.progress (see infobatch.schedule)"
            )
        accumulate = check_int("accumulate", accumulate, at_least=1)
        on_rank = [-(-size // world.size) for size in sizes]
        batches = [n // batch_size if drop_last else -(-n // batch_size) for n in on_rank]
        return sum(-(-n // accumulate) for n in batches)

    def coming_weights(self, count: int) -> Tensor:
        """(count,) float64, on the host: the weights of the next samples, before their losses.

        For hosts that must know beforehand which of the samples that they have drawn are padding
        of a distributed run (weight 0), or count as they are (weight 1). Fewer at an epoch's end.
        """
        if self.sampler.is_paused:
            return torch.ones(count, dtype=torch.float64)
        share, batch = self.share, self._coming(count)
        if batch.ids is None:
            return torch.from_numpy(share.weights(batch.start, min(batch.stop, len(share))))
        return torch.from_numpy(share.plan.selection.weights_of(batch.ids))

    def _coming(self, count: int) -> Batch:
        """The next samples whose losses are due."""
        self._check_not_over()
        self._end_look()
        if self._ledger is None:
            return Batch(self._position, self._position + count)
        return self._ledger.coming(self._position, count)

    def metrics(self) -> dict[str, float]:
        """Of the last finished epoch, by the names under which the integrations log it.

        `infobatch/saved_fraction` (of the whole run so far), `infobatch/kept_fraction`,
        `infobatch/mean_weight`, and `infobatch/threshold` where there is one. Empty before.
        """
        if not self._history:
            return {}
        record = self._history[-1]
        values = {
            "saved_fraction": self.saved_fraction,
            "kept_fraction": record.kept / record.total,
            "mean_weight": record.mean_weight,
            "threshold": record.threshold,
        }
        return {f"infobatch/{name}": v for name, v in values.items() if math.isfinite(v)}

    def check_host(
        self, *, num_epochs: float | None = None, place: tuple[int, int] | None = None
    ) -> None:
        """Check that the run of a host with epochs and checkpoints of its own can be this one.

        Args:
            num_epochs: of the host's run, if it has such a number.
            place: (rank, world size) for which the host would shard data, once it knows.

        Raises:
            EpochError: the number of epochs is not that of the pruner.
            DistributedError: the pruner's place is another, such as under tensor parallelism.
            StateError: `sharded=True`: hosts save the state of one process.
        """
        if num_epochs is not None and num_epochs != self.num_epochs:
            raise EpochError(
                f"the host's number of epochs must be the pruner's num_epochs={self.num_epochs}, "
                f"as the last part of the run is annealed, got {num_epochs:g}"
            )
        world = self._ranks.world()
        if place is not None and place != (world.rank, world.size):
            raise DistributedError(
                f"the host gives this process the data of rank {place[0]} of {place[1]}, the "
                f"pruner that of rank {world.rank} of {world.size}; build the pruner with "
                f"process_group= of the data-parallel ranks, or with rank= and world_size="
            )
        if self.sharded:
            raise StateError(
                "sharded=True gives each rank a state of its own, of which this host's checkpoints "
                "would have one; use sharded=False, or a loop of your own that saves them all"
            )

    def coming_divisor(self, count: int) -> float:
        """What `update` will divide the sum of the next weighted losses by under "mean".

        `count`; or, where a rank has padding, the mean number over ranks of samples that count.
        """
        if self.sampler.is_paused:
            return float(count)
        start = self._coming(count).start
        divisor = self.share.divisor(start, start + count)
        return float(count) if divisor is None else divisor

    def summary(self) -> str:
        """One line: what has been saved so far."""
        records = self.history
        trained = sum(record.trained for record in records)
        total = sum(record.total for record in records)
        return (
            f"{self.saved_fraction:.1%} of {total:,} sample passes saved "
            f"({trained:,} used) in {len(records)} of {self.num_epochs} epochs"
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_samples} samples, {self.policy!r}, "
            f"epoch {self._epoch} of {self.num_epochs})"
        )

    # ------------------------------------------------------------------ state

    def _settings(self) -> dict[str, Any]:
        policy = describe_policy(self.policy)
        if self.budget is not None:
            sizes = zlib.crc32(repr(self._planner.sizes).encode())
            policy = {**policy, "budget": self.budget, "epoch_sizes": sizes}
        return {
            "num_samples": self.num_samples,
            "num_epochs": self.num_epochs,
            "policy": policy,
            "delta": self.delta,
            "seed": self.seed,
            "own_sampler": self._planner.order_source is not None,
            "warmup_epochs": self.warmup_epochs,
            "score_ema": self.score_ema,
            "sharded": self.sharded,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here: plain values and tensors on the host.

        Can be taken at any time, also within an epoch, where a run that loads it goes on within
        that epoch if it was taken inside the loop, and with the next epoch if the loop had been
        left. `torch.save` it with your checkpoint;
        `torch.load(..., weights_only=True)` reads it back. Takes 5 bytes a sample (more with a
        sampler of your own, or a policy without levels).

        It is the same on every rank, so one of them can save it; but under `sharded=True` each
        rank has its own.

        Raises:
            StateError: within an epoch of a distributed run, some losses are not known to all
                ranks yet; call `synchronize` first, on every rank.
        """
        self._settle()
        self._flush()
        if len(self._pending):
            raise StateError(
                f"the losses of {len(self._pending)} samples of this rank are not known to the "
                "other ranks yet; call pruner.synchronize() on every rank, then state_dict() on "
                "any. Between epochs nothing is needed"
            )
        snapshot = Snapshot(
            epoch=self._epoch,
            position=self._plan_position,
            steps=self._steps,
            is_over=self._has_left,
            batch_size=self._planner.batch_size,
            scores=self._planner.table.values,
            memory=self._planner.memory,
            plan=self._plan_as_trained(),
            tally=self._tally,
            history=self._history,
            shard=self._planner.shard,
        )
        return snapshot.pack(self._settings())

    @property
    def _plan_position(self) -> int:
        if self._position == 0:
            return self._start
        if self._done is not None:
            return self._start + sum(map(len, self._done))
        return self.share.position(self._position)

    @property
    def _steps(self) -> int:
        """Samples of a share that have come in this epoch, padding included; alike on all ranks."""
        if self._position == 0 and self._start == 0 and self._before == 0.0:
            return 0
        return math.ceil(self.share.before) + self._position

    def _plan_as_trained(self) -> EpochPlan | None:
        """The plan, with what has come in another order first."""
        if self._done is None or self._plan is None:
            return self._plan
        return self._plan.with_first(np.concatenate(self._done))

    def load_state_dict(self, state: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Go on from a saved state: the same batches, weights and scores as never having stopped.

        Within an epoch the next iteration of the sampler goes on with the first sample whose
        loss had not come when the state was saved. The number of ranks may be another: what is
        left of the epoch is shared anew. Every rank must load, and the same state.

        Args:
            state: what `state_dict` returned, of a pruner with the same settings. Under
                `sharded=True` this rank's, or, for another number of ranks, those of all ranks
                as an iterable (a generator that loads one file after the other will do).

        Raises:
            StateError: it does not fit; the reason is named, and nothing has been changed.
        """
        shard = self._planner.shard_now()
        columns = tuple(self.policy.columns) if isinstance(self.policy, MemoryPolicy) else ()
        if self.sharded and not isinstance(state, Mapping) and isinstance(state, Iterable):
            saved = Snapshot.merge(state, self._settings(), shard, columns)
        else:
            saved = Snapshot.unpack(state, self._settings(), columns)
        if saved.shard != shard:
            raise StateError(
                f"the state is that of rank {saved.shard.index} of {saved.shard.count}, this is "
                f"rank {shard.index} of {shard.count}; pass the states of all ranks, as a list "
                "or a generator"
            )
        self._planner.restore(shard, saved.scores, saved.memory)
        self._planner.kept = [record.kept for record in saved.history]
        if self.batch_size is None:
            self._planner.batch_size = saved.batch_size
        self._epoch, self._plan = saved.epoch, saved.plan
        if saved.position == 0 and saved.batch_size != self._planner.batch_size:
            self._plan = None  # to be planned in batches of the size that was given
        self._start, self._position, self._is_over = saved.position, 0, saved.is_over
        self._before = saved.steps
        self._tally, self._history = saved.tally, saved.history
        self._share = None
        self._pending, self._has_met = PendingLosses(), False
        self._done = self._came = self._padding = None
        self._buffer = self._ledger = self._finished = self._looked_from = None
        self._stream_steps = self._stream_batch = 0
        self._reads_as_said, self._left_open = False, None
        if self.sharded and self._epoch < self.num_epochs:
            _ = self.share  # planned now, where all ranks are: it takes a collective
        self._settle()
        self._show_plan_to_stream()

    def __copy__(self) -> DataPruner:
        return copy.deepcopy(self)  # sampler and scores belong to one pruner

    def __getstate__(self) -> dict[str, Any]:
        # A copy stands where the original stands, but no loader is drawing from it.
        self._settle()
        self._flush()
        if len(self._pending):
            raise StateError(
                "within an epoch of a distributed run a pruner cannot be copied before "
                "pruner.synchronize()"
            )
        members = self.__dict__.copy()
        members.update(_ledger=None, _finished=None, _looked_from=None, _left_open=None)
        members.update(_share=None, _has_met=False)
        members.update(_start=self._plan_position, _position=0, _is_over=self._has_left)
        members.update(_before=float(self._steps))
        members.update(_plan=self._plan_as_trained(), _done=None, _came=None, _padding=None)
        return members


class InfoBatch(DataPruner):
    """Unbiased dynamic data pruning: train on about a third fewer samples.

    In each epoch, samples whose last loss is below the mean are left out with probability
    `prune_ratio`, and the losses of those that remain of them are scaled up by
    1 / (1 - prune_ratio), so that the expected gradient stays that of the full data. The first
    epoch and the last (1 - delta) of them use the full data. What this saves depends on the
    distribution of the losses; `saved_fraction` tells.

        pruner = InfoBatch(train_set, num_epochs=200)
        loader = DataLoader(train_set, batch_size=128, sampler=pruner.sampler)
        ...
        loss = pruner.update(F.cross_entropy(model(x), y, reduction="none"))

    Source: Qin et al., ICLR 2024, arXiv 2303.04947.

    Args:
        dataset: anything with a length, or the length itself. It is not kept or wrapped.
        num_epochs: length of the whole run, at least 1.
        prune_ratio: r in [0, 1), the part of the samples below the mean that an epoch leaves
            out; 0.5 if neither it nor `quantiles` nor `budget` is given. 0 is plain shuffled
            training.
        delta: pruning ends after this fraction of the epochs, in [0, 1].
        quantiles: instead of the mean threshold, (upper quantile, keep ratio) pairs of score
            ranges; `infobatch.policies.PAPER_QUANTILES` is what the paper's 40% results used.
        budget: instead of a prune ratio, what the run may cost: 0.6 is 60% of the sample passes of
            the full run, warm-up and annealing included. It is met within half a batch. The prune
            ratio of each epoch is solved for; where the samples below the mean are too few, the
            threshold is higher (`infobatch.policies.BudgetThreshold`). With `quantiles`, their
            prune ratios are scaled alike. `DataPruner(dataset, num_epochs, budget=...)` is another
            policy, biased and often better at equal cost.
        ratio_schedule, batch_size, groups, seed, sampler, warmup_epochs, score_ema,
            process_group, rank, world_size, sharded: see `DataPruner`.

    Raises:
        TypeError, ValueError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        prune_ratio: float | None = None,
        delta: float = 0.875,
        *,
        quantiles: Mapping[float, float] | Iterable[tuple[float, float]] | None = None,
        budget: float | None = None,
        ratio_schedule: RatioSchedule = "constant",
        batch_size: int | None = None,
        groups: ArrayLike | None = None,
        seed: int = 0,
        sampler: Iterable[int] | None = None,
        warmup_epochs: int = 1,
        score_ema: float = 0.0,
        process_group: object = None,
        rank: int | None = None,
        world_size: int | None = None,
        sharded: bool = False,
    ) -> None:
        policy: AnyPolicy = MeanThreshold(_PRUNE_RATIO if prune_ratio is None else prune_ratio)
        if quantiles is not None:
            policy = QuantileThresholds(normalise_quantiles(quantiles))
        elif budget is not None:
            policy = BudgetThreshold()
        for name, given in (("budget", budget), ("quantiles", quantiles)):
            if given is not None and prune_ratio is not None:
                raise ValueError(
                    f"{name}= decides what is pruned, so that prune_ratio={prune_ratio!r} would "
                    "have no effect; give one of the two"
                )
        super().__init__(
            dataset,
            num_epochs,
            policy,
            delta=delta,
            seed=seed,
            sampler=sampler,
            warmup_epochs=warmup_epochs,
            score_ema=score_ema,
            budget=budget,
            ratio_schedule=ratio_schedule,
            batch_size=batch_size,
            groups=groups,
            process_group=process_group,
            rank=rank,
            world_size=world_size,
            sharded=sharded,
        )


def _checked_policy(
    policy: AnyPolicy, budget: float | None, groups: ArrayLike | None, num_samples: int
) -> AnyPolicy:
    """The policy, within groups if there are any; it must go with a budget or with none."""
    if not is_policy(policy):
        raise TypeError(
            "policy must be an object with a method select(scores, epoch, rng), such as "
            f"infobatch.policies.MeanThreshold(prune_ratio=0.5), got {policy!r}"
        )
    if budget is None and not is_native(policy):
        raise TypeError(
            f"{policy!r} has to be told how many samples to keep: pass budget=, such as 0.7"
        )
    if budget is not None and not is_exact(policy):
        raise TypeError(
            "budget= needs a policy that can be told how many samples to keep (one with "
            "select_exactly; see infobatch.policies.ExactPolicy), such as "
            f"infobatch.policies.ProportionalSampling(), got {policy!r}"
        )
    if groups is None:
        return policy
    if len(check_groups(groups)) != num_samples:
        raise ValueError(
            f"groups must be one integer per sample: {num_samples}, got {len(check_groups(groups))}"
        )
    return WithinGroups(policy, groups)


def _checked_sampler(sampler: Iterable[int] | None) -> Iterable[int] | None:
    if isinstance(sampler, BatchSampler):
        raise TypeError(
            "sampler must yield the index of one sample at a time, got a "
            f"{type(sampler).__name__}, which yields batches; pass the sampler inside it, and let "
            "the loader form batches from pruner.sampler"
        )
    if sampler is not None and not (
        hasattr(sampler, "__iter__") or hasattr(sampler, "__getitem__")
    ):
        raise TypeError(
            "sampler must yield the indices of an epoch each time it is iterated, such as a "
            f"torch.utils.data.Sampler, got {sampler!r}"
        )
    return sampler
