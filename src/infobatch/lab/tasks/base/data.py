"""What a task's data are to the training loop: numbered samples, in batches, and a test set."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from infobatch.lab.errors import LabError

Self = TypeVar("Self", bound="TaskData")

Prepare = Callable[[Any, Any, torch.Generator, bool], tuple[Any, Any]]
"""(rows, targets, generator, training) -> what the model is called with, and the targets.

Rows and targets are those of a batch as they are stored. The generator is seeded by the place of
the batch in the run or in the test set; only in training there is augmentation. The model is
called with a tensor, or with a dict of keyword arguments.
"""
Generators = Callable[[int], torch.Generator]
"""The generator of a batch, by its number."""


def plain(rows: Any, targets: Any, _generator: torch.Generator, _training: bool) -> tuple[Any, Any]:
    """The `Prepare` that changes nothing."""
    return rows, targets


@dataclass(frozen=True)
class Batch:
    """Indices (B,) into the training set, what the model is called with, and targets."""

    indices: Tensor
    inputs: Any
    targets: Any


class TaskData(ABC):
    """Training and test set of a task.

    Attributes:
        class_names: of the classes that samples belong to; empty where there are none.
        reads_ahead: whether `batches` draws numbers long before it yields their batch.
    """

    class_names: tuple[str, ...] = ()
    reads_ahead = False

    @property
    @abstractmethod
    def labels(self) -> Tensor | None:
        """(N,) int64, the class of every training sample; None where there are no classes."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where batches are put."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of training samples."""

    @abstractmethod
    def batches(
        self, numbers: Iterable[list[int]], prepare: Prepare, generators: Generators
    ) -> Iterator[Batch]:
        """Training batches of the named samples; `numbers` is drawn from one by one."""

    @abstractmethod
    def samples(self, indices: Tensor) -> tuple[Any, Any]:
        """Rows and targets of some training samples, as they are stored."""

    @abstractmethod
    def test_batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Rows and targets of the test set, in its order, at most `size` at a time."""

    @abstractmethod
    def to(self: Self, device: torch.device) -> Self:
        """The same data on a device."""

    @abstractmethod
    def only(self: Self, chosen: Tensor) -> Self:
        """The same task with these training samples, in this order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short digest; results on other data are never mixed with these."""

    def limit_train(self: Self, size: int) -> Self:
        """The same task with `size` training samples, drawn once and always the same."""
        if not 0 < size <= len(self):
            raise LabError(f"--limit-train must lie in 1..{len(self)}, got {size}")
        return self.only(torch.randperm(len(self), generator=_fixed())[:size])

    def with_labels(self: Self, labels: Tensor) -> Self:
        """The same training inputs with other labels."""
        raise LabError("label noise needs a classification task whose data lie in memory")

    def imbalanced(self: Self, ratio: float) -> Self:
        """The same task with class sizes that fall from the first to the last by that ratio.

        Class c of C keeps n * ratio ** (-c / (C - 1)) samples, as in the long-tailed CIFAR of Cui
        et al., 2019 (arXiv 1901.05555), always the same ones. The test set stays as it is.
        """
        raise LabError("--imbalance needs a classification task whose data lie in memory")

    def with_random_labels(self: Self, fraction: float) -> Self:
        """The same task with a fraction of the training labels replaced by other classes."""
        if self.labels is None:
            return self.with_labels(torch.empty(0))
        generator = _fixed()
        labels, classes = self.labels.cpu().clone(), len(self.class_names)
        wrong = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
        shift = torch.randint(1, classes, (len(wrong),), generator=generator)
        labels[wrong] = (labels[wrong] + shift) % classes
        return self.with_labels(labels)

    def name_of(self, index: int) -> str:
        """The caption of a training sample's picture: its class, or its number."""
        labels = self.labels
        return str(index) if labels is None else self.class_names[int(labels[index])]


@dataclass(frozen=True)
class TensorData(TaskData):
    """Train and test set as whole tensors; row i of inputs belongs to row i of targets.

    Targets are (N,) labels where `class_names` names their classes, and anything else, such as
    label maps or token numbers, where it is empty.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    class_names: tuple[str, ...] = ()

    @property
    def labels(self) -> Tensor | None:
        return self.train_targets if self.class_names else None

    @property
    def device(self) -> torch.device:
        return self.train_inputs.device

    def __len__(self) -> int:
        return len(self.train_targets)

    def batches(
        self, numbers: Iterable[list[int]], prepare: Prepare, generators: Generators
    ) -> Iterator[Batch]:
        for place, batch in enumerate(numbers):
            indices = torch.tensor(batch, device=self.device)
            yield Batch(indices, *prepare(*self.samples(indices), generators(place), True))

    def samples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.train_inputs[indices], self.train_targets[indices]

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.test_inputs.split(size), self.test_targets.split(size), strict=True)

    def to(self, device: torch.device) -> TensorData:
        names = ("train_inputs", "train_targets", "test_inputs", "test_targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def only(self, chosen: Tensor) -> TensorData:
        inputs, targets = self.samples(chosen)
        return replace(self, train_inputs=inputs, train_targets=targets)

    def with_labels(self, labels: Tensor) -> TensorData:
        if self.labels is None:
            return super().with_labels(labels)
        return replace(self, train_targets=labels.to(self.train_targets))

    def imbalanced(self, ratio: float) -> TensorData:
        if self.labels is None:
            return super().imbalanced(ratio)
        labels = self.labels.cpu()
        order = torch.randperm(len(labels), generator=_fixed())
        sizes = torch.bincount(labels, minlength=len(self.class_names))
        kept = []
        for number in range(len(sizes)):
            part = number / max(1, len(sizes) - 1)
            size = max(1, round(int(sizes.min()) * ratio**-part))
            kept.append(order[labels[order] == number][:size])
        return self.only(torch.cat(kept).sort().values)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (self.train_inputs, self.train_targets, self.test_inputs, self.test_targets):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
        return digest.hexdigest()[:16]


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """A model's outputs for a batch's inputs: one argument, or several by name."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def take(parts: Any, at: Tensor | slice) -> Any:
    """Some samples of a batch's inputs or targets: of a tensor, or of each in a dict or tuple."""
    if isinstance(parts, Tensor):
        return parts[at]
    if isinstance(parts, dict):
        return {name: take(part, at) for name, part in parts.items()}
    return tuple(take(part, at) for part in parts)
