"""Selection: which samples an epoch keeps, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infobatch.errors import PolicyError

_FEW_LEVELS = 8


@dataclass(frozen=True, eq=False)
class Selection:
    """Which samples an epoch keeps, and the rescale weight of each.

    Either one weight per sample, or a small table of weights and one byte per sample that
    points into it, which is how data sets of a billion samples stay small.

    Attributes:
        weights: non-negative and finite; 0 means pruned. Shape (N,) where `level` is None,
            otherwise the table, shape (L,) with L <= 256.
        level: (N,) uint8 indices into `weights`, or None.
        threshold: the score below which samples may be pruned; NaN where there is none.
            For information: it appears in `history`.
        mass_left_out: fraction of the total gradient bound carried by pruned samples, in [0, 1];
            NaN where the policy does not say. Of a random subset it is the fraction of samples.
            It appears in `history`.
        is_full: this is `Selection.full`: every sample is kept with weight 1.

    Raises:
        PolicyError: the arrays do not fit these descriptions.
    """

    weights: NDArray[np.floating]
    level: NDArray[np.uint8] | None = None
    threshold: float = float("nan")
    mass_left_out: float = float("nan")
    is_full: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        weights, level = self.weights, self.level
        for name in ("threshold", "mass_left_out"):  # a state holds plain numbers, not numpy's
            object.__setattr__(self, name, float(getattr(self, name)))
        for name, array in (("weights", weights), ("level", level)):
            if not isinstance(array, np.ndarray) and (name == "weights" or array is not None):
                raise PolicyError(
                    f"a Selection's {name} must be a numpy array, got {type(array).__name__}"
                )
        if weights.ndim != 1 or not np.issubdtype(weights.dtype, np.floating):
            raise PolicyError(
                "a Selection's weights must be a 1-D float array, got "
                f"{weights.dtype} of shape {weights.shape}"
            )
        if not bool(np.all(np.isfinite(weights) & (weights >= 0))):
            raise PolicyError(
                "a Selection's weights must be finite and not negative (0 = pruned); "
                f"got values from {weights.min()} to {weights.max()}"
            )
        if level is not None:
            if level.ndim != 1 or level.dtype != np.uint8:
                raise PolicyError(
                    "a Selection's level must be a 1-D uint8 array, got "
                    f"{level.dtype} of shape {level.shape}"
                )
            if len(level) and int(level.max()) >= len(weights):
                raise PolicyError(
                    f"level {int(level.max())} points outside the table of {len(weights)} weights"
                )

    @classmethod
    def full(cls, num_samples: int, *, threshold: float = float("nan")) -> Selection:
        """Every sample, weight 1, in constant memory."""
        selection = cls(np.ones(1), threshold=threshold, mass_left_out=0.0)
        ones = np.broadcast_to(np.float64(1.0), (num_samples,))
        object.__setattr__(selection, "weights", ones)
        object.__setattr__(selection, "is_full", True)
        return selection

    @classmethod
    def of(
        cls, kept: NDArray[np.bool_], weight: float = 1.0, *, threshold: float = float("nan")
    ) -> Selection:
        """The samples in a mask (N,), each with the same weight."""
        return cls(np.array([0.0, weight]), kept.view(np.uint8), threshold)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(L,) how many samples are at each level."""
        assert self.level is not None
        if len(self.weights) > _FEW_LEVELS:
            return np.bincount(self.level, minlength=len(self.weights))
        numbers = range(len(self.weights))  # comparing bytes is much faster than counting them
        return np.array([np.count_nonzero(self.level == np.uint8(number)) for number in numbers])

    @property
    def num_kept(self) -> int:
        """How many samples have a positive weight."""
        if self.level is None:
            return len(self) if self.is_full else int(np.count_nonzero(self.weights))
        return int(self.sizes[self.weights > 0].sum())

    @property
    def occurring(self) -> NDArray[np.floating]:
        """The weights that some sample has; repeats are possible."""
        return self.weights if self.level is None else self.weights[self.sizes > 0]

    def where(self, holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mask (N,) of the samples for whose entry of `weights` a condition holds."""
        if self.level is None:
            return holds
        numbers = np.flatnonzero(holds)
        if len(numbers) == 1:
            mask: NDArray[np.bool_] = self.level == np.uint8(numbers[0])
            return mask
        return holds.take(self.level, mode="clip")

    def __len__(self) -> int:
        return len(self.weights if self.level is None else self.level)

    def weights_of(
        self, indices: NDArray[np.integer], dtype: type[np.floating[Any]] = np.float64
    ) -> NDArray[np.floating[Any]]:
        """The weights of some samples, shaped like `indices`; 0 where pruned."""
        if self.level is None:
            return self.weights.take(indices, mode="clip").astype(dtype, copy=False)
        levels = self.level.take(indices, mode="clip")
        return self.weights.astype(dtype, copy=False).take(levels, mode="clip")
