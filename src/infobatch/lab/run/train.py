"""The one training loop: every arm of every task runs through it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infobatch.errors import IndistinctScoresWarning
from infobatch.lab.arms.base import ArmRun, InBatch
from infobatch.lab.errors import LabError
from infobatch.lab.run import ranks
from infobatch.lab.run.observe import Observer
from infobatch.lab.run.optim import build_optimizer, build_schedule
from infobatch.lab.run.results import Cost, Curves
from infobatch.lab.run.settings import Settings
from infobatch.lab.tasks.base.data import Batch, TaskData, call, take
from infobatch.lab.tasks.base.task import Outcome, Task
from infobatch.losses import batch_mean, el2n, soft_target_score
from infobatch.policies import FullData
from infobatch.schedule import ProgressScheduler

Watch = Callable[[Tensor, Any, Any], None]
"""Is shown the indices, outputs and targets of each training batch."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch came to."""

    epoch: int
    epochs: int
    kept: int
    total: int
    metric: float | None


class TrainingRun:
    """One model trained by one arm with one seed.

    Runs that share a seed start from the same weights and share the permutation of every epoch.
    Models that draw in the forward pass, for dropout, draw from the global generator: it is seeded
    for every step, and restored after the epoch. Nothing else here reads it.

    Under torchrun each process trains on its share of every batch, and the first one evaluates.
    Batch normalisation is over the whole batch on CUDA, over the share of a process on the CPU.
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
        self._rank = ranks.rank() if ranks.count() > 1 else None  # asked once, not in every step
        self.device = data.device
        self.model = initial_model(task, settings, data, seed).to(self.device)
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained: nn.Module = self.model
        if ranks.count() > 1:
            if self.device.type == "cuda":
                self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            trained = DistributedDataParallel(self.model)
        self._train_compute, self._eval_compute = (
            torch.compile(model) if settings.compile else model for model in (trained, self.model)
        )
        self._prepare = task.prepare
        if settings.augmentation == "strong" and task.strong is not None:
            self._prepare = task.strong
        self.optimizer = build_optimizer(self.model, settings)
        steps = self.epochs * math.ceil(len(data) / settings.batch_size)
        self.scheduler = ProgressScheduler(
            build_schedule(self.optimizer, settings, steps), self.pruner, total_steps=steps
        )
        policy = self.pruner.policy  # full data have scores for the headroom alone
        self._needs_scores = policy.reads_probability or isinstance(policy, FullData)
        self.observer = Observer(self.epochs, settings.delta, len(data))
        self.cost = Cost()
        self.curves = Curves()
        self.wall_seconds = 0.0
        self.outcome: Outcome | None = None

    @property
    def finished(self) -> bool:
        return len(self.curves.kept) == self.epochs

    def run_epoch(self) -> EpochReport:
        """Train for one epoch, inside the clock; then evaluate, outside.

        The warning that an arm leaves out at random is off: the comparison measures what it does.
        """
        epoch = len(self.curves.kept)
        with self._clock():
            plan = self.pruner.plan  # otherwise made when the sampler is iterated
        self.observer.before_epoch(plan, self.pruner.scores)
        with self._clock(), self._generators_restored():
            left_out = plan.pruned if self.arm_run.refresh else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IndistinctScoresWarning)
                self._train_epoch(epoch)
            if left_out is not None:
                self._refresh(left_out)

        record = self.pruner.history[-1]
        last = epoch == self.epochs - 1
        every = self.settings.eval_every
        due = last or (every > 0 and (epoch + 1) % every == 0)
        self.curves.kept.append(record.kept)
        self.curves.threshold.append(_finite(record.threshold))
        self.curves.mean_loss.append(_finite(record.mean_loss))
        self.curves.headroom.append(_finite(record.headroom))
        self.curves.rank_correlation.append(_finite(record.rank_correlation))
        self.outcome = ranks.on_first(lambda: self.task.evaluate(self)) if due else None
        self.curves.metric.append(None if self.outcome is None else self.outcome.metric)
        self.curves.samples.append(self.cost.passes)
        self.curves.seconds.append(self.wall_seconds)
        return EpochReport(epoch, self.epochs, record.kept, record.total, self.curves.metric[-1])

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        in_batch = self.arm_run.in_batch
        if in_batch is not None and epoch not in in_batch.epochs:
            in_batch = None
        wanted = self.settings.batch_size // ranks.count()
        if in_batch is not None:  # so many that what is chosen of them is a batch
            wanted = min(len(self.pruner.sampler), round(wanted / in_batch.keep_ratio))
        sizes = even_sizes(len(self.pruner.sampler), wanted)
        drawn = iter(self.pruner.sampler)
        numbers = (list(islice(drawn, size)) for size in sizes)
        batches = self.data.batches(numbers, self._prepare, partial(self._generator, epoch))
        for step, batch in enumerate(batches):
            seed = _step_seed(self.seed, epoch, step, rank=self._rank, of_model=True)
            self._seed_model(seed)
            if in_batch is not None:
                loss = self._choose_in_batch(in_batch, batch)
            else:
                losses, scores = self._losses(batch)
                if self.arm_run.batch_mean:
                    losses, scores = batch_mean(losses.mean(), len(losses)), None
                loss = self._update(losses, batch, scores)
            self.optimizer.zero_grad()
            loss.backward()
            if self.settings.grad_clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
            self.optimizer.step()
            self.scheduler.step()
            self.cost.steps += 1
        if in_batch is None:  # of all processes
            kept = self.pruner.history[-1].kept
            self.cost.samples_forwarded += kept
            self.cost.samples_backpropagated += kept

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        seed = _step_seed(self.seed, epoch, step, rank=self._rank)
        return torch.Generator().manual_seed(seed)

    def _update(self, losses: Tensor, batch: Batch, scores: Tensor | None = None) -> Tensor:
        """By index where data are read ahead, as their order cannot be seen."""
        indices = batch.indices if self.data.reads_ahead else None
        return self.pruner.update(losses, scores=scores, indices=indices)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(B,) losses, and what the samples are ranked by if not by them."""
        outputs = self._forward(batch.inputs)
        if self.watch is not None:
            self.watch(batch.indices, outputs, batch.targets)
        return self._judge(outputs, batch.targets)

    def _judge(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
        smoothing = self.settings.label_smoothing
        losses = self.task.loss(outputs, targets, smoothing)
        if self.task.rank is not None:
            return losses, self.task.rank(outputs, targets).detach()
        if not smoothing or not self._needs_scores:
            return losses, None
        if self.task.by_class_logits:
            return losses, soft_target_score(outputs, targets, label_smoothing=smoothing)
        with torch.no_grad():
            return losses, self.task.loss(outputs, targets, 0.0)

    def _choose_in_batch(self, chooser: InBatch, batch: Batch) -> Tensor:
        """Pass the whole pool forward, and train on what is chosen of it."""
        count = len(batch.indices)
        sizes = even_sizes(count, self.settings.batch_size)
        found, by_error = [], []
        with torch.no_grad():
            for part in torch.arange(count, device=batch.indices.device).split(sizes):
                outputs = self._forward(take(batch.inputs, part))
                targets = take(batch.targets, part)
                losses, scores = self._judge(outputs, targets)
                found.append(losses if scores is None else scores)
                if chooser.by_error:
                    by_error.append(el2n(outputs, targets))
        ranked = torch.cat(found)
        self._update(ranked, batch)
        pruner = chooser.pruner
        due = int(chooser.keep_ratio * (pruner.forwarded + count)) - pruner.backpropagated
        keep = min(count, max(1, due))
        errors = torch.cat(by_error) if by_error else None
        choice = pruner.select(ranked, keep=keep, scores=errors, indices=batch.indices)
        at = choice.positions
        self.cost.samples_forwarded += count + keep
        self.cost.samples_backpropagated += keep
        losses, _ = self._losses(
            Batch(batch.indices[at], take(batch.inputs, at), take(batch.targets, at))
        )
        return (choice.weights * losses).mean()

    @torch.no_grad()
    def _refresh(self, left_out: Tensor) -> None:
        """Pass forward what an epoch has left out, without augmentation, and score it anew."""
        if len(left_out) == 0:
            return
        self.model.eval()
        own = left_out[ranks.rank() :: ranks.count()]
        found = [torch.empty(0, device=self.device)]
        for place, part in enumerate(own.to(self.device).split(self.task.batch_of_test)):
            if len(part) == 0:
                continue
            inputs, targets = self._prepare(*self.data.samples(part), _plain(place), False)
            losses, scores = self._judge(self._forward(inputs), targets)
            found.append(losses if scores is None else scores)
        self.pruner.rescore(own, torch.cat(found))
        self.cost.samples_forwarded += len(left_out)

    def _forward(self, inputs: Any) -> Any:
        if self.settings.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            compute = self._train_compute if self.model.training else self._eval_compute
            return call(compute, inputs)

    @torch.no_grad()
    def test_outputs(self) -> Iterator[tuple[Any, Any]]:
        """Outputs and targets, batch by batch over the test set, in evaluation mode."""
        self.model.eval()
        for place, rows in enumerate(self.data.test_batches(self.task.batch_of_test)):
            inputs, targets = self._prepare(*rows, _plain(place), False)
            yield self._forward(inputs), targets

    def _seed_model(self, seed: int) -> None:
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # a hundred times faster than for all devices
        else:
            torch.manual_seed(seed)

    def _generators_restored(self) -> AbstractContextManager[None]:
        if self.device.type == "cpu":
            return torch.random.fork_rng(devices=[])
        return torch.random.fork_rng(devices=[self.device], device_type=self.device.type)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Count the time of a block, up to when the device has done what it was given."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.wall_seconds += time.perf_counter() - started

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "pruner": self.pruner,
            "observer": self.observer,
        }
        in_batch = self.arm_run.in_batch
        return parts if in_batch is None else {**parts, "in_batch": in_batch.pruner}

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on; plain tensors, numbers and containers."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "settings": self.settings.digest,
            "cost": vars(self.cost),
            "curves": vars(self.curves),
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the rest of the run is as if never interrupted."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.cost = Cost(**state["cost"])
        self.curves = Curves(**state["curves"])
        self.wall_seconds = state["wall_seconds"]


