"""When pruning is on, and learning-rate schedules that follow a run of changing epoch length."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau

from infobatch._core.validation import check_fraction, check_int


def pruned_epochs(num_epochs: int, delta: float, warmup_epochs: int) -> range:
    """The epochs in which pruning is on: warmup_epochs <= t < delta * num_epochs, 0-based.

    The last (1 - delta) of the run trains on the full data, to anneal what pruning has changed
    in the gradient's variance (Qin et al. 2024, arXiv 2303.04947, section 3.4). `delta` is read
    as the decimal number that was written: 0.1 * 30 is 3 here, and not 3.0000000000000004.

    An epoch is pruned or it is not, so with a delta of 0.875 a run of fewer than 8 epochs is pruned
    to its end. Making its last epoch whole costs more than it gains: docs/research-log.md, step 12.
    A delta of (num_epochs - 1) / num_epochs does it.
    """
    end = math.ceil(Fraction(delta).limit_denominator(1_000_000) * num_epochs)
    return range(min(warmup_epochs, end), end)


RatioSchedule = Literal["constant", "rising", "falling", "cosine"] | Callable[[float], float]
"""How a budget's saving is spread over the pruned epochs; see `epoch_sizes`."""

_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "rising": lambda u: u,
    "falling": lambda u: 1.0 - u,
    "cosine": lambda u: math.cos(math.pi * u / 2),
}


def epoch_sizes(
    num_samples: int,
    num_epochs: int,
    pruned: range,
    budget: float,
    *,
    min_keep: int = 1,
    ratio_schedule: RatioSchedule = "constant",
) -> list[int]:
    """How many samples each epoch keeps, so that the run passes round(budget * epochs * N).

    Epochs outside `pruned` keep all. The saving is spread over the others in proportion to the
    ratio schedule, a function of u in (0, 1), the place among the pruned epochs; where an epoch
    cannot give its part without keeping fewer than `min_keep`, the others give more.

    Args:
        num_samples: N.
        num_epochs: of the run.
        pruned: the epochs in which pruning is on.
        budget: part of the N * num_epochs sample passes of the full run, in (0, 1].
        min_keep: the smallest size of an epoch.
        ratio_schedule: "constant"; "rising" and "falling" in a straight line from or to zero;
            "cosine", falling; or a function of u that gives non-negative numbers.

    Returns:
        (num_epochs,) sizes; their sum is exact.

    Raises:
        ValueError: the budget cannot be reached; the message has the range that can.
    """
    check_fraction("budget", budget)
    full = num_samples * num_epochs
    left_out = full - int(budget * full + 0.5)
    most = num_samples - min_keep
    if left_out > most * len(pruned) or budget == 0.0:
        least = math.ceil((full - most * len(pruned)) / full * 10_000) / 10_000
        raise ValueError(
            f"budget must be {least:g} to 1 here, got {budget:g}: {num_epochs - len(pruned)} of "
            f"{num_epochs} epochs use the full data, and each other epoch keeps at least "
            f"{min_keep} of {num_samples} samples. For a smaller one, train for fewer epochs, or "
            "change delta, warmup_epochs, groups, or the floor or largest weight of the policy"
        )
    shape = _shape_of(ratio_schedule, len(pruned))
    # Fill up: the largest parts hit the ceiling first, and the rest share what is left.
    parts = np.zeros(len(pruned))
    open_ = np.ones(len(pruned), dtype=bool)
    while open_.any() and left_out:
        if not (shape * open_).any():
            shape = np.ones(len(pruned))
        rest = left_out - most * int(np.count_nonzero(~open_))
        parts = np.where(open_, shape * (rest / (shape * open_).sum()), most)
        if not (over := open_ & (parts > most)).any():
            break
        open_ &= ~over
    upto = np.floor(np.cumsum(parts) + 1e-6).astype(np.int64)
    if len(upto):
        upto[-1] = left_out
    sizes = np.full(num_epochs, num_samples, dtype=np.int64)
    sizes[pruned.start : pruned.stop] -= np.diff(upto, prepend=0)
    return [int(size) for size in sizes]


def _shape_of(ratio_schedule: RatioSchedule, count: int) -> NDArray[np.float64]:
    known = ", ".join(f'"{name}"' for name in _SHAPES)
    rule = f"ratio_schedule must be {known} or a function of [0, 1] to non-negative numbers"
    named = _SHAPES.get(ratio_schedule) if isinstance(ratio_schedule, str) else None
    shape = ratio_schedule if callable(ratio_schedule) else named
    if shape is None:
        raise ValueError(f"{rule}, got {ratio_schedule!r}")
    given = [shape((place + 0.5) / count) for place in range(count)]
    try:
        values = np.array([float(each) for each in given])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule}; it gave {given}") from error
    if not bool(np.all(np.isfinite(values) & (values >= 0))):
        raise ValueError(f"{rule}; it gave {values.tolist()}")
    return values


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
