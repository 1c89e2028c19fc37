"""DataPruner: the one stateful object. It says when; the rooms beside it know how."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, SupportsIndex

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from infobatch._core.budget import RatioSchedule
from infobatch._core.history import EpochRecord, metrics_of, saved_by, summary_of
from infobatch._core.plan import EpochPlan
from infobatch._core.policy import Policy
from infobatch._core.validation import check_int, length
from infobatch._loading.batches import RecordedBatches
from infobatch._loading.sampler import PlanSampler
from infobatch._loading.streams import StreamFilter
from infobatch._ranks.world import Ranks
from infobatch._run import Run
from infobatch._settings import Setting, Settings, checked_sampler, delta_for, policy_for
from infobatch._state.merge import merge
from infobatch._state.snapshot import Snapshot
from infobatch._step.compiled import handle, update_in_graph
from infobatch._step.rescale import (
    Factors,
    Reduction,
    check_indices,
    check_losses,
    check_scores,
    rescale,
)
from infobatch.errors import MisalignedUpdateError, StateError
from infobatch.policies import FullData


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
        dataset: anything with a length, or the length itself. It is not kept or wrapped.
        num_epochs: length of the whole run, at least 1. Annealing depends on it.
        policy: decides which samples an epoch keeps; see `infobatch.policies`. None:
            `ProportionalSampling`, which leaves out what is learned and scales nothing up, so it is
            biased towards what is not learned yet. With `budget=` it has been as good as the
            paper's rule at equal cost, or better; where the model is sure of no sample, it then
            leaves out a random part and says so in a warning. Without a budget it leaves out only
            what holds next to nothing of the gradient. Its scores are cross-entropies: with label
            smoothing pass `update(losses, scores=...)` those without.
        delta: pruning ends after this fraction of the epochs, in [0, 1]; the full data with
            weight 1 follows (annealing). None: 0.875; but 1 where `ProportionalSampling` has no
            budget, as it leaves out nothing that would have to be made good.
        budget: what the whole run may cost, as a fraction of the num_epochs * N sample passes of
            the full run, in (0, 1]; warm-up and annealing are included. It is met within half a
            batch, whatever the losses are. The policy must be one that takes a budget.
        ratio_schedule: how the budget's saving is spread over the pruned epochs: "constant",
            "rising", "falling", "cosine", or a function of the place among them, in (0, 1).
        batch_size: of the loader, on each process. Pruned epochs are planned in whole batches of
            all processes together. None: that of the loader, once it is seen.
        warmup_epochs: epochs at the start that use the full data, at least 0. A sample without a
            score is kept in any case, as far as a budget allows.
        score_ema: a in [0, 1): a sample's score is a * score + (1 - a) * loss. 0: its last loss.
        groups: (N,) integers, such as the labels: the policy is applied within each group, so that
            small or easy classes are not pruned away; see `infobatch.policies.WithinGroups`.
        seed: of the order and of the policy's draws, 0 to 2**63 - 1. Global random generators
            are neither read nor written.
        sampler: your own sampler over the data set, finite. The order that it yields is kept,
            repeats included, and pruned samples are left out. It is iterated once per epoch,
            when that epoch is planned, after its `set_epoch(epoch)` if it has one.
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
    policy = Setting[Policy]()
    delta = Setting[float]()
    seed = Setting[int]()
    warmup_epochs = Setting[int]()
    score_ema = Setting[float]()
    budget = Setting["float | None"]()
    batch_size = Setting["int | None"]()
    sharded = Setting[bool]()
    sampler = Setting[PlanSampler](of="_sampler")

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        policy: Policy | None = None,
        *,
        delta: float | None = None,
        budget: float | None = None,
        ratio_schedule: RatioSchedule = "constant",
        batch_size: int | None = None,
        warmup_epochs: int = 1,
        score_ema: float = 0.0,
        groups: ArrayLike | None = None,
        seed: int = 0,
        sampler: Iterable[int] | None = None,
        process_group: object = None,
        rank: int | None = None,
        world_size: int | None = None,
        sharded: bool = False,
    ) -> None:
        num_samples = length(dataset)
        policy = policy_for(policy, budget, groups, num_samples)
        settings = self._settings = Settings(
            num_samples,
            num_epochs,
            policy,
            delta_for(policy, budget) if delta is None else delta,
            seed,
            sampler is not None,
            warmup_epochs,
            score_ema,
            budget,
            ratio_schedule,
            batch_size,
            sharded,
        )
        ranks = Ranks(process_group, rank, world_size)
        self._run = Run(settings, ranks, checked_sampler(sampler))
        self._sampler = self._run.sampler
        self._handle = handle(self)

    # ------------------------------------------------------------------ the training step

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
                losses (B,). Where a rank has padding (weight 0), "mean" divides by the mean number
                over ranks of samples that are not padding; otherwise the division is yours.

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
        if torch.compiler.is_compiling():
            return update_in_graph(self._handle, losses, scores, indices, reduction)
        return rescale(losses, self._weigh(losses, scores, indices, reduction), reduction)

    def _weigh(
        self,
        losses: Tensor,
        scores: Tensor | None,
        indices: Tensor | Sequence[int] | None,
        reduction: Reduction,
    ) -> Factors:
        """Take in the losses of the next batch; by what to multiply them."""
        check_losses("losses", losses)
        if scores is not None:
            check_scores(scores, losses)
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
        if self._sampler.is_paused:
            return Factors(None)
        count = losses.shape[0]
        if indices is None:
            running, batch = self._run.due(count)
            factors = running.take(batch, losses, scores, reduction)
        else:
            running, batch = self._run.due(None)
            ids = check_indices(indices, count, self.num_samples)
            batch = running.placed(batch, ids)
            factors = running.take_by_index(batch, losses, scores, ids)
        self._run.advance(batch, count)
        return factors

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
        if self._sampler.is_paused:
            return
        running, batch = self._run.due(batch_size)
        running.skip(batch)
        self._run.advance(batch, batch_size)

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
        return RecordedBatches(batch_sampler, self.sampler, self._run.keeps_record)

    # ------------------------------------------------------------------ epochs

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch: `epoch`, `indices`, `weights`, `threshold`, `len`.

        The same on every rank, which trains on its share of it; under `sharded=True` that of the
        rank's own samples.

        Raises:
            DistributedError: under `sharded=True`, before all ranks have iterated their loaders.
        """
        return self._run.prepare(may_talk=False).plan

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
        return self._run.start_stream()

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
        self._run.end_by_hand()

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
        run = self._run
        if run.running.has_begun or run.loops.has_drawn:
            raise MisalignedUpdateError(
                "rescore was called within an epoch; call it between two epochs: after the last "
                "update of one, and before the loader is iterated for the next"
            )
        values = scores.detach().float().cpu().numpy()
        rows = run.planner.samples.rows(ids)
        if len(rows) and rows.min() < 0:
            raise MisalignedUpdateError(
                f"samples {ids[rows < 0][:5].tolist()} belong to other ranks; under sharded=True "
                "rescore those of pruner.plan.pruned"
            )
        run.rescore(rows, values)

    def synchronize(self) -> None:
        """Make the losses that have come so far in this epoch known to all ranks.

        Every rank must call it, after the same batch. Needed before `state_dict` within an
        epoch of a distributed run, and nowhere else; in one process it does nothing.

        Raises:
            DistributedError: the ranks do not stand at the same place, or one did not come.
        """
        self._run.synchronize()

    # ------------------------------------------------------------------ what can be read

    @property
    def epoch(self) -> int:
        """The epoch that is running or about to run, 0-based; `num_epochs` after the last.

        In one process an epoch whose loop has been left is over.
        """
        self._run.settle()
        return self._run.running.epoch

    @property
    def is_within_epoch(self) -> bool:
        """Whether part of the current epoch has been trained on, so that only a rest is left."""
        return self._run.running.has_begun

    @property
    def scores(self) -> Tensor:
        """(N,) float32: every sample's latest score, NaN = never seen; a copy, on the host.

        In a distributed run, as of the last exchange: the end of an epoch or `synchronize`.
        Under `sharded=True` (n,), of the samples rank, rank + world_size, ... that this rank owns.
        """
        self._run.running.flush()
        return torch.from_numpy(self._run.planner.scores.values.copy())

    @property
    def history(self) -> list[EpochRecord]:
        """One record per finished epoch; in one process also of one whose loop has been left."""
        self._run.settle()
        return list(self._run.history)

    @property
    def saved_fraction(self) -> float:
        """Fraction of sample passes that the finished epochs did not take, in [0, 1].

        Of what was trained and not of what was planned: batches that a loop left out count.
        """
        return saved_by(self.history)

    @property
    def progress(self) -> float:
        """How far the run has come, in [0, 1], for schedules to follow.

        Finished epochs plus the part of the current, by their number, as in the paper. With
        `budget=`, where the size of every epoch is known, by their sizes: it then rises by as much
        with every sample, and a schedule that follows it is one over `total_steps`.
        """
        self._run.settle()
        return self._run.progress

    @property
    def fractional_epoch(self) -> float:
        """Finished epochs plus the part of the current that is done, 0 to num_epochs."""
        return self._run.fractional_epoch

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch that is trained on is the last of its epoch, before `update` and after.

        For loops that step, validate or save at an epoch's end:
        `if (i + 1) % accumulate == 0 or pruner.is_last_batch: optimizer.step()`. Before `update`
        it is False in loops that read ahead, which cannot be told apart from one batch earlier.
        """
        return self._run.loops.is_on_last(self._run.running.position)

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
        accumulate = check_int("accumulate", accumulate, at_least=1)
        settings, world = self._settings, self._run.world()
        sizes = self._run.sizes(self.batch_size or batch_size, world)
        if sizes is None:
            if settings.own_sampler:
                raise ValueError(
                    "total_steps does not know how many samples your own sampler= will yield; "
                    "count them, leave sampler= away, or pass budget="
                )
            if settings.pruned and not isinstance(self.policy, FullData):
                raise ValueError(
                    "the number of steps depends on the losses that will come; pass budget= (such "
                    "as budget=0.7: 70% of the sample passes of the full run) to fix it "
                    "beforehand, or let schedules follow pruner.progress (see infobatch.schedule)"
                )
            sizes = [self.num_samples] * self.num_epochs
        on_rank = [-(-size // world.size) for size in sizes]
        batches = [n // batch_size if drop_last else -(-n // batch_size) for n in on_rank]
        return sum(-(-n // accumulate) for n in batches)

    def coming_weights(self, count: int) -> Tensor:
        """(count,) float64, on the host: the weights of the next samples, before their losses.

        For losses that are weighted by hand, as under `torch.func`, and for hosts that must know
        beforehand which samples are padding of a distributed run (weight 0). Fewer at an epoch's
        end. `update` has to be called with the losses all the same.
        """
        if self._sampler.is_paused:
            return torch.ones(count, dtype=torch.float64)
        share, batch = self._run.coming(count)
        if batch.ids is None:
            return torch.from_numpy(share.weights(batch.start, min(batch.stop, len(share))))
        return torch.from_numpy(share.plan.selection.weights_of(batch.ids))

    @property
    def headroom(self) -> float:
        """How much the best choice of samples could gain, by the last epoch's scores; in [0, 1].

        1 - mean(b)^2 / mean(b^2), where b bounds the norm of a sample's gradient (`Policy.bounds`):
        the part of the gradients' second moment that sampling in proportion to b would remove.
        Below 0.05 no choice of samples can pay, and training for fewer epochs does as well. NaN
        before the first epoch has ended. `history` has it for each epoch, beside the rank
        correlation of the scores with those before, which tells whether they last.
        """
        return self.history[-1].headroom if self.history else float("nan")

    def metrics(self) -> dict[str, float]:
        """Of the last finished epoch, by the names under which the integrations log it.

        `infobatch/saved_fraction` (of the whole run so far), `infobatch/kept_fraction`,
        `infobatch/mean_weight`, and where there are such `infobatch/threshold`,
        `infobatch/headroom` and `infobatch/rank_correlation`. Empty before.
        """
        return metrics_of(self.history)

    def summary(self) -> str:
        """One line: what has been saved so far, and whether choosing samples can pay."""
        return summary_of(self.history, self.num_epochs)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_samples} samples, {self.policy!r}, "
            f"epoch {self._run.running.epoch} of {self.num_epochs})"
        )

    # ------------------------------------------------------------------ state

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
        stands = self._run.snapshot()
        if stands is None:
            raise StateError(
                "some losses of this rank are not known to the other ranks yet; call "
                "pruner.synchronize() on every rank, then state_dict() on any. Between epochs "
                "nothing is needed"
            )
        return stands.pack(self._settings.as_dict())

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
        samples, settings = self._run.samples_now, self._settings.as_dict()
        columns = tuple(self.policy.columns)
        if self.sharded and not isinstance(state, Mapping) and isinstance(state, Iterable):
            saved = merge(state, settings, samples, columns)
        else:
            saved = Snapshot.unpack(state, settings, columns)
        if saved.samples != samples:
            raise StateError(
                f"the state is that of rank {saved.samples.first} of {saved.samples.step}, this is "
                f"rank {samples.first} of {samples.step}; pass the states of all ranks, as a list "
                "or a generator"
            )
        self._run.restore(saved)

    def __copy__(self) -> DataPruner:
        return copy.deepcopy(self)  # sampler and scores belong to one pruner

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handle=handle(self))
