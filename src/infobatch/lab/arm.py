"""What an arm is: a way to choose what to train on, given the same budget of epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infobatch import DataPruner


@dataclass(frozen=True)
class ArmContext:
    """What an arm may know before its run.

    Attributes:
        dataset_size: samples in the training set.
        epochs: epochs of the full-data run.
        prune_ratio, delta: InfoBatch's settings in this comparison.
        seed: the run's seed; runs that share it share the permutation of every epoch.
        infobatch_samples: sample passes of the `infobatch` run with this seed; None unless the
            arm asks for it with `equal_cost`.
    """

    dataset_size: int
    epochs: int
    prune_ratio: float
    delta: float
    seed: int
    infobatch_samples: int | None = None

    @property
    def full_samples(self) -> int:
        """Sample passes of the full-data run."""
        return self.dataset_size * self.epochs

    @property
    def equal_cost_samples(self) -> int:
        """`infobatch_samples`, for arms that declared that they need it."""
        assert self.infobatch_samples is not None
        return self.infobatch_samples


@dataclass(frozen=True)
class ArmRun:
    """A pruner, and the number of epochs that it was built for."""

    epochs: int
    pruner: DataPruner


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: what `--arms` takes.
        description: one line for people.
        start: the pruner and the epochs of one run.
        equal_cost: the arm spends what the `infobatch` run of the same seed has spent, and so
            has to run after it.
    """

    name: str
    description: str
    start: Callable[[ArmContext], ArmRun]
    equal_cost: bool = False
