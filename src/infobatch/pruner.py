"""DataPruner, the one stateful object; and InfoBatch, which is it with the paper's policy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infobatch.buffer import LossBuffer
from infobatch.distributed import require_one_process
from infobatch.errors import (
    EpochError,
    LossError,
    MisalignedUpdateError,
    NonFiniteLossWarning,
    PolicyError,
    SamplerError,
)
from infobatch.history import EpochRecord, LossTally
from infobatch.plan import EpochPlan, selection_rng, shuffled
from infobatch.policies import MeanThreshold, Policy, QuantileThresholds, Selection
from infobatch.policies.infobatch import normalise_quantiles
from infobatch.rescale import Reduction, check_indices, check_losses, rescale
from infobatch.sampler import Ledger, LoaderFacts, PlanSampler
from infobatch.schedule import pruned_epochs
from infobatch.scores import ScoreTable
from infobatch.state import Snapshot, describe_policy
from infobatch.validation import check_fraction, check_int


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
            has no score it is kept in any case.
        score_ema: a in [0, 1): a sample's score is a * score + (1 - a) * loss. 0: its last loss.

    Raises:
        TypeError, ValueError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        policy: Policy,
        *,
        delta: float = 0.875,
        seed: int = 0,
        sampler: Iterable[int] | None = None,
        warmup_epochs: int = 1,
        score_ema: float = 0.0,
    ) -> None:
        self.num_samples = _length(dataset)
        self.num_epochs = check_int("num_epochs", num_epochs, at_least=1)
        if not isinstance(policy, Policy) or isinstance(policy, type):
            raise TypeError(
                "policy must be an object with a method select(scores, epoch, rng), such as "
                f"infobatch.policies.MeanThreshold(prune_ratio=0.5), got {policy!r}"
            )
        self.policy = policy
        self.delta = check_fraction("delta", delta)
        self.seed = check_int("seed", seed, at_least=0, at_most=2**63 - 1)
        self.warmup_epochs = check_int("warmup_epochs", warmup_epochs, at_least=0)
        self.score_ema = check_fraction("score_ema", score_ema, below_one=True)
        self.sampler = PlanSampler(self._begin, self._remaining, self._set_epoch)
        self._order_source = _checked_sampler(sampler)
        self._pruned_epochs = pruned_epochs(self.num_epochs, self.delta, self.warmup_epochs)
        self._table = ScoreTable(self.num_samples, ema=self.score_ema)
        self._history: list[EpochRecord] = []
        self._epoch = 0
        self._plan: EpochPlan | None = None
        self._start = 0  # plan position at which an iteration begins: above 0 after a resume
        self._position = 0  # plan position of the next loss
        self._tally = LossTally()
        self._buffer: LossBuffer | None = None
        self._ledger: Ledger | None = None  # of the current epoch, from its first drawing on
        self._earlier: Ledger | None = None  # of the epoch before
        self._superseded: tuple[Ledger, int] | None = None

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
                Non-finite ones are counted, warned about once per epoch, and their samples kept.
            scores: (B,) what to rank the samples by, if not by their losses.
            indices: (B,) the samples' indices in the data set, where a loader cannot keep the
                sampler's order or forms batches of its own. Not needed otherwise; it costs a
                look-up and, on an accelerator, a synchronisation.
            reduction: "mean" gives sum(weight * loss) / B, "sum" the sum, "none" the rescaled
                losses (B,).

        Returns:
            A new tensor of the losses' dtype and device, with exact gradients.

        Raises:
            LossError: `losses` or `scores` are not (B,) floats; the message says what to write.
            MisalignedUpdateError: the losses are not those of the next planned samples.
            EpochError: all `num_epochs` epochs are over.
        """
        check_losses("losses", losses)
        if scores is not None:
            check_losses("scores", scores)
            if len(scores) != len(losses):
                raise LossError(f"scores must be one per loss: got {len(scores)} for {len(losses)}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
        if indices is None:
            weights = self._take_in_order(losses, scores)
        else:
            weights = self._take_by_index(losses, scores, indices)
        result = rescale(losses, weights, reduction)
        self._advance(losses.shape[0])
        return result

    def skip(self, batch_size: int) -> None:
        """Say that the next batch is left out on purpose: its samples keep their scores.

        Args:
            batch_size: number of samples in that batch.

        Raises:
            MisalignedUpdateError: no such batch is due.
        """
        batch_size = check_int("batch_size", batch_size, at_least=1)
        self._check_due(batch_size)
        self._advance(batch_size)

    def _take_in_order(self, losses: Tensor, scores: Tensor | None) -> Tensor | None:
        self._check_due(losses.shape[0])
        buffer = self._buffer
        has_scores = scores is not None
        if buffer is None or not buffer.takes(self._position, losses, has_scores=has_scores):
            self._flush()
            plan = self.plan
            buffer = LossBuffer(plan, self._position, losses, has_scores=has_scores)
            self._buffer = buffer
        return buffer.put(losses, scores)

    def _take_by_index(
        self, losses: Tensor, scores: Tensor | None, indices: Tensor | Sequence[int]
    ) -> Tensor:
        self._check_not_over()
        rows = check_indices(indices, len(losses), self.num_samples)
        plan = self.plan
        if self._position + len(rows) > len(plan):
            raise MisalignedUpdateError(
                f"update got {len(rows)} more losses at position {self._position} of an epoch of "
                f"{len(plan)} samples; call it once per batch"
            )
        weights = plan.selection.weights_of(rows)
        if not bool((weights > 0).all()):
            pruned = rows[weights == 0][:5].tolist()
            raise MisalignedUpdateError(
                f"samples {pruned} are not in the plan of epoch {self._epoch}; draw batches from "
                "this pruner's sampler, and pass the data set's own indices"
            )
        self._flush()
        values = losses.detach().float().cpu().numpy()
        ranked = values if scores is None else scores.detach().float().cpu().numpy()
        self._table.record(rows, ranked)
        self._tally.add(values, ranked, [len(rows)])
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
        done = self._position == len(self.plan)
        if done or (self._ledger is not None and self._ledger.is_complete(self._position)):
            self._commit()

    # ------------------------------------------------------------------ epochs

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch: `epoch`, `indices`, `weights`, `threshold`, `len`."""
        if self._plan is None:
            plan = EpochPlan.build(self._epoch, self._select(), self._unpruned_order())
            if len(plan) == 0:
                raise PolicyError(
                    f"{self.policy!r} keeps none of the samples of epoch {self._epoch}; a policy "
                    "must keep at least one"
                )
            self._plan = plan
        return self._plan

    def _select(self) -> Selection:
        if self._epoch not in self._pruned_epochs:
            return Selection.full(self.num_samples)
        scores = self._table.values.view()
        scores.flags.writeable = False
        selection = self.policy.select(scores, self._epoch, selection_rng(self.seed, self._epoch))
        if not isinstance(selection, Selection) or len(selection) != self.num_samples:
            size = f" of {len(selection)} samples" if isinstance(selection, Selection) else ""
            raise PolicyError(
                f"{type(self.policy).__name__}.select must return a Selection of all "
                f"{self.num_samples} samples, got {type(selection).__name__}{size}"
            )
        return selection

    def _unpruned_order(self) -> NDArray[np.int64]:
        if self._order_source is None:
            return shuffled(self.num_samples, self.seed, self._epoch)
        set_epoch = getattr(self._order_source, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self._epoch)
        order = np.fromiter(self._order_source, dtype=np.int64)
        if len(order) == 0 or order.min() < 0 or order.max() >= self.num_samples:
            span = f"{order.min()} to {order.max()}" if len(order) else "nothing"
            raise SamplerError(
                f"the sampler must yield indices 0 to {self.num_samples - 1}, got {span}; it must "
                "be one that can be iterated once per epoch"
            )
        return order

    def _begin(self, loader: LoaderFacts) -> Iterator[int]:
        """Start the epoch that is due, or start it again; called by the sampler."""
        require_one_process()
        if self._position > self._start:
            self._end_early()
        ledger = Ledger(len(self.plan), self._start, loader)
        if self._start > 0 and ledger.is_complete(self._start):
            self._commit()  # resumed where only a batch that drop_last drops was left
            ledger = Ledger(len(self.plan), 0, loader)
        ledger.check_drawable(self._start)
        earlier = self._ledger or self._earlier
        if earlier is not None:
            self._superseded = (earlier, earlier.handed_out)
        self._ledger = ledger
        return ledger.draw(self.plan.order)

    def _remaining(self) -> int:
        """Number of samples that the next iteration of the sampler hands out."""
        return len(self.plan) - self._start

    def _set_epoch(self, epoch: int) -> None:
        epoch = check_int("epoch", epoch, at_least=0)
        if epoch == self._epoch + 1 and self._position > 0:
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

    def _commit(self) -> None:
        """Close the current epoch: its scores count from now on."""
        self._flush()
        plan, tally = self.plan, self._tally
        self._history.append(
            EpochRecord(
                epoch=self._epoch,
                kept=len(plan),
                total=plan.total,
                trained=tally.trained,
                threshold=plan.threshold,
                mean_loss=tally.mean_loss,
                mean_weight=plan.mean_weight,
                non_finite=tally.non_finite,
            )
        )
        self._epoch += 1
        self._plan = None
        self._start = self._position = 0
        self._earlier, self._ledger = self._ledger, None  # a loss more than planned is an error
        self._tally = LossTally()
        if tally.non_finite:
            warnings.warn(
                f"epoch {plan.epoch}: {tally.non_finite} of {tally.trained} samples had a NaN or "
                "infinite loss; they are kept in the next epoch and leave the threshold untouched",
                NonFiniteLossWarning,
                stacklevel=4,
            )

    def _flush(self) -> None:
        if self._buffer is not None:
            self._buffer.flush(self._table, self._tally)
            self._buffer = None

    # ------------------------------------------------------------------ what can be read

    @property
    def epoch(self) -> int:
        """The epoch that is running or about to run, 0-based; `num_epochs` after the last."""
        return self._epoch

    @property
    def scores(self) -> Tensor:
        """(N,) float32: every sample's latest score, NaN = never seen; a copy, on the host."""
        self._flush()
        return torch.from_numpy(self._table.values.copy())

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
        """How far the run has come, in [0, 1]: finished epochs plus the part of the current."""
        if self._position == 0:
            return self._epoch / self.num_epochs
        planned = len(self.plan) if self._ledger is None else self._ledger.deliverable
        return (self._epoch + self._position / planned) / self.num_epochs

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
        return {
            "num_samples": self.num_samples,
            "num_epochs": self.num_epochs,
            "policy": describe_policy(self.policy),
            "delta": self.delta,
            "seed": self.seed,
            "own_sampler": self._order_source is not None,
            "warmup_epochs": self.warmup_epochs,
            "score_ema": self.score_ema,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here: plain values and tensors on the host.

        Can be taken at any time, also within an epoch. `torch.save` it with your checkpoint;
        `torch.load(..., weights_only=True)` reads it back.
        """
        self._flush()
        snapshot = Snapshot(
            epoch=self._epoch,
            position=self._position,
            scores=self._table.values,
            plan=self._plan,
            tally=self._tally,
            history=self._history,
        )
        return snapshot.pack(self._settings())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: the same batches, weights and scores as never having stopped.

        Within an epoch the next iteration of the sampler goes on with the first sample whose
        loss had not come when the state was saved.

        Args:
            state: what `state_dict` returned, of a pruner with the same settings.

        Raises:
            StateError: it does not fit; the reason is named, and nothing has been changed.
        """
        saved = Snapshot.unpack(state, self._settings())
        self._table.values = saved.scores
        self._epoch, self._plan = saved.epoch, saved.plan
        self._start = self._position = saved.position
        self._tally, self._history = saved.tally, saved.history
        self._buffer = self._ledger = self._earlier = self._superseded = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy stands where the original stands, but no loader is drawing from it.
        self._flush()
        members = self.__dict__.copy()
        members.update(_ledger=None, _earlier=None, _superseded=None, _start=self._position)
        return members


class InfoBatch(DataPruner):
    """Unbiased dynamic data pruning: train on 30 to 40% fewer samples at the same accuracy.

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
        seed, sampler, warmup_epochs, score_ema: see `DataPruner`.

    Raises:
        TypeError, ValueError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        prune_ratio: float = 0.5,
        delta: float = 0.875,
        *,
        quantiles: Mapping[float, float] | Iterable[tuple[float, float]] | None = None,
        seed: int = 0,
        sampler: Iterable[int] | None = None,
        warmup_epochs: int = 1,
        score_ema: float = 0.0,
    ) -> None:
        policy: Policy = MeanThreshold(prune_ratio)
        if quantiles is not None:
            policy = QuantileThresholds(normalise_quantiles(quantiles))
        super().__init__(
            dataset,
            num_epochs,
            policy,
            delta=delta,
            seed=seed,
            sampler=sampler,
            warmup_epochs=warmup_epochs,
            score_ema=score_ema,
        )


def _checked_sampler(sampler: Iterable[int] | None) -> Iterable[int] | None:
    if sampler is not None and not (
        hasattr(sampler, "__iter__") or hasattr(sampler, "__getitem__")
    ):
        raise TypeError(
            "sampler must yield the indices of an epoch each time it is iterated, such as a "
            f"torch.utils.data.Sampler, got {sampler!r}"
        )
    return sampler


def _length(dataset: Sized | SupportsIndex) -> int:
    try:
        size = len(dataset)  # type: ignore[arg-type]  # the except clause is the check
    except TypeError:
        if not isinstance(dataset, SupportsIndex):
            raise TypeError(
                "dataset must have a length, or be the length itself, got "
                f"{type(dataset).__name__}; samples of a stream without a length cannot be planned"
            ) from None
        size = check_int("dataset", dataset, at_least=1)
    if size < 1:
        raise ValueError("dataset must have at least one sample, got an empty one")
    return size
