"""The one training loop: every arm of every task runs through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from infobatch.lab.arm import ArmRun, InBatch
from infobatch.lab.errors import LabError
from infobatch.lab.observe import Observer
from infobatch.lab.results import Cost, Curves
from infobatch.lab.settings import Settings
from infobatch.lab.task import Task, TaskData
from infobatch.losses import batch_mean
from infobatch.schedule import ProgressScheduler

_EVALUATION_BATCH = 1000

Watch = Callable[[Tensor, Tensor, Tensor], None]
"""Is shown the indices, outputs and targets of each training batch."""


@dataclass(frozen=True)
class EpochReport:
    """What is known when an epoch has ended."""

    epoch: int
    epochs: int
    kept: int
    total: int
    metric: float | None


class TrainingRun:
    """One model trained by one arm with one seed.

    Runs that share a seed start from the same weights and share the permutation of every epoch.
    Nothing here reads a global random generator once the model is built.

    Args:
        arm_run: the pruner and its number of epochs.
        data: on the device that the run is to use.
        seed: of the initial weights and of the augmentation.
    """

    def __init__(
        self, task: Task, data: TaskData, arm_run: ArmRun, settings: Settings, *, seed: int
    ) -> None:
        self.task = task
        self.data = data
        self.settings = settings
        self.seed = seed
        self.epochs = arm_run.epochs
        self.pruner = arm_run.pruner
        self.arm_run = arm_run
        self.watch: Watch | None = None
        self.device = data.train_inputs.device
        self.model = initial_model(task, settings, seed).to(self.device)
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compute: Callable[[Tensor], Tensor] = (
            torch.compile(self.model) if settings.compile else self.model
        )
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.lr,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        self.scheduler = ProgressScheduler(
            torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer,
                max_lr=settings.lr,
                total_steps=self.epochs * math.ceil(len(data.train_targets) / settings.batch_size),
                pct_start=0.3,
                div_factor=25,
                final_div_factor=1e4,
                cycle_momentum=False,
            ),
            self.pruner,
        )
        self.observer = Observer(self.epochs, settings.delta, len(data.train_targets))
        self.cost = Cost()
        self.curves = Curves()
        self.wall_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.curves.kept) == self.epochs

    def run_epoch(self) -> EpochReport:
        """Train for one epoch, inside the clock; then look at it, outside."""
        epoch = len(self.curves.kept)
        with self._clock():
            plan = self.pruner.plan  # otherwise made when the sampler is iterated
        self.observer.before_epoch(plan, self.pruner.scores)
        with self._clock():
            left_out = plan.pruned if self.arm_run.refresh else None
            self._train_epoch(epoch)
            if left_out is not None:
                self._refresh(left_out)

        record = self.pruner.history[-1]
        last = epoch == self.epochs - 1
        due = last or (epoch + 1) % self.settings.eval_every == 0
        self.curves.kept.append(record.kept)
        self.curves.threshold.append(_finite(record.threshold))
        self.curves.mean_loss.append(_finite(record.mean_loss))
        self.curves.metric.append(self.evaluate() if due else None)
        self.curves.samples.append(self.cost.passes)
        self.curves.seconds.append(self.wall_seconds)
        return EpochReport(epoch, self.epochs, record.kept, record.total, self.curves.metric[-1])

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        in_batch = self.arm_run.in_batch
        if in_batch is not None and epoch not in in_batch.epochs:
            in_batch = None
        wanted = self.settings.batch_size
        if in_batch is not None:  # so many that what is chosen of them is a batch
            wanted = min(len(self.pruner.sampler), round(wanted / in_batch.keep_ratio))
        size = even_batch_size(len(self.pruner.sampler), wanted)
        for step, batch in enumerate(BatchSampler(self.pruner.sampler, size, drop_last=False)):
            indices = torch.tensor(batch, device=self.device)
            targets = self.data.train_targets[indices]
            generator = torch.Generator().manual_seed(_augmentation_seed(self.seed, epoch, step))
            inputs = self._inputs(self.data.train_inputs[indices], generator)
            if in_batch is not None:
                loss = self._choose_in_batch(in_batch, inputs, targets, indices)
            else:
                losses = self._losses(inputs, targets, indices)
                if self.arm_run.batch_mean:
                    losses = batch_mean(losses.mean(), len(losses))
                loss = self.pruner.update(losses)
                self.cost.samples_forwarded += len(batch)
                self.cost.samples_backpropagated += len(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.cost.steps += 1

    def _losses(self, inputs: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        outputs = self._forward(inputs)
        if self.watch is not None:
            self.watch(indices, outputs.detach(), targets)
        return self.task.loss(outputs, targets, self.settings.label_smoothing)

    def _choose_in_batch(
        self, chooser: InBatch, inputs: Tensor, targets: Tensor, indices: Tensor
    ) -> Tensor:
        """Pass the whole pool forward, and train on what is chosen of it."""
        with torch.no_grad():
            parts = inputs.split(even_batch_size(len(inputs), self.settings.batch_size))
            outputs = torch.cat([self._forward(part) for part in parts])
            losses = self.task.loss(outputs, targets, self.settings.label_smoothing)
        self.pruner.update(losses)
        errors = None
        if chooser.by_error:
            probabilities = outputs.float().softmax(dim=1)
            errors = (probabilities - F.one_hot(targets, outputs.shape[1])).norm(dim=1)
        pruner = chooser.pruner
        due = int(chooser.keep_ratio * (pruner.forwarded + len(losses))) - pruner.backpropagated
        keep = min(len(losses), max(1, due))
        choice = pruner.select(losses, keep=keep, scores=errors, indices=indices)
        at = choice.positions
        self.cost.samples_forwarded += len(losses) + keep
        self.cost.samples_backpropagated += keep
        return (choice.weights * self._losses(inputs[at], targets[at], indices[at])).mean()

    @torch.no_grad()
    def _refresh(self, left_out: Tensor) -> None:
        """Pass forward what an epoch has left out, without augmentation, and score it anew."""
        if len(left_out) == 0:
            return
        self.model.eval()
        scores = []
        for part in left_out.to(self.device).split(_EVALUATION_BATCH):
            outputs = self._forward(self._inputs(self.data.train_inputs[part], None))
            targets = self.data.train_targets[part]
            scores.append(self.task.loss(outputs, targets, self.settings.label_smoothing))
        self.pruner.rescore(left_out, torch.cat(scores))
        self.cost.samples_forwarded += len(left_out)

    def _inputs(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        strong = self.settings.augmentation == "strong"
        build = self.task.strong_inputs if strong and self.task.strong_inputs else self.task.inputs
        inputs = build(rows, generator)
        if self.settings.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _forward(self, inputs: Tensor) -> Tensor:
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            return self._compute(inputs)

    def evaluate(self) -> float:
        """The metric on the whole test set, in percent."""
        return 100 * float(self._test_scores().double().mean())

    def worst_class(self) -> float:
        """The metric on the test samples of the class where it is lowest, in percent."""
        scores, labels = self._test_scores().double(), self.data.test_targets
        sums = torch.zeros(len(self.data.class_names), dtype=torch.float64, device=self.device)
        sums = sums.index_add(0, labels, scores)
        sizes = torch.bincount(labels, minlength=len(sums))
        return 100 * float((sums / sizes)[sizes > 0].min())

    @torch.no_grad()
    def _test_scores(self) -> Tensor:
        self.model.eval()
        parts = zip(
            self.data.test_inputs.split(_EVALUATION_BATCH),
            self.data.test_targets.split(_EVALUATION_BATCH),
            strict=True,
        )
        return torch.cat(
            [self.task.score(self._forward(self._inputs(rows, None)), y) for rows, y in parts]
        )

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Count the time of a block, up to when the device has done what it was given."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.wall_seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on; plain tensors, numbers and containers."""
        in_batch = self.arm_run.in_batch
        return {
            "settings": self.settings.digest,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "pruner": self.pruner.state_dict(),
            "in_batch": None if in_batch is None else in_batch.pruner.state_dict(),
            "observer": self.observer.state_dict(),
            "cost": vars(self.cost),
            "curves": vars(self.curves),
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the rest of the run is as if never interrupted."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.pruner.load_state_dict(state["pruner"])
        if self.arm_run.in_batch is not None:
            self.arm_run.in_batch.pruner.load_state_dict(state["in_batch"])
        self.observer.load_state_dict(state["observer"])
        self.cost = Cost(**state["cost"])
        self.curves = Curves(**state["curves"])
        self.wall_seconds = state["wall_seconds"]


def even_batch_size(count: int, largest: int) -> int:
    """The size at which batches are at most so large, as few as can be, and nearly equal.

    Epochs of any length occur here, and a last batch of two or three samples, whose statistics
    batch normalisation then uses, costs some of them a point of accuracy and others nothing.
    """
    return math.ceil(count / math.ceil(count / largest))


def initial_model(task: Task, settings: Settings, seed: int) -> nn.Module:
    """The weights that every arm of this seed starts from; the global generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build(settings.model, settings.width)


def _augmentation_seed(seed: int, epoch: int, step: int) -> int:
    """One seed for every step of every run, so that a resumed run goes on as if never stopped."""
    return int(np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def save_checkpoint(run: TrainingRun, path: Path) -> None:
    """Write the run's state; a crash leaves either the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save(run.state_dict(), unfinished)
    unfinished.replace(path)


def load_checkpoint(run: TrainingRun, path: Path) -> bool:
    """Go on from a checkpoint if there is one; whether there was.

    Raises:
        LabError: it belongs to other settings.
    """
    if not path.exists():
        return False
    state = torch.load(path, map_location=run.device, weights_only=True)
    if state["settings"] != run.settings.digest:
        raise LabError(
            f"{path} belongs to other settings; use another --out, or delete it to start afresh"
        )
    run.load_state_dict(state)
    return True
