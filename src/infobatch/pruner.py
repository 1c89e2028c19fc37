"""DataPruner, the one stateful object; and InfoBatch, which is it with the paper's policy."""

from __future__ import annotations

import copy
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from infobatch.buffer import LossBuffer
from infobatch.compiled import outside_graphs
from infobatch.distributed import Ranks, World
from infobatch.errors import (
    DistributedError,
    EpochError,
    IndistinctScoresWarning,
    LossError,
    MisalignedUpdateError,
    NonFiniteLossWarning,
    StateError,
)
from infobatch.exchange import (
    EPOCH_END,
    FIRST_UPDATE,
    NO_LOSS,
    PLANNING,
    RESCORE,
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
from infobatch.history import EpochRecord, LossTally
from infobatch.plan import EpochPlan, Share
from infobatch.planner import Planner
from infobatch.policies import (
    AnyPolicy,
    ExactPolicy,
    FullData,
    MeanThreshold,
    MemoryPolicy,
    ProportionalSampling,
    QuantileThresholds,
    ShardedPolicy,
    WithinGroups,
)
from infobatch.policies.base import is_exact, is_native, is_policy
from infobatch.policies.groups import check_groups, has_groups
from infobatch.policies.infobatch import normalise_quantiles
from infobatch.rescale import Reduction, check_indices, check_losses, rescale
from infobatch.sampler import Ledger, LoaderFacts, PlanSampler
from infobatch.schedule import RatioSchedule, epoch_sizes, pruned_epochs
from infobatch.state import Snapshot, describe_policy
from infobatch.streams import StreamFilter
from infobatch.validation import check_fraction, check_int, length

_PRUNE_RATIO = 0.5  # the paper's
_USER_LINE = 6  # above `_commit`: `_advance`, `update`, and two frames of `outside_graphs`
_INDISTINCT = 0.9  # of the gradient mass in a random part of the samples


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
        policy: decides which samples an epoch keeps; see `infobatch.policies`.
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

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        policy: AnyPolicy,
        *,
        delta: float = 0.875,
        seed: int = 0,
        sampler: Iterable[int] | None = None,
        warmup_epochs: int = 1,
        score_ema: float = 0.0,
        budget: float | None = None,
        ratio_schedule: RatioSchedule = "constant",
        groups: ArrayLike | None = None,
        process_group: object = None,
        rank: int | None = None,
        world_size: int | None = None,
        sharded: bool = False,
    ) -> None:
        self.num_samples = length(dataset)
        self.num_epochs = check_int("num_epochs", num_epochs, at_least=1)
        self.policy = _checked_policy(policy, budget, groups, self.num_samples)
        self.delta = check_fraction("delta", delta)
        self.seed = check_int("seed", seed, at_least=0, at_most=2**63 - 1)
        self.warmup_epochs = check_int("warmup_epochs", warmup_epochs, at_least=0)
        self.score_ema = check_fraction("score_ema", score_ema, below_one=True)
        self._ranks = Ranks(process_group, rank, world_size)
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
        )
        self._history: list[EpochRecord] = []
        self._epoch = 0
        self._plan: EpochPlan | None = None
        self._share: Share | None = None
        self._world: World | None = None  # as it was when the share was made
        self._start = 0  # plan position at which an iteration begins: above 0 after a resume
        self._position = 0  # position in the share of the next loss
        self._tally = LossTally()
        self._buffer: LossBuffer | None = None
        self._pending = PendingLosses()
        self._has_met = False  # whether the ranks have found that they agree
        self._filter: StreamFilter | None = None
        self._ledger: Ledger | None = None  # of the current epoch, from its first drawing on
        self._earlier: Ledger | None = None  # of the epoch before
        self._superseded: tuple[Ledger, int] | None = None

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
                and `InfoBatch(budget=...)`: the cross-entropies without it.
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
            MisalignedUpdateError: the losses are not those of the next planned samples.
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
        count = losses.shape[0]
        if indices is None:
            self._check_due(count)
        else:
            self._check_not_over()
        share = self._share_met()
        divisor = None
        if indices is None:
            weights = self._take_in_order(losses, scores)
            divisor = share.divisor(self._position, self._position + count)
        else:
            weights = self._take_by_index(losses, scores, indices)
            if not self._is_stream:
                divisor = share.divisor(self._position, self._position + count)
        result = rescale(losses, weights, reduction, divisor)
        self._advance(count)
        return result

    @outside_graphs
    def skip(self, batch_size: int) -> None:
        """Say that the next batch is left out on purpose: its samples keep their scores.

        Args:
            batch_size: number of samples in that batch.

        Raises:
            MisalignedUpdateError: no such batch is due.
        """
        batch_size = check_int("batch_size", batch_size, at_least=1)
        self._check_due(batch_size)
        self._share_met()
        if self._exchanges:
            self._flush()
            self._pending.skip(batch_size)
        self._advance(batch_size)

    def _share_met(self) -> Share:
        """This rank's share; the ranks have made sure, once, that they agree on what is shared."""
        share = self.share if self._share is None else self._share
        if share.is_one_of_several and not self._has_met:
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

    def _take_by_index(
        self, losses: Tensor, scores: Tensor | None, indices: Tensor | Sequence[int]
    ) -> Tensor:
        ids = check_indices(indices, len(losses), self.num_samples)
        share = self.share
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
        rows = self._planner.shard.rows(ids)
        weights = share.plan.selection.weights_of(np.maximum(rows, 0))
        if not bool((weights[rows >= 0] > 0).all() and (rows >= 0).all()):
            pruned = ids[(weights == 0) | (rows < 0)][:5].tolist()
            raise MisalignedUpdateError(
                f"samples {pruned} are not in the plan of epoch {self._epoch}; draw "
                "batches from this pruner's sampler, and pass the data set's own indices"
            )
        counted = weights > 0 if self._is_stream else share.counted(rows, self._position)
        self._flush()
        values = losses.detach().float().cpu().numpy()
        ranked = values if scores is None else scores.detach().float().cpu().numpy()
        if self._exchanges:
            own = None if scores is None else ranked
            self._pending.add(values, own, [len(rows)], np.where(counted, rows, NO_LOSS))
        else:
            batches = [int(np.count_nonzero(counted))]
            self._record(rows[counted], values[counted], ranked[counted], batches)
        weights = np.where(counted, weights, 0.0)
        dtype = torch.float64 if losses.dtype == torch.float64 else torch.float32
        return torch.from_numpy(weights).to(losses.device, dtype)

    def _check_not_over(self) -> None:
        if self._epoch >= self.num_epochs:
            raise EpochError(
                f"all num_epochs={self.num_epochs} epochs are over, but training goes on; build "
                "the pruner with the number of epochs that the run really has"
            )

    def _check_due(self, count: int) -> None:
        self._check_not_over()
        if self._ledger is None:
            raise MisalignedUpdateError(
                "update or skip was called before any batch was drawn in this epoch, or once more "
                "than the epoch before had batches; iterate a loader built with "
                "sampler=pruner.sampler, and call update inside that loop, once per batch"
            )
        if self._superseded is not None:
            ledger, handed_out = self._superseded
            if ledger.handed_out != handed_out:
                raise MisalignedUpdateError(
                    "the sampler was iterated anew while an earlier loop over it went on, so it "
                    "cannot be told to which of the two these losses belong. Finish one loop "
                    "before starting the next; to look at a batch, do so before the epoch"
                )
        self._ledger.check(self._position, count)
        self._superseded = None

    def _advance(self, count: int) -> None:
        self._position += count
        if self._is_stream:
            return
        share = self.share if self._share is None else self._share
        if self._position == len(share) or (
            self._ledger is not None and self._ledger.is_complete(self._position)
        ):
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
            self._share = self._planner.share(self.plan, self._start, world, self._meet_to_plan)
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

    def _begin(self, loader: LoaderFacts) -> Iterator[int]:
        """Start the epoch that is due, or start it again; called by the sampler."""
        if self._is_stream:
            raise MisalignedUpdateError(
                "this pruner plans for a stream (stream_filter was called), so its sampler is "
                "not used; leave the sampler away, or build another pruner"
            )
        if self._position > 0:
            self._end_early()
        ledger = Ledger(len(self.share), loader)
        if self._start > 0 and ledger.is_complete(0):
            self._commit()  # resumed where only a batch that drop_last drops was left
            ledger = Ledger(len(self.share), loader)
        ledger.check_drawable()
        earlier = self._ledger or self._earlier
        if earlier is not None:
            self._superseded = (earlier, earlier.handed_out)
        self._ledger = ledger
        return ledger.draw(self.share.ids)

    def _remaining(self) -> int:
        """Number of samples that the next iteration of the sampler hands out."""
        return len(self.share)

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
                "pruner.load_state_dict first and start the loop at pruner.epoch"
            )

    def _end_early(self) -> None:
        if self._ledger is not None:
            self._ledger.check_end(self._position)
        self._commit()

    def end_epoch(self) -> None:
        """Close the current epoch now, whatever of it has been trained.

        Only a loop over a stream has to say so; elsewhere an epoch ends with its last loss, or
        when the sampler is iterated the next time. In a distributed run every rank must call it.

        Does nothing where the epoch has ended by itself.

        Raises:
            EpochError: all `num_epochs` epochs of a stream are over.
        """
        if self._is_stream:
            self._check_not_over()
        if self._is_stream or self._plan_position > 0:
            self._end_early()

    def _commit(self) -> None:
        """Close the current epoch: its scores count from now on."""
        kept, total, mean_weight, mass_left_out = self._bring_together(EPOCH_END)
        plan, tally = self.plan, self._tally
        self._history.append(
            EpochRecord(
                epoch=self._epoch,
                kept=kept,
                total=total,
                trained=tally.trained,
                threshold=plan.threshold,
                mass_left_out=mass_left_out,
                mean_loss=tally.mean_loss,
                mean_weight=mean_weight,
                non_finite=tally.non_finite,
            )
        )
        self._epoch += 1
        self._plan = self._share = None
        self._start = self._position = 0
        self._earlier, self._ledger = self._ledger, None  # a loss more than planned is an error
        self._tally = LossTally()
        if self._epoch < self.num_epochs and self.sharded:
            _ = self.share  # planned now, where all ranks are: it takes a collective
        self._show_plan_to_stream()
        if plan.epoch == self._planner.pruned_epochs.stop - 1:
            self._warn_if_indistinct()
        if tally.non_finite:
            warnings.warn(
                f"epoch {plan.epoch}: {tally.non_finite} of {tally.trained} samples had a NaN or "
                "infinite loss; they are kept in the next epoch, as far as a budget allows, and "
                "leave the threshold untouched",
                NonFiniteLossWarning,
                stacklevel=_USER_LINE,
            )

    def _warn_if_indistinct(self) -> None:
        """Say so if what the run has left out, now that it leaves out no more, was arbitrary."""
        pruned = [record for record in self._history if record.kept < record.total]
        saved = sum(1.0 - record.kept / record.total for record in pruned)
        mass = sum(record.mass_left_out for record in pruned)
        if not mass >= _INDISTINCT * saved > 0.0 or self._ranks.world().rank != 0:
            return
        warnings.warn(
            f"{saved / len(pruned):.0%} of the samples were left out of each pruned epoch, and "
            f"{mass / len(pruned):.0%} of what bounds the gradients with them. So the scores tell "
            "hardly any samples apart, or the budget leaves no choice, and the run is one on the "
            "full data for fewer epochs. With label smoothing, or any loss that is not near 0 for "
            "what is learned, pass one that is: update(losses, scores=F.cross_entropy(...)); for "
            "other losses there are other policies: docs/methods/proportional.md",
            IndistinctScoresWarning,
            stacklevel=_USER_LINE + 1,
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
        self._plan = self._share = None
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
        planning = occasion == PLANNING
        header = Header(
            occasion=occasion,
            epoch=self._epoch,
            start=0 if self.sharded else self._start,
            position=0 if planning else self._position,
            plan=0 if self.sharded else plan_digest(self.plan),
            count=len(self._pending) if count is None else count,
            has_scores=self._pending.has_scores,
            has_rows=self._pending.has_rows,
        )
        world = self._ranks.world()
        meeting = meet(self._ranks, world, self._settings(), header, uneven=self._is_stream)
        self._has_met = True
        return meeting

    def _meet_to_plan(self) -> Meeting:
        return self._meet(PLANNING)

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
            self._record(*gather_losses(meeting, pending, planned))
        self._pending = PendingLosses()
        return facts

    def _add_up(self, meeting: Meeting) -> tuple[int, int, float, float]:
        """Sharded: the tally of the epoch becomes that of all ranks."""
        plan, tally = self.plan, self._tally
        own = np.array(
            [
                *(tally.trained, tally.non_finite, tally.loss_count, tally.loss_sum),
                *(len(plan), plan.total, len(plan) * plan.mean_weight),
                plan.total * plan.selection.mass_left_out,
            ],
            dtype=np.float64,
        )
        sums = np.sum([part.view(np.float64) for part in meeting.all_gather(own)], axis=0)
        trained, non_finite, loss_count, loss_sum, kept, total, weight, mass = sums.tolist()
        self._tally = LossTally(int(trained), int(non_finite), int(loss_count), loss_sum)
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
        """The epoch that is running or about to run, 0-based; `num_epochs` after the last."""
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
        """One record per finished epoch."""
        return list(self._history)

    @property
    def saved_fraction(self) -> float:
        """Fraction of sample passes that the finished epochs left out, in [0, 1)."""
        total = sum(record.total for record in self._history)
        return 1.0 - sum(record.kept for record in self._history) / total if total else 0.0

    @property
    def progress(self) -> float:
        """How far the run has come, in [0, 1], for schedules to follow.

        Finished epochs plus the part of the current, by their number, as in the paper. With
        `budget=`, where the size of every epoch is known, by their sizes: it then rises by as much
        with every sample, and a schedule that follows it is one over `total_steps`.
        """
        done, upto = self.fractional_epoch, self._planner.passes
        whole = min(int(done), self.num_epochs - 1)
        before, after = upto[whole], upto[whole + 1]
        return (before + (done - whole) * (after - before)) / upto[-1]

    @property
    def fractional_epoch(self) -> float:
        """Finished epochs plus the part of the current that is done, 0 to num_epochs."""
        if self._plan_position == 0:
            return float(self._epoch)
        share = self.share
        planned = len(share) if self._ledger is None else self._ledger.deliverable
        done = share.position(self._position) / share.position(planned)
        return self._epoch + min(done, 1.0)

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
            sizes: Sequence[int] = planner.sizes
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
        share = self.share
        return torch.from_numpy(
            share.weights(self._position, min(self._position + count, len(share)))
        )

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
        divisor = self.share.divisor(self._position, self._position + count)
        return float(count) if divisor is None else divisor

    def summary(self) -> str:
        """One line: what has been saved so far."""
        kept = sum(record.kept for record in self._history)
        total = sum(record.total for record in self._history)
        return (
            f"{self.saved_fraction:.1%} of {total:,} sample passes saved "
            f"({kept:,} used) in {len(self._history)} of {self.num_epochs} epochs"
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

        Can be taken at any time, also within an epoch. `torch.save` it with your checkpoint;
        `torch.load(..., weights_only=True)` reads it back. Takes 5 bytes a sample (more with a
        sampler of your own, or a policy without levels).

        It is the same on every rank, so one of them can save it; but under `sharded=True` each
        rank has its own.

        Raises:
            StateError: within an epoch of a distributed run, some losses are not known to all
                ranks yet; call `synchronize` first, on every rank.
        """
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
            scores=self._planner.table.values,
            memory=self._planner.memory,
            plan=self._plan,
            tally=self._tally,
            history=self._history,
            shard=self._planner.shard,
        )
        return snapshot.pack(self._settings())

    @property
    def _plan_position(self) -> int:
        return self._start if self._position == 0 else self.share.position(self._position)

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
        self._epoch, self._plan = saved.epoch, saved.plan
        self._start, self._position = saved.position, 0
        self._tally, self._history = saved.tally, saved.history
        self._share = None
        self._pending, self._has_met = PendingLosses(), False
        self._buffer = self._ledger = self._earlier = self._superseded = None
        self._show_plan_to_stream()

    def __copy__(self) -> DataPruner:
        return copy.deepcopy(self)  # sampler and scores belong to one pruner

    def __getstate__(self) -> dict[str, Any]:
        # A copy stands where the original stands, but no loader is drawing from it.
        self._flush()
        if len(self._pending):
            raise StateError(
                "within an epoch of a distributed run a pruner cannot be copied before "
                "pruner.synchronize()"
            )
        members = self.__dict__.copy()
        members.update(_ledger=None, _earlier=None, _superseded=None, _share=None, _has_met=False)
        members.update(_start=self._plan_position, _position=0)
        return members


class InfoBatch(DataPruner):
    """Dynamic data pruning, unbiased but for `budget`: train on about a third fewer samples.

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
            out. 0 is plain shuffled training. Not used with `quantiles`.
        delta: pruning ends after this fraction of the epochs, in [0, 1].
        quantiles: instead of the mean threshold, (upper quantile, keep ratio) pairs of score
            ranges; `infobatch.policies.PAPER_QUANTILES` is what the paper's 40% results used.
        budget: instead of a prune ratio, what the run may cost: 0.6 is 60% of the sample passes of
            the full run, warm-up and annealing included. It is met exactly. With a budget the
            policy is not the paper's but one that has been as good at equal cost or better
            (`infobatch.policies.ProportionalSampling`): what is learned is left out, and nothing is
            scaled up, which is biased towards what is not learned yet. Where the model is sure of
            no sample it leaves out a random part, which is full data for fewer epochs, and says so
            in a warning. Its scores are cross-entropies: with label smoothing pass `update(losses,
            scores=...)` those without. The paper's own rule under a budget is `DataPruner(dataset,
            num_epochs, BudgetThreshold(), budget=...)`. With `quantiles`, their prune ratios are
            scaled alike.
        ratio_schedule, groups, seed, sampler, warmup_epochs, score_ema, process_group, rank,
            world_size, sharded: see `DataPruner`.

    Raises:
        TypeError, ValueError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        prune_ratio: float = _PRUNE_RATIO,
        delta: float = 0.875,
        *,
        quantiles: Mapping[float, float] | Iterable[tuple[float, float]] | None = None,
        budget: float | None = None,
        ratio_schedule: RatioSchedule = "constant",
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
        policy: AnyPolicy = MeanThreshold(prune_ratio)
        if quantiles is not None:
            policy = QuantileThresholds(normalise_quantiles(quantiles))
        elif budget is not None:
            policy = ProportionalSampling()
        if budget is not None and prune_ratio != _PRUNE_RATIO:
            raise ValueError(
                f"a budget solves for the prune ratio, so prune_ratio={prune_ratio!r} has no "
                "effect; give one of the two"
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
    if sampler is not None and not (
        hasattr(sampler, "__iter__") or hasattr(sampler, "__getitem__")
    ):
        raise TypeError(
            "sampler must yield the indices of an epoch each time it is iterated, such as a "
            f"torch.utils.data.Sampler, got {sampler!r}"
        )
    return sampler
