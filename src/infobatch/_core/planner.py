"""Planner: from the scores, the policy and the seed to the plan of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch._core.ahead import Ahead
from infobatch._core.plan import EpochPlan, IndexArray, Rows, rest_rng, selection_rng
from infobatch._core.policy import Policy, Request, Visits, new_memory
from infobatch._core.scores import FloatArray, ScoreTable
from infobatch._core.selection import Selection
from infobatch._core.whole_batches import Batches, to_whole_batches
from infobatch.errors import PolicyError, SamplerError

AddUp = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Adds sums over samples to those of the parts of the data set that this process does not see."""


@dataclass(frozen=True)
class Size:
    """How large an epoch is to be.

    Attributes:
        keep: exactly so many samples, all in a full epoch; None: no budget says it.
        batch: round what the policy likes to batches of so many samples; None: do not.
    """

    keep: int | None = None
    batch: int | None = None


class Planner:
    """Holds the scores and what the policy remembers, and plans any epoch from them.

    Attributes:
        policy: decides what a pruned epoch keeps.
        num_epochs: of the run.
        pruned: the epochs that the policy is asked for; the others use the full data.
        seed: of orders and of the policy's draws.
        order_source: the user's own sampler, if there is one.
        samples: which samples the rows of `scores` are.
        scores: the table of their scores.
        memory: what the policy remembers of them, by column (n,); empty for most.
        ahead: makes the next epoch's order beforehand.
    """

    def __init__(
        self,
        policy: Policy,
        num_epochs: int,
        pruned: range,
        seed: int,
        *,
        score_ema: float = 0.0,
        order_source: Iterable[int] | None = None,
    ) -> None:
        self.policy, self.num_epochs, self.pruned = policy, num_epochs, pruned
        self.seed, self.order_source = seed, order_source
        self._score_ema, self.ahead = score_ema, Ahead()
        self._remembers = bool(policy.columns)

    def start(self, samples: Rows) -> None:
        """Begin with samples of which nothing is known yet."""
        self.samples = samples
        self.scores = ScoreTable(len(samples), ema=self._score_ema)
        self.memory = new_memory(self.policy.columns, len(samples))

    def restore(self, samples: Rows, scores: FloatArray, memory: dict[str, FloatArray]) -> None:
        """Go on with the scores (n,) and the memory of a saved state."""
        self.start(samples)
        self.scores.values, self.memory = scores, memory

    def record(
        self,
        rows: NDArray[np.integer[Any]],
        scores: FloatArray,
        batches: list[int],
        *,
        trained: bool = True,
    ) -> None:
        """Take in the newest scores (M,) of some rows, in the order in which they came."""
        self.scores.record(rows, scores)
        if self._remembers and len(rows):
            self.policy.remember(self.memory, Visits(rows, scores, batches, trained))

    def plan(self, epoch: int, size: Size, add_up: AddUp | None = None) -> EpochPlan:
        """Plan an epoch.

        Args:
            epoch: 0-based; one past the end of the run is a full one.
            size: how many samples a pruned epoch keeps.
            add_up: given where `samples` are a part of the data set.

        Raises:
            PolicyError, SamplerError: the policy or the user's sampler gave something unusable.
        """
        order, own_order = self._unpruned_order(epoch), self.order_source is not None
        repeats = own_order and not is_permutation(order, len(self.samples))
        if repeats and size.keep is not None:
            raise SamplerError(
                f"budget= needs a sampler that yields each of the {len(self.samples)} samples "
                f"once, got {len(order)} of which {len(np.unique(order))} are different; to train "
                "on a part of the data, build loader and pruner with torch.utils.data.Subset"
            )
        selection = self._select(epoch, Size(size.keep) if repeats else size, add_up)
        plan = EpochPlan.build(epoch, selection, order, samples=self.samples, own_order=own_order)
        if repeats and size.batch is not None and size.batch < len(plan) < plan.total:
            rng = rest_rng(self.seed, epoch, self.samples.first)
            plan = plan.in_whole_batches(size.batch, rng)
        if len(plan) == 0:
            raise PolicyError(
                f"{self.policy!r} keeps none of the samples of epoch {epoch}; a policy must keep "
                "at least one"
            )
        if size.keep is not None and len(plan) != size.keep:
            raise PolicyError(
                f"{self.policy!r} was to keep {size.keep} samples in epoch {epoch}, but kept "
                f"{len(plan)}"
            )
        return plan

    def order_ahead(self, epoch: int) -> None:
        """Begin with the order of an epoch, which needs no scores of the one before."""
        if self.order_source is None and epoch < self.num_epochs:
            self.ahead.start(self.samples, self.seed, epoch)

    def _select(self, epoch: int, size: Size, add_up: AddUp | None) -> Selection:
        if epoch not in self.pruned:
            return Selection.full(len(self.samples))
        summary = None
        if add_up is not None and size.keep is None:
            own = self.policy.summarise(self.scores.values)
            summary = None if own is None else add_up(own)
        selection = self._ask(epoch, size.keep, summary)
        if size.keep is not None or size.batch is None:
            return selection
        if self.policy.takes_budget and summary is None:  # told, it gives whole batches by itself
            kept = selection.num_kept
            if kept == len(selection):
                return selection
            whole = Batches(size.batch, self.policy.min_keep(len(selection)))
            keep = whole.nearest(kept, len(selection))
            if keep != kept:
                selection = self._ask(epoch, keep, None)
        rng = rest_rng(self.seed, epoch, self.samples.first)
        return to_whole_batches(selection, size.batch, rng)

    def _ask(self, epoch: int, keep: int | None, summary: NDArray[np.float64] | None) -> Selection:
        """Ask the policy; its generator begins anew each time."""
        scores = self.scores.values.view()
        scores.flags.writeable = False
        rng = selection_rng(self.seed, epoch, self.samples.first)
        selection = self.policy.select(
            Request(scores, epoch, self.num_epochs, rng, keep, self.memory, summary)
        )
        if not isinstance(selection, Selection) or len(selection) != len(scores):
            size = f" of {len(selection)} samples" if isinstance(selection, Selection) else ""
            raise PolicyError(
                f"{type(self.policy).__name__} must return a Selection of all {len(scores)} "
                f"samples, got {type(selection).__name__}{size}"
            )
        return selection

    def _unpruned_order(self, epoch: int) -> IndexArray:
        if self.order_source is None:
            return self.ahead.order(self.samples, self.seed, epoch)
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
        num_samples = len(self.samples)
        if len(order) == 0 or order.min() < 0 or order.max() >= num_samples:
            span = f"{order.min()} to {order.max()}" if len(order) else "nothing"
            raise SamplerError(
                f"the sampler must yield indices 0 to {num_samples - 1}, got {span}; it must "
                "be one that can be iterated once per epoch"
            )
        return order


def is_permutation(order: IndexArray, num_samples: int) -> bool:
    """Whether every sample stands in an order once."""
    return len(order) == num_samples and int(np.bincount(order).max()) == 1
