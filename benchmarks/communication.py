"""What ranks tell each other, and what it costs: small DDP runs on loopback. Raw results as JSON.

python benchmarks/communication.py --reference InfoBatch
python benchmarks/scaling_page.py

Every arm trains the same network on the same data in the same processes, one epoch in turn with
the others, so that a busy moment hits all of them alike. Collectives are counted where they are
made: in `torch.distributed.all_gather`. DDP's own, of gradients, are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from machine import machine, versions
from reference import Reference
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from infobatch import InfoBatch

BATCH_SIZE = 128  # of one rank
FEATURES, CLASSES = 128, 10


class Samples(Dataset[Any]):
    """Random inputs whose classes can be learned, some more easily than others."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, FEATURES, generator=generator)
        self.labels = (3 * self.inputs[:, :CLASSES]).argmax(1)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]


@dataclass
class Arm:
    """One way to train: where the batches come from, and how losses become one number."""

    loader: Any
    reduce: Callable[[Tensor], Tensor]
    announce: Callable[[int], object] | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(FEATURES, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
            nn.Linear(512, CLASSES),
        )  # fmt: skip
        self.model = DistributedDataParallel(network)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)

    def epoch(self, number: int) -> dict[str, float]:
        """Train one epoch; seconds, steps, samples of this rank, and what was gathered."""
        dist.barrier()
        with Counting() as counted:
            start, steps, samples = time.perf_counter(), 0, 0
            if self.announce is not None:
                self.announce(number)
            for inputs, labels in self.loader:
                losses = F.cross_entropy(self.model(inputs), labels, reduction="none")
                loss = self.reduce(losses)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                steps += 1
                samples += len(labels)
            dist.barrier()
            seconds = time.perf_counter() - start
        return {"seconds": seconds, "steps": steps, "samples": samples, **vars(counted)}


class Counting:
    """Counts the collectives that `torch.distributed.all_gather` makes, and the bytes sent."""

    def __init__(self) -> None:
        self.collectives = self.bytes_sent = 0

    def __enter__(self) -> Counting:
        Counting.original = dist.all_gather

        def counted(gathered: list[Tensor], own: Tensor, *rest: Any, **more: Any) -> Any:
            self.collectives += 1
            self.bytes_sent += own.numel() * own.element_size()
            return Counting.original(gathered, own, *rest, **more)

        dist.all_gather = counted
        return self

    def __exit__(self, *exception: object) -> None:
        dist.all_gather = Counting.original


def arms(size: int, num_epochs: int, reference: Path | None) -> dict[str, Arm]:
    """The contestants."""
    data = Samples(size)
    plain = DistributedSampler(data, shuffle=True)
    result = {
        "plain DDP": Arm(
            DataLoader(data, BATCH_SIZE, sampler=plain),
            lambda losses: losses.mean(),
            announce=plain.set_epoch,
        )
    }
    for name, prune_ratio in (("infobatch, nothing pruned", 0.0), ("infobatch", 0.5)):
        pruner = InfoBatch(data, num_epochs, prune_ratio, delta=1.0)
        result[name] = Arm(DataLoader(data, BATCH_SIZE, sampler=pruner.sampler), pruner.update)
    if reference is not None:
        result["reference"] = of_reference(Reference(reference), data, num_epochs)
    return result


def of_reference(reference: Reference, data: Samples, num_epochs: int) -> Arm:
    """The reference as its README uses it; its loader patch is on for its own epochs only."""
    theirs = reference.distributed(data, num_epochs)
    return Arm(reference.loader(DataLoader(theirs, BATCH_SIZE, sampler=theirs.sampler)),
               theirs.update)  # fmt: skip


def one_rank(rank: int, world_size: int, folder: str, options: argparse.Namespace) -> None:
    """What each process does; rank 0 writes the results."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    contestants = arms(options.size, options.epochs, options.reference)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    names = list(contestants)
    for epoch in range(options.epochs):
        turn = epoch % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(contestants[name].epoch(epoch))
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(samples))
    dist.destroy_process_group()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=Path, help="a checkout of the public reference")
    parser.add_argument("--size", type=int, default=20_480, help="samples (default: 20,480)")
    parser.add_argument("--epochs", type=int, default=9, help="of each arm (default: 9)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="default: 2 4")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/scaling/communication.json"))
    options = parser.parse_args()
    runs = []
    for world_size in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(one_rank, (world_size, folder, options), nprocs=world_size)
            samples = json.loads((Path(folder) / "result.json").read_text())
        runs.append({"ranks": world_size, "size": options.size, "epochs": samples})
        print(f"{world_size} ranks done", flush=True)
    reference = Reference(options.reference).describe() if options.reference else None
    facts = {"format": 1, "versions": versions(), "machine": machine(), "reference": reference}
    command = "python benchmarks/communication.py" + (" --reference InfoBatch" if reference else "")
    for name in ("size", "epochs"):
        if getattr(options, name) != parser.get_default(name):
            command += f" --{name} {getattr(options, name)}"
    options.out.write_text(json.dumps({**facts, "command": command, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
