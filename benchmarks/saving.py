"""A small real training run: is the time saved that the left-out samples would have taken?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from timing import Samples, cpu_clock, wall_clock
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler

from infobatch import InfoBatch

BATCH_SIZE = 128
FEATURES, WIDTH, CLASSES = 256, 640, 10
Reduce = Callable[[Tensor], Tensor]


class Arm:
    """One model in training; the sampler and the last line of the step are what differs."""

    def __init__(self, inputs: Tensor, labels: Tensor, sampler: Iterable[int], reduce: Reduce):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(FEATURES, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, CLASSES),
        )  # fmt: skip
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)
        self.batches = BatchSampler(sampler, BATCH_SIZE, drop_last=False)
        self.inputs, self.labels, self.reduce = inputs, labels, reduce
        self.seconds = self.cpu_seconds = self.reduce_seconds = 0.0
        self.samples = self.steps = 0

    def epoch(self) -> Iterator[float]:
        """Train one epoch, planning and everything else inside the clock.

        Yields:
            After each step, outside the clock: the part of the epoch that is done.
        """
        clocks = self._clocks()
        batches, planned = iter(self.batches), len(self.batches)
        for done, batch in enumerate(batches, start=1):
            rows = torch.tensor(batch)
            losses = F.cross_entropy(
                self.model(self.inputs[rows]), self.labels[rows], reduction="none"
            )
            before = cpu_clock()
            loss = self.reduce(losses)
            self.reduce_seconds += cpu_clock() - before
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.samples += len(batch)
            self.steps += 1
            self._stop(clocks)
            yield done / planned
            clocks = self._clocks()
        self._stop(clocks)

    def _clocks(self) -> tuple[float, float]:
        return wall_clock(), cpu_clock()

    def _stop(self, started: tuple[float, float]) -> None:
        self.seconds += wall_clock() - started[0]
        self.cpu_seconds += cpu_clock() - started[1]


def saving(size: int, num_epochs: int, repeats: int) -> Samples:
    """Seconds and sample passes of whole runs with and without infobatch, by turns of a step.

    Returns:
        For each repeat, of both: wall seconds, CPU seconds, those of `update` or `losses.mean()`
        among them, samples and steps.
    """
    inputs, labels = _data(size)
    samples: Samples = {}
    for repeat in range(repeats + 1):
        pruner = InfoBatch(size, num_epochs, seed=repeat)
        plain = Arm(inputs, labels, RandomSampler(range(size)), Tensor.mean)
        pruned = Arm(inputs, labels, pruner.sampler, pruner.update)
        for _ in range(num_epochs):
            _by_turns([plain.epoch(), pruned.epoch()])
        if repeat == 0:
            continue  # a warm-up
        for prefix, arm in (("plain_", plain), ("", pruned)):
            for fact in ("seconds", "cpu_seconds", "reduce_seconds", "samples", "steps"):
                samples.setdefault(prefix + fact, []).append(getattr(arm, fact))
    return samples


def _by_turns(epochs: list[Iterator[float]]) -> None:
    """Advance whichever epoch is behind, so that all of them pass through the same moments."""
    done = dict.fromkeys(range(len(epochs)), 0.0)
    while done:
        behind = min(done, key=lambda arm: done[arm])
        part = next(epochs[behind], None)
        if part is None:
            del done[behind]
        else:
            done[behind] = part


def _data(size: int) -> tuple[Tensor, Tensor]:
    """Noisy clusters: most samples are learned quickly, some never."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (size,), generator=draw)
    centres = torch.randn(CLASSES, FEATURES, generator=draw)
    inputs = 0.2 * centres[labels] + torch.randn(size, FEATURES, generator=draw)
    return inputs, labels
