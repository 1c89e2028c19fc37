"""Which epochs are pruned, and how many samples each keeps under a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infobatch._core.validation import check_fraction
from infobatch._core.whole_batches import Batches


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


@dataclass(frozen=True)
class Budget:
    """How many samples each epoch keeps.

    Attributes:
        sizes: (num_epochs,) before they are rounded to whole batches.
        pruned: the epochs in which pruning is on.
        num_samples: N.
        least: the smallest size of a pruned epoch.
    """

    sizes: Sequence[int]
    pruned: range
    num_samples: int
    least: int

    def in_batches(self, batch: int | None, kept: Sequence[int] = ()) -> list[int]:
        """(num_epochs,) the sizes, those of pruned epochs in whole batches.

        Each pruned epoch makes good what those before it have kept too many or too few of, so that
        the run as a whole is within half a batch of its budget, also where the batch size changes.

        Args:
            batch: samples in a batch of all ranks together; None: not in batches.
            kept: sizes of the epochs that are over.
        """
        sizes = list(kept[: len(self.sizes)])
        due, taken = 0, sum(sizes)
        whole = Batches(batch or 1, self.least)
        for epoch, size in enumerate(self.sizes):
            due += size
            if epoch >= len(sizes):
                in_batches = whole.nearest(due - taken, self.num_samples)
                sizes.append(in_batches if epoch in self.pruned else size)
                taken += sizes[-1]
        return sizes


def passes_upto(sizes: Sequence[int]) -> list[int]:
    """(num_epochs + 1,) sample passes before each epoch of these sizes, and after the last."""
    return [0, *accumulate(sizes)]


def part_of_run(done: float, upto: Sequence[int]) -> float:
    """How far a run has come, in [0, 1].

    Args:
        done: finished epochs and the part of the current one, 0 to num_epochs.
        upto: (num_epochs + 1,) see `passes_upto`; of equal sizes where they are not known.
    """
    whole = min(int(done), len(upto) - 2)
    before, after = upto[whole], upto[whole + 1]
    return (before + (done - whole) * (after - before)) / upto[-1]
