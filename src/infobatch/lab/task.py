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
    thumbnail: Callable[[Tensor], np.ndarray] | None = None
