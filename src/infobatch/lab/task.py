"""What a task is: data, model, per-sample loss, score, and the settings that suit it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from infobatch.lab.errors import LabError


@dataclass(frozen=True)
class TaskData:
    """Train and test set as whole tensors; row i of inputs belongs to row i of targets."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    class_names: tuple[str, ...]

    def to(self, device: torch.device) -> TaskData:
        """The same data on a device."""
        return replace(
            self,
            train_inputs=self.train_inputs.to(device),
            train_targets=self.train_targets.to(device),
            test_inputs=self.test_inputs.to(device),
            test_targets=self.test_targets.to(device),
        )

    def limit_train(self, size: int) -> TaskData:
        """The same task with `size` training samples, drawn once and always the same."""
        if not 0 < size <= len(self.train_targets):
            raise LabError(f"--limit-train must lie in 1..{len(self.train_targets)}, got {size}")
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.train_targets), generator=generator)[:size]
        return replace(
            self,
            train_inputs=self.train_inputs[chosen],
            train_targets=self.train_targets[chosen],
        )

    def with_labels(self, labels: Tensor) -> TaskData:
        """The same training inputs under other labels."""
        return replace(self, train_targets=labels.to(self.train_targets))

    def with_random_labels(self, fraction: float) -> TaskData:
        """The same task with a part of the training labels replaced by other classes; fixed."""
        generator = torch.Generator().manual_seed(0)
        labels, classes = self.train_targets.cpu().clone(), len(self.class_names)
        wrong = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
        shift = torch.randint(1, classes, (len(wrong),), generator=generator)
        labels[wrong] = (labels[wrong] + shift) % classes
        return self.with_labels(labels)

    def imbalanced(self, ratio: float) -> TaskData:
        """The same task with class sizes that fall from the first to the last by that ratio.

        Class c of C keeps n * ratio ** (-c / (C - 1)) samples, as in the long-tailed CIFAR of Cui
        et al., 2019 (arXiv 1901.05555), the same ones always. The test set stays as it is.
        """
        generator = torch.Generator().manual_seed(0)
        labels = self.train_targets.cpu()
        order = torch.randperm(len(labels), generator=generator)
        sizes = torch.bincount(labels, minlength=len(self.class_names))
        kept = []
        for number in range(len(sizes)):
            part = number / max(1, len(sizes) - 1)
            size = max(1, round(int(sizes.min()) * ratio**-part))
            kept.append(order[labels[order] == number][:size])
        chosen = torch.cat(kept).sort().values
        return replace(
            self,
            train_inputs=self.train_inputs[chosen],
            train_targets=self.train_targets[chosen],
        )

    def fingerprint(self) -> str:
        """A short digest of every byte, so that results on other data are not mixed with these."""
        digest = hashlib.sha256()
        for part in (
            self.train_inputs,
            self.train_targets,
            self.test_inputs,
            self.test_targets,
        ):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """A learning problem that arms are compared on.

    Attributes:
        name: what `--task` takes.
        description: one line for people.
        epochs, batch_size, lr, model: defaults; `lr` is the peak of the one-cycle schedule.
        threads: default number of torch threads; 0 leaves torch's choice.
        load: read the data; gets `--data-dir`, or None, and says in a `LabError` what to
            fetch and where to put it when there is nothing.
        build: a fresh model by name and width (None: the model's own), from the global generator.
        inputs: stored rows to model inputs; augments when given a generator.
        loss: (outputs, targets, label smoothing) -> the loss of every sample, shape (B,).
        score: (outputs, targets) -> shape (B,); its mean over the test set, as a percentage, is
            the metric, and higher is better.
        metric: the name of that mean.
        strong_inputs: as `inputs`, with strong augmentation; None where there is none.
        human_labels: reads labels that people gave the training set, by `--data-dir` and name;
            None where there are none.
        thumbnail: one stored row as an image for people, uint8 (H, W) or (H, W, 3); None where a
            sample cannot be drawn.
    """

    name: str
    description: str
    epochs: int
    batch_size: int
    lr: float
    model: str
    threads: int
    load: Callable[[Path | None], TaskData]
    build: Callable[[str, int | None], nn.Module]
    inputs: Callable[[Tensor, torch.Generator | None], Tensor]
    loss: Callable[[Tensor, Tensor, float], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    metric: str
    strong_inputs: Callable[[Tensor, torch.Generator | None], Tensor] | None = None
    human_labels: Callable[[Path | None, str], Tensor] | None = None
    thumbnail: Callable[[Tensor], np.ndarray] | None = None