def even_sizes(count: int, largest: int) -> list[int]:
    """Sizes of batches that are at most so large, as few as can be, and equal but for one sample.

    Epochs of any length occur here, and a last batch of two or three samples, whose statistics
    batch normalisation then uses, costs some of them a point of accuracy and others nothing.
    """
    batches = math.ceil(count / largest)
    return [(count + place) // batches for place in reversed(range(batches))]


def initial_model(task: Task, settings: Settings, data: TaskData, seed: int) -> nn.Module:
    """The weights that every arm of this seed starts from; the global generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build(settings.model, settings.width, data)


def _step_seed(
    seed: int, epoch: int, step: int, *, rank: int | None, of_model: bool = False
) -> int:
    """A seed for every step, so that a resumed run goes on as if never stopped.

    What the model draws is independent of what its batch is augmented with, and processes are of
    each other: `rank` is that of this one, where there are several.
    """
    place: tuple[int, ...] = (seed, epoch, step, 1) if of_model else (seed, epoch, step)
    if rank is not None:
        place = (seed, epoch, step, rank, int(of_model))
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])


def _plain(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(place)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a state; a crash leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    unfinished.replace(path)


def load_state(path: Path) -> Any:
    """What `save_state` wrote, the same in all processes; None if there is none."""

    def read() -> Any:
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    return ranks.on_first(read)


def load_checkpoint(run: TrainingRun, path: Path) -> bool:
    """Go on from a checkpoint if there is one of these settings; whether there was."""
    state = load_state(path)
    if state is None:
        return False
    if state["settings"] != run.settings.digest:
        raise LabError(
            f"{path} belongs to other settings; use another --out, or delete it to start afresh"
        )
    run.load_state_dict(state)
    return True
