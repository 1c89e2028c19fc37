"""Check and time infobatch on a GPU, in less than five minutes; torch and numpy are all it needs.

python benchmarks/gpu.py --out gpu.json

Every way to train is compared with an oracle that keeps, sample by sample, what it has seen: the
scores must be the last losses, and each loss that of the planned weights. Without a GPU it says so
and ends; `--device cpu` runs what can be run there. Exit status 1: something is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

try:
    import infobatch  # noqa: F401
except ImportError:  # in a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from machine import machine, versions
from reference import Reference
from steps import cuda_waits, step_costs
from timing import Effort

from infobatch import InfoBatch

FEATURES, CLASSES, EPOCHS, BATCH = 64, 10, 4, 256
Batch = tuple[Tensor, Tensor, Tensor]  # inputs, labels, numbers of the samples; on the device


class Seen(NamedTuple):
    """What a step came to, on the device, so that nothing waits; scores None: the losses."""

    loss: Tensor
    losses: Tensor
    scores: Tensor | None = None


Step = Callable[[Tensor, Tensor, int], Seen]
"""Trains on inputs and labels of the batch with that number of its epoch."""


class Training:
    """A small classifier in training on a device, watched by the oracle.

    Args:
        device: such as "cuda".
        size: samples.
    """

    def __init__(self, device: str, size: int) -> None:
        draw = torch.Generator().manual_seed(0)
        labels = torch.randint(CLASSES, (size,), generator=draw)
        centres = torch.randn(CLASSES, FEATURES, generator=draw)
        inputs = 0.5 * centres[labels] + torch.randn(size, FEATURES, generator=draw)
        self.data = TensorDataset(inputs, labels, torch.arange(size))
        self.on_device = tuple(tensor.to(device) for tensor in self.data.tensors)
        self.device, self.size = device, size
        self.is_cuda = torch.device(device).type == "cuda"
        self.pruner = InfoBatch(size, EPOCHS)
        torch.manual_seed(0)
        hidden = nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, CLASSES)
        self.model = nn.Sequential(*hidden).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.expected = torch.full((size,), float("nan"))

    def losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """(B,) of a batch."""
        return F.cross_entropy(self.model(inputs), labels, reduction="none")

    def batches(self) -> Iterator[Batch]:
        """An epoch of what lies on the device already."""
        for batch in BatchSampler(self.pruner.sampler, BATCH, drop_last=False):
            rows = torch.tensor(batch)
            if self.is_cuda:
                rows = rows.pin_memory().to(self.device, non_blocking=True)
            inputs, labels, numbers = (tensor[rows] for tensor in self.on_device)
            yield inputs, labels, numbers

    def step(self, inputs: Tensor, labels: Tensor, number: int = 0) -> Seen:
        """The three lines."""
        losses = self.losses(inputs, labels)
        loss = self.pruner.update(losses)
        self.learn(loss)
        return Seen(loss, losses)

    def learn(self, loss: Tensor) -> None:
        """Backward and optimizer."""
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()

    def check(self, plan: Any, trained: list[Tensor], seen: list[Seen]) -> list[str]:
        """What is wrong with an epoch that has been trained."""
        wrong = []
        weights = torch.zeros(self.size, dtype=torch.float64)
        weights[plan.indices] = plan.weights
        if not torch.equal(torch.cat(trained).cpu(), plan.indices):
            wrong.append("the samples are not those of the plan, in its order")
        for numbers, step in zip(trained, seen, strict=True):
            rows, losses = numbers.cpu(), step.losses.double().cpu()
            scores = step.losses if step.scores is None else step.scores
            self.expected[rows] = scores.float().cpu()
            expected = (weights[rows] * losses).sum() / len(rows)
            near = 1e-2 if step.losses.dtype in (torch.float16, torch.bfloat16) else 1e-4
            if not torch.allclose(step.loss.double().cpu(), expected, rtol=near, atol=near):
                wrong.append(f"a loss is {float(step.loss):.6g}, not {float(expected):.6g}")
        scores = self.pruner.scores
        if not torch.equal(scores.isnan(), self.expected.isnan()):
            wrong.append("not the samples that were seen have a score")
        if not torch.allclose(scores, self.expected, equal_nan=True, rtol=1e-4, atol=1e-5):
            wrong.append("scores are not the last losses")
        return wrong

    def run(
        self, step: Step, batches: Callable[[], Iterable[Sequence[Tensor]]] | None = None
    ) -> list[str]:
        """Train by such steps, on such epochs of batches, and check each epoch."""
        wrong = []
        for _ in range(EPOCHS):
            plan, trained, seen = self.pruner.plan, [], []
            for number, (inputs, labels, rows) in enumerate((batches or self.batches)()):
                found = step(inputs, labels, number)
                trained.append(rows)
                seen.append(Seen(found.loss.detach(), found.losses.detach(), found.scores))
            wrong += self.check(plan, trained, seen)
        if not 0.05 < self.pruner.saved_fraction < 0.6:
            wrong.append(f"it saved {self.pruner.saved_fraction:.0%}, so it did not prune")
        return list(dict.fromkeys(wrong))


def plain(device: str, size: int) -> list[str]:
    """The three lines."""
    training = Training(device, size)
    return training.run(training.step)


def without_waiting(device: str, size: int) -> list[str]:
    """The same, where any wait of the host for the GPU is an error, from the second step on."""
    training = Training(device, size)
    if not training.is_cuda:
        return training.run(training.step)

    def step(inputs: Tensor, labels: Tensor, number: int) -> Seen:
        if number == 1:
            torch.cuda.set_sync_debug_mode("error")
        if (number + 1) * BATCH >= len(training.pruner.plan):
            torch.cuda.set_sync_debug_mode("default")  # the last one takes the losses in
        return training.step(inputs, labels)

    try:
        return training.run(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def mixed_precision(device: str, size: int) -> list[str]:
    """Autocast with losses in half precision, and a GradScaler."""
    training = Training(device, size)
    half = torch.float16 if training.is_cuda else torch.bfloat16
    scaler = torch.amp.GradScaler(training.device, enabled=training.is_cuda)

    def step(inputs: Tensor, labels: Tensor, _number: int) -> Seen:
        with torch.autocast(training.device, dtype=half):
            logits = training.model(inputs)
        losses = F.cross_entropy(logits.float(), labels, reduction="none").to(half)
        loss = training.pruner.update(losses)
        training.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        return Seen(loss, losses)

    return training.run(step)


def unlike_batches(device: str, size: int) -> list[str]:
    """Every other batch with scores of its own."""
    training = Training(device, size)

    def step(inputs: Tensor, labels: Tensor, number: int) -> Seen:
        losses = training.losses(inputs, labels)
        scores = losses.detach().sqrt() if number % 2 else None
        loss = training.pruner.update(losses, scores=scores)
        training.learn(loss)
        return Seen(loss, losses, scores)

    return training.run(step)


def compiled(device: str, size: int) -> list[str]:
    """`update` in one graph with the model, on CUDA with CUDA graphs."""
    training = Training(device, size)
    mode = "reduce-overhead" if training.is_cuda else "default"

    @torch.compile(fullgraph=True, mode=mode)
    def forward(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses = training.losses(inputs, labels)
        return training.pruner.update(losses), losses

    def step(inputs: Tensor, labels: Tensor, _number: int) -> Seen:
        torch.compiler.cudagraph_mark_step_begin()
        loss, losses = forward(inputs, labels)
        kept = Seen(loss.detach().clone(), losses.detach().clone())  # of a graph's own memory
        training.learn(loss)
        return kept

    return training.run(step)


def prefetched(device: str, size: int) -> list[str]:
    """A loader with workers, and batches that are on their way to the device one step ahead."""
    training = Training(device, size)
    loader = DataLoader(
        training.data, BATCH, sampler=training.pruner.sampler, num_workers=2,
        pin_memory=training.is_cuda, multiprocessing_context="spawn", persistent_workers=True,
    )  # fmt: skip
    training.pruner.sampler.batches_ahead = 1
    return training.run(training.step, lambda: ahead(loader, training.device))


def ahead(loader: Iterable[list[Tensor]], device: str) -> Iterator[list[Tensor]]:
    """Batches on the device; while one is trained on, the next is sent on a stream of its own."""
    stream = torch.cuda.Stream() if torch.device(device).type == "cuda" else None

    def send(batch: list[Tensor]) -> list[Tensor]:
        with torch.cuda.stream(stream) if stream is not None else torch.no_grad():
            return [tensor.to(device, non_blocking=True) for tensor in batch]

    coming = None
    for batch in loader:
        following = send(batch)
        if coming is not None:
            yield coming
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
            for tensor in following:
                tensor.record_stream(torch.cuda.current_stream())
        coming = following
    if coming is not None:
        yield coming


WAYS = (plain, without_waiting, mixed_precision, unlike_batches, compiled, prefetched)


def timings(reference: Path | None, effort: Effort) -> list[dict[str, Any]]:
    """Microseconds of `update` beside `losses.mean()`, and of the reference's where it is given."""
    found = []
    for batch_size in (128, 1024):
        samples = step_costs(
            1_280_000, batch_size, requires_grad=True, device="cuda", effort=effort
        )
        found.append({"batch_size": batch_size, "samples": samples})
        if reference is not None:
            found[-1]["samples"]["reference"] = theirs(reference, batch_size)
    return found


