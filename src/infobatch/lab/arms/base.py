"""What an arm is: a way to choose what to train on, at a given cost or at its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infobatch import BatchPruner, DataPruner
from infobatch._core.budget import RatioSchedule, pruned_epochs
from infobatch.lab.coresets import Coreset
from infobatch.lab.errors import LabError
from infobatch.policies import Policy

WARMUP_EPOCHS = 1
FORWARD_COST = 1 / 3
"""Of a sample that is passed forward and not back, in sample passes.

A backward pass takes about twice the operations of a forward pass: one product for the gradient of
the inputs and one for that of the weights.
"""


@dataclass(frozen=True)
class ArmContext:
    """What an arm may know before its run.

    Attributes:
        epochs: of the full-data run.
        prune_ratio, delta: InfoBatch's settings in this comparison.
        seed: runs that share it share the permutation of every epoch.
        labels: (N,) classes of the training set; None where its samples have none.
        cost: what the run is to cost, as a fraction of the full-data run; None: as it likes.
    """

    dataset_size: int
    epochs: int
    prune_ratio: float
    delta: float
    seed: int
    labels: NDArray[np.int64] | None = field(repr=False)
    cost: float | None = None

    @property
    def told_cost(self) -> float:
        """`cost`, for arms that have to be told."""
        assert self.cost is not None
        return self.cost

    def pruned(self, *, delta: float | None = None, warmup_epochs: int = WARMUP_EPOCHS) -> range:
        return pruned_epochs(self.epochs, self.delta if delta is None else delta, warmup_epochs)

    def part_of_pruned_epochs(self, pruned: range) -> float:
        """What a pruned epoch may cost, as a fraction of a full one, if all others are full."""
        full = self.epochs - len(pruned)
        return (self.told_cost * self.epochs - full) / max(1, len(pruned))

    def refuse(self, arm: str, least: float) -> LabError:
        """The error for a cost that an arm cannot meet."""
        return LabError(
            f"{arm} cannot cost {self.told_cost:g} of the full run here, only {least:.3f} to 1; "
            "use another --cost, or leave the arm away"
        )


@dataclass(frozen=True)
class InBatch:
    """Choosing a batch from a larger pool, after a forward pass over all of it.

    Attributes:
        keep_ratio: fraction of a pool that is trained on; its size makes that a batch.
        epochs: in which it is on.
        by_error: rank by the norm of the gradient at the logits, not by the loss.
    """

    pruner: BatchPruner
    keep_ratio: float
    epochs: range
    by_error: bool = False


@dataclass(frozen=True)
class Proxy:
    """A short run on full data, after which a coreset is chosen for the run itself.

    Attributes:
        epochs: of the proxy; 0 where the method looks at nothing.
        method: name in `infobatch.lab.coresets.METHODS`.
        pruner: builds the pruner of the run itself.
    """

    epochs: int
    method: str
    keep: int
    pruner: Callable[[Coreset], DataPruner]


@dataclass(frozen=True)
class ArmRun:
    """How one run goes.

    Attributes:
        pruner: built for so many epochs; with a proxy, a stand-in until the coreset is there.
        refresh: after each epoch, pass forward what was left out, for fresh scores.
        in_batch: choose within batches besides.
        proxy: what comes first.
        batch_mean: the loss exists only as the mean of a batch.
    """

    epochs: int
    pruner: DataPruner
    refresh: bool = False
    in_batch: InBatch | None = None
    proxy: Proxy | None = None
    batch_mean: bool = False


CostRule = Literal["own", "told", "either"]


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: what `--arms` takes.
        description: one line for people.
        start: how one run goes.
        cost: "told": matches `--cost`, else the `infobatch` run of the same seed; "own": ignores
            `--cost`; "either": matches `--cost` where it is given.
        family: a name that `--arms` takes for several arms.
        settings: what may be written behind the name, as in `name+power=0.5+floor=0.2`, with
            defaults: keyword arguments of `start`, numbers or words.
    """

    name: str
    description: str
    start: Callable[..., ArmRun]
    cost: CostRule = "told"
    family: str = ""
    settings: Mapping[str, float | str] = field(default_factory=dict)

    def with_settings(self, words: Sequence[str]) -> Arm:
        """The arm with other settings, each `name=value`; they become part of its name."""
        values: dict[str, float | str] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise LabError(f"{self.name} has no setting {name!r}; it has: {known}")
            try:
                values[name] = text if isinstance(self.settings[name], str) else float(text)
            except ValueError as error:
                raise LabError(f"{name} of {self.name} must be a number, got {text!r}") from error
        named = "+".join([self.name, *words])
        return replace(self, name=named, start=partial(self.start, **values), settings={})


def exact_run(
    context: ArmContext,
    policy: Policy,
    name: str,
    *,
    delta: float | None = None,
    warmup_epochs: int = WARMUP_EPOCHS,
    refresh: bool = False,
    batch_mean: bool = False,
    score_ema: float = 0.0,
    groups: NDArray[np.int64] | None = None,
    ratio_schedule: RatioSchedule = "constant",
) -> ArmRun:
    """A policy that is told how many samples to keep, so that the run costs what it should.

    `delta` is where pruning ends, by default the comparison's; with `refresh` what is left out is
    passed forward, and paid for; `batch_mean` as in `ArmRun`, the others as in `DataPruner`.
    """
    delta = context.delta if delta is None else delta
    pruned = context.pruned(delta=delta, warmup_epochs=warmup_epochs)
    part = context.part_of_pruned_epochs(pruned)
    full = context.epochs - len(pruned)
    if refresh:  # part = trained + FORWARD_COST * (1 - trained)
        part = (part - FORWARD_COST) / (1 - FORWARD_COST)
    budget = (full + len(pruned) * part) / context.epochs
    least = (full + len(pruned) * (FORWARD_COST if refresh else 0.0)) / context.epochs
    if not 0 < budget <= 1:
        raise context.refuse(name, least)
    try:
        pruner = DataPruner(
            context.dataset_size,
            context.epochs,
            policy,
            delta=delta,
            warmup_epochs=warmup_epochs,
            seed=context.seed,
            budget=budget,
            score_ema=score_ema,
            groups=groups,
            ratio_schedule=ratio_schedule,
        )
    except ValueError as error:
        raise LabError(f"{name} at cost {context.told_cost:g}: {error}") from error
    return ArmRun(context.epochs, pruner, refresh=refresh, batch_mean=batch_mean)


def exact_arm(
    name: str,
    description: str,
    policy: Callable[[ArmContext], Policy],
    *,
    family: str,
    delta: float | None = None,
    warmup_epochs: int = WARMUP_EPOCHS,
    refresh: bool = False,
) -> Arm:
    """An arm that is one policy, told how many samples to keep; see `exact_run`."""

    def start(context: ArmContext) -> ArmRun:
        return exact_run(
            context,
            policy(context),
            name,
            delta=delta,
            warmup_epochs=warmup_epochs,
            refresh=refresh,
        )

    return Arm(name, description, start, family=family)
