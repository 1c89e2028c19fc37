"""Sharded scores: each rank keeps those of its own samples, and trains on no others.

For data sets whose scores do not fit into one process. A rank owns the samples rank,
rank + world_size, ...; ranks add up a few sums where they would otherwise see all scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infobatch._core.headroom import Headroom
from infobatch._core.history import LossTally
from infobatch._core.plan import Rows
from infobatch._core.planner import AddUp, Size
from infobatch._core.scores import FloatArray
from infobatch._ranks.agreement import PLANNING, SHARING
from infobatch._ranks.share import Share
from infobatch._ranks.sharing import Running, Sharing, Totals
from infobatch._ranks.world import Ranks, World
from infobatch._settings import Settings
from infobatch.errors import DistributedError, PolicyError
from infobatch.policies.groups import has_groups


class Sharded(Sharing):
    """Each rank has the scores of its own samples, and a plan of them.

    Raises:
        TypeError, ValueError: the settings do not allow it.
    """

    is_apart = True

    def __init__(self, ranks: Ranks, settings: Settings) -> None:
        super().__init__(ranks, settings)
        policy = settings.policy
        if settings.own_sampler:
            raise ValueError(
                "sharded=True shuffles each rank's own samples, so sampler= cannot be used; use "
                "sharded=False, which plans the order of your sampler on every rank"
            )
        if has_groups(policy):
            raise TypeError(
                "sharded=True cannot keep groups, as a rank knows of its own samples only; use "
                "sharded=False"
            )
        if settings.budget is None and policy.summarise(np.empty(0, np.float32)) is None:
            raise TypeError(
                "sharded=True needs a policy with summarise (see infobatch.policies.Policy), or, "
                f"with budget=, one that can be told how many samples to keep, got {policy!r}"
            )

    def rows(self, world: World) -> Rows:
        """See `Sharing.rows`.

        Raises:
            DistributedError: there are more ranks than samples; on every rank alike.
        """
        num_samples = self.settings.num_samples
        if num_samples < world.size:
            raise DistributedError(
                f"sharded=True needs at least one sample for each rank, but there are "
                f"{num_samples} for {world.size} ranks; use sharded=False"
            )
        return Rows(world.rank, world.size, num_samples)

    def size(
        self, epoch: int, batch_size: int | None, world: World, sizes: Sequence[int] | None
    ) -> Size:
        """See `Sharing.size`.

        Raises:
            PolicyError: some rank would keep too little; on every rank alike.
        """
        if sizes is None or epoch >= len(sizes):
            return Size(None, batch_size)
        policy, num_samples = self.settings.policy, self.settings.num_samples
        for rank in range(world.size if epoch in self.settings.pruned else 0):
            keep = _part(rank, world, sizes[epoch])
            least = policy.min_keep(_part(rank, world, num_samples))
            if keep < least and world.size > 1:
                raise PolicyError(
                    f"the budget leaves {sizes[epoch]} samples in epoch {epoch}, {keep} of "
                    f"them for rank {rank}, but {policy!r} keeps at least {least} there; use "
                    "a larger budget, or sharded=False"
                )
        return Size(_part(world.rank, world, sizes[epoch]), batch_size)

    def add_up(self, running: Running, world: World) -> AddUp | None:
        """See `Sharing.add_up`."""

        def all_ranks(own: NDArray[np.float64]) -> NDArray[np.float64]:
            if world.size == 1:
                return own
            meeting = self.meet(running, PLANNING, own.nbytes)
            parts = meeting.all_gather(own, "summaries of scores")
            total: NDArray[np.float64] = np.sum([part.view(np.float64) for part in parts], axis=0)
            return total

        return all_ranks

    def talks_to_prepare(self, running: Running, sizes: Sequence[int] | None) -> bool:
        """See `Sharing.talks_to_prepare`."""
        is_pruned = running.epoch in self.settings.pruned
        return running.start > 0 or (is_pruned and sizes is None)

    def share(self, running: Running, world: World, sizes: Sequence[int] | None) -> Share:
        """See `Sharing.share`.

        Where ranks cannot know how many samples the others have, they tell each other: in pruned
        epochs without a budget, and within an epoch.
        """
        plan, size = running.plan, None
        if plan.epoch not in self.settings.pruned:
            size = self.settings.num_samples
        elif sizes is not None:
            size = sizes[plan.epoch]
        left = np.array([len(plan) - running.start], dtype=np.int64)
        if size is not None and running.start == 0 and not plan.own_order:
            counts = np.array([_part(rank, world, size) for rank in range(world.size)])
        elif world.size == 1:
            counts = left
        else:
            parts = self.meet(running, SHARING, left.nbytes).all_gather(left, "numbers of samples")
            counts = np.concatenate([part.view(np.int64) for part in parts])
        return Share.of_own_plan(plan, running.start, world.rank, counts, running.steps_before)

    def bring_together(self, running: Running, occasion: int) -> Totals:
        """The tally of the epoch becomes that of all ranks."""
        plan, tally = running.plan, running.tally
        if running.world.size == 1:
            return Totals.of(plan, running.headroom())
        own = np.array(
            [
                *(tally.trained, tally.non_finite, tally.loss_count, tally.loss_sum),
                running.plan_position - tally.trained,
                *(len(plan), plan.total, len(plan) * plan.mean_weight),
                plan.total * plan.selection.mass_left_out,
                *running.headroom().sums,
            ],
            dtype=np.float64,
        )
        parts = self.meet(running, occasion).all_gather(own)
        sums = np.sum([part.view(np.float64) for part in parts], axis=0)
        headroom, sums = Headroom(sums[9:]), sums[:9]
        trained, non_finite, loss_count, loss_sum, left, kept, total, weight, mass = sums.tolist()
        running.tally = LossTally(
            int(trained), int(non_finite), int(loss_count), loss_sum, int(left)
        )
        return Totals(int(kept), int(total), weight / kept, mass / total, headroom)

    def rescored(
        self, running: Running, rows: NDArray[np.int64], scores: FloatArray
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Each rank keeps its own."""
        return rows, scores


def _part(rank: int, world: World, size: int) -> int:
    """How many of so many samples are a rank's."""
    return len(range(rank, size, world.size))