def theirs(path: Path, batch_size: int, size: int = 50_000) -> list[float]:
    """Microseconds of the reference's `update`, the mean of an epoch; some epochs."""
    pruner = Reference(path).pruner(torch.rand(size).cuda())
    losses, result = torch.rand(batch_size, device="cuda"), []
    for _ in range(5):
        seconds, steps = 0.0, size // batch_size
        for number in range(steps):
            rows = torch.arange(number * batch_size, (number + 1) * batch_size)
            pruner.set_active_indices(rows)
            start = time.perf_counter()
            pruner.update(losses.clone())
            seconds += time.perf_counter() - start
        result.append(seconds / steps * 1e6)
    return result


def main() -> int:
    """Run all that can be run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help='"cpu": what can be checked there')
    parser.add_argument("--size", type=int, default=20_000, help="samples (default: 20000)")
    parser.add_argument("--reference", type=Path, metavar="PATH", help="see run.py")
    parser.add_argument("--out", type=Path, help="the results file")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked")
        return 0
    results: dict[str, Any] = {"versions": versions(), "machine": machine(), "checks": {}}
    for way in WAYS:
        start = time.perf_counter()
        try:
            wrong = way(arguments.device, arguments.size)
        except Exception as error:  # the others are still of interest
            wrong = [f"{type(error).__name__}: {error}"]
        results["checks"][way.__name__] = wrong
        print(f"{way.__name__}: {'; '.join(wrong) or 'right'}, {time.perf_counter() - start:.1f} s")
        save(arguments.out, results)
    if arguments.device.startswith("cuda"):
        results["waits"] = cuda_waits(50_000, 128)
        results["timings"] = timings(arguments.reference, Effort(3, 5.0))
        print(f"waits for the device: {results['waits']}\n{json.dumps(results['timings'])}")
        save(arguments.out, results)
    return int(any(results["checks"].values()) or results.get("waits", False))


def save(out: Path | None, results: dict[str, Any]) -> None:
    """Write what there is, so that a run that is cut short leaves it."""
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
