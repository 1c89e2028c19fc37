"""What a coreset method may know, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infobatch._core.validation import check_int
from infobatch.policies import FixedSubset
from infobatch.policies.groups import check_groups, shares


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a short proxy run has shown of a training set: model outputs, one row per sample.

    Attributes:
        labels: (N,) integers 0 to C - 1.
        probabilities: (N, C) softmax of the proxy at its end.
        features: (N, D) what the proxy's last linear layer sees.
        head: (C, D) weight of that layer.
        correct: (T, N) bool: whether a sample was classified correctly in each epoch of the proxy,
            when it was trained on.

    Raises:
        ValueError: the shapes do not fit.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    head: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", check_groups(self.labels))
        size, classes = len(self.labels), self.probabilities.shape[-1]
        shapes = {
            "probabilities": (size, classes),
            "features": (size, self.features.shape[-1]),
            "head": (classes, self.features.shape[-1]),
            "correct": (len(self.correct), size),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must be {shape}, got {getattr(self, name).shape}")
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise ValueError(
                f"labels must be 0 to {classes - 1}, got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def errors(self) -> NDArray[np.float32]:
        """(N, C) probabilities minus one-hot labels: the loss's gradient at the logits."""
        errors = self.probabilities.astype(np.float32)  # a copy
        errors[np.arange(len(self)), self.labels] -= 1.0
        return errors

    def gradients(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """(M, C * (D + 1)): the loss's gradient at the last layer, with bias, of some rows."""
        ones = np.ones((len(rows), 1), dtype=np.float32)
        inputs = np.concatenate([self.features[rows], ones], axis=1)
        outer: NDArray[np.float32] = self.errors[rows][:, :, None] * inputs[:, None, :]
        return outer.reshape(len(rows), -1)

    def quotas(self, keep: int) -> Iterator[tuple[NDArray[np.intp], int]]:
        """The rows of each class, and how many of them to keep: in proportion to their number."""
        classes, inverse = np.unique(self.labels, return_inverse=True)
        parts = shares(keep, np.bincount(inverse))
        for number in range(len(classes)):
            yield np.flatnonzero(inverse == number), int(parts[number])


@dataclass(frozen=True, eq=False)
class Coreset:
    """A part of a training set.

    Attributes:
        indices: (K,) distinct rows.
        weights: (K,) positive, of mean 1; None: 1 each.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, parts: Sequence[NDArray[np.integer]]) -> Coreset:
        """The rows of all parts, in order."""
        return cls(np.sort(np.concatenate(parts)).astype(np.int64))

    @classmethod
    def weighted(
        cls, parts: Sequence[NDArray[np.integer]], weights: Sequence[NDArray[np.float64]]
    ) -> Coreset:
        """The rows of all parts, with their weights brought to mean 1."""
        weight = np.concatenate(weights)
        return cls(np.concatenate(parts).astype(np.int64), weight / weight.mean())

    @property
    def policy(self) -> FixedSubset:
        """For `DataPruner(..., coreset.policy, warmup_epochs=0, delta=1.0)`."""
        return FixedSubset(self.indices, self.weights)


Method = Callable[[Evidence, int, np.random.Generator], Coreset]
"""(evidence, keep, rng) -> `keep` samples, at least one of each class; draws come from `rng`."""


def check_keep(evidence: Evidence, keep: int) -> int:
    """Raise a ValueError if a coreset of that size cannot have a sample of each class."""
    classes = len(np.unique(evidence.labels))
    return check_int("keep", keep, at_least=classes, at_most=len(evidence))


def squared_distances(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, K) squared Euclidean distances of the rows of two arrays."""
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * (x @ y.T)
    distances: NDArray[np.float32] = np.maximum(squares, 0.0, dtype=np.float32)
    return distances
