"""Learning-rate schedules that follow a run of changing epoch length."""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau

from infobatch._core.validation import check_int


class HasProgress(Protocol):
    """Anything that knows how far training has come, such as a `DataPruner`."""

    @property
    def progress(self) -> float:
        """In [0, 1]; 1 when the last sample of the last epoch has been trained on."""
        ...


def counts_steps(scheduler: object) -> bool:
    """Whether a scheduler counts steps, so that it has to follow progress in a pruned run.

    True for torch's, but for ReduceLROnPlateau, which waits for a metric; False for what follows
    progress already.
    """
    return isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau)


class ProgressScheduler:
    """Lets a per-step LR scheduler built for full epochs follow a pruned run.

    A pruned epoch has fewer steps, so a scheduler that counts steps would not reach its end.
    This adapter advances it by progress instead: after half the epochs, or with `budget=` half
    the sample passes, the scheduler stands at half its steps, and after the last step at the
    value of its last step, never beyond. It works with any chainable or closed-form torch
    scheduler, OneCycleLR, SequentialLR and ChainedScheduler included.

        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=num_epochs * steps_per_full_epoch)
        scheduler = ProgressScheduler(scheduler, pruner)
        ...
        optimizer.step()
        scheduler.step()

    For LambdaLR there is a shorter way: `LambdaLR(optimizer, lambda _: f(pruner.progress))`.

    Args:
        scheduler: a torch scheduler; steps that it has taken before count.
        pruner: the run's pruner, or anything with `progress`.
        total_steps: the number of steps that the scheduler was built for: num_epochs times the
            steps of a full epoch. Taken from the scheduler if it has it, as OneCycleLR does.

    Raises:
        TypeError: a scheduler that needs a metric, such as ReduceLROnPlateau.
        ValueError: `total_steps` is not given and the scheduler does not know it.
    """

    def __init__(
        self, scheduler: LRScheduler, pruner: HasProgress, *, total_steps: int | None = None
    ) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(
                "ReduceLROnPlateau steps on a metric and not on the number of steps, so it needs "
                "no ProgressScheduler: call its step(metric) once per epoch as usual"
            )
        if total_steps is None:
            total_steps = getattr(scheduler, "total_steps", None)
        if total_steps is None:
            raise ValueError(
                f"total_steps is needed: {type(scheduler).__name__} does not say for how many "
                "steps it was built; pass num_epochs * steps of a full epoch"
            )
        self.scheduler = scheduler
        self.optimizer = scheduler.optimizer
        self.total_steps = check_int("total_steps", total_steps, at_least=1)
        self._pruner = pruner
        self._done = _steps_taken(scheduler)

    def step(self) -> None:
        """Advance to where the run is; call after each `optimizer.step()`."""
        # Step k of a full run trains at the k-th value of the schedule, k = 0 .. total_steps - 1.
        reached = math.floor(self._pruner.progress * self.total_steps + 1e-6)
        target = min(reached, self.total_steps - 1)
        while self._done < target:
            self.scheduler.step()
            self._done += 1

    def get_last_lr(self) -> list[float]:
        """The learning rate of each parameter group now in force."""
        return [float(rate) for rate in self.scheduler.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """The adapter's and the wrapped scheduler's state."""
        return {"done": self._done, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scheduler.load_state_dict(state["scheduler"])
        self._done = int(state["done"])


def _steps_taken(scheduler: LRScheduler) -> int:
    """How often a scheduler has stepped; a chain, which counts none, as often as its first part."""
    if isinstance(scheduler, ChainedScheduler):
        return _steps_taken(scheduler._schedulers[0])
    return max(0, int(scheduler.last_epoch))
