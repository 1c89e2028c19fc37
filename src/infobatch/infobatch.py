"""InfoBatch: a `DataPruner` that runs the paper's rule, and is always unbiased."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import SupportsIndex

from numpy.typing import ArrayLike

from infobatch._core.budget import RatioSchedule
from infobatch._core.policy import Policy
from infobatch.policies.infobatch import (
    BudgetThreshold,
    MeanThreshold,
    QuantileThresholds,
    normalise_quantiles,
)
from infobatch.pruner import DataPruner

_PRUNE_RATIO = 0.5  # the paper's


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
        prune_ratio: r in [0, 1), the probability with which a sample below the mean is left out
            of an epoch. 0.5 if neither it nor `quantiles` nor `budget` is given; 0 is plain
            shuffled training.
        quantiles: instead of the mean threshold, (upper quantile, keep ratio) pairs of score
            ranges; `infobatch.policies.PAPER_QUANTILES` is what the paper's 40% results used.
        delta: pruning ends after this fraction of the epochs, in [0, 1].
        budget: instead of a prune ratio, what the run may cost: 0.6 is 60% of the sample passes of
            the full run, warm-up and annealing included. It is met within half a batch. The prune
            ratio of each epoch is solved for. Where too few samples lie below the mean, the
            threshold is higher (`infobatch.policies.BudgetThreshold`). With `quantiles`, their
            prune ratios are scaled alike. `DataPruner(dataset, num_epochs, budget=...)` runs
            another policy, biased and often better at equal cost.
        ratio_schedule, batch_size, warmup_epochs, score_ema, groups, seed, sampler,
            process_group, rank, world_size, sharded: see `DataPruner`.

    Raises:
        TypeError, ValueError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        dataset: Sized | SupportsIndex,
        num_epochs: int,
        prune_ratio: float | None = None,
        *,
        quantiles: Mapping[float, float] | Iterable[tuple[float, float]] | None = None,
        delta: float = 0.875,
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
        policy: Policy = MeanThreshold(_PRUNE_RATIO if prune_ratio is None else prune_ratio)
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
            budget=budget,
            ratio_schedule=ratio_schedule,
            batch_size=batch_size,
            warmup_epochs=warmup_epochs,
            score_ema=score_ema,
            groups=groups,
            seed=seed,
            sampler=sampler,
            process_group=process_group,
            rank=rank,
            world_size=world_size,
            sharded=sharded,
        )
