"""Large data sets: planning and memory at 10^8 in one process, and one rank's share of 10^9.

python benchmarks/scale.py
python benchmarks/scaling_page.py

Takes some 6 GiB and ten minutes. Each measurement is written as it comes, and one that is in the
results file already is not taken again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import PRUNE_RATIO, Ours, half_below_mean
from machine import machine, versions
from memory import SMALL_BATCH, Tracing, storage_bytes
from numpy.typing import NDArray
from timing import Effort, brief, interleave, timed
from torch.utils.data import BatchSampler

from infobatch import InfoBatch
from infobatch.policies import PAPER_QUANTILES

HAND_OUT_BATCH = 1024


@dataclass
class Alike:
    """Rank 0 of many, of which all others hold what this one holds: a `Communicator`.

    What they would send is what this rank sends, but for their rank, which is the last number of
    a header; the first thing that is sent is a header.
    """

    world_size: int
    rank: int = 0
    sent: list[int] = field(default_factory=list)

    def all_gather(self, data: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The same from every rank."""
        self.sent.append(data.nbytes)
        gathered = [data.copy() for _ in range(self.world_size)]
        if data.nbytes == self.sent[0]:
            for rank, part in enumerate(gathered):
                part.view(np.int64)[-1] = rank
        return gathered


def planning(size: int, ranks: Alike | None, effort: Effort) -> dict[str, list[float]]:
    """Seconds to plan a pruned epoch, against one random mask and one permutation."""
    rng = np.random.default_rng(0)
    ours = Ours(size, pruned=True, ranks=ranks)

    def floor() -> tuple[object, object]:
        return rng.random(size) < PRUNE_RATIO, rng.permutation(size)

    return interleave({"numpy floor": lambda: timed(floor), "infobatch": ours.plan}, effort)


def handing_out(size: int, ranks: Alike | None, effort: Effort) -> dict[str, list[float]]:
    """Seconds for an epoch of planning, drawing batches, and updating with each."""
    losses, ours = torch.rand(HAND_OUT_BATCH), Ours(size, pruned=True, ranks=ranks)
    return interleave({"infobatch": lambda: ours.epoch(HAND_OUT_BATCH, losses)}, effort)


def memory(size: int, ranks: Alike | None) -> dict[str, float]:
    """Bytes a sample of this process: in the middle of a pruned epoch, and while planning it."""
    world_size = 1 if ranks is None else ranks.world_size
    scores = torch.from_numpy(half_below_mean(size))
    with Tracing() as trace:
        pruner = InfoBatch(size * world_size, 10, process_group=ranks, sharded=ranks is not None)
        batches = iter(BatchSampler(pruner.sampler, SMALL_BATCH * 64, drop_last=False))
        last = size - len(pruner.sampler) % (SMALL_BATCH * 64)
        for number, batch in enumerate(batches, start=1):
            if number * SMALL_BATCH * 64 >= last:
                trace.reset_peak()  # the last update of an epoch plans the next one, if sharded
            pruner.update(scores[torch.tensor(batch) // world_size])
        del batches, batch
        batches = iter(BatchSampler(pruner.sampler, SMALL_BATCH, drop_last=False))
        pruner.update(scores[: len(next(batches))])
        peak = trace.peak() + storage_bytes(pruner)
        pruner.update(scores[: len(next(batches))])
        steady = trace.current() + storage_bytes(pruner)
    return {"steady": steady / size, "peak": peak / size}


def wire(size: int, ranks: Alike, quantiles: object) -> dict[str, list[int]]:
    """Bytes of each collective in the first epoch, and in the epochs after it."""
    pruner = InfoBatch(
        size * ranks.world_size, 4, process_group=ranks, sharded=True, quantiles=quantiles
    )
    epochs = []
    for _ in range(3):
        before = len(ranks.sent)
        for batch in BatchSampler(pruner.sampler, 4096, drop_last=False):
            pruner.update(torch.rand(len(batch)))
        epochs.append(ranks.sent[before:])
    return {"first": epochs[0], "pruned": epochs[1]}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=10**8, help="in one process (10^8)")
    parser.add_argument("--total", type=int, default=10**9, help="over all ranks (10^9)")
    parser.add_argument("--ranks", type=int, default=64, help="of which one is run (64)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each timing (3)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/scaling/scale.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    effort = Effort(options.repeats, 0)
    share = options.total // options.ranks
    command = "python benchmarks/scale.py"
    for name in ("size", "total", "ranks", "repeats"):
        if getattr(options, name) != parser.get_default(name):
            command += f" --{name} {getattr(options, name)}"
    results: dict[str, Any] = {
        "format": 1, "command": command, "versions": versions(), "machine": machine(),
        "measurements": {},
    }  # fmt: skip
    if options.out.exists():
        results["measurements"] = json.loads(options.out.read_text())["measurements"]

    def note(name: str, size: int, ranks: int, measure: Callable[[], Any]) -> None:
        if name in results["measurements"]:
            return
        found = measure()
        results["measurements"][name] = {"size": size, "ranks": ranks, "found": found}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        shown = brief(found) if "infobatch" in found else found
        print(f"{name}: {shown}", flush=True)

    for where, size, ranks in (("share", share, options.ranks), ("whole", options.size, 1)):

        def others() -> Alike | None:
            return Alike(ranks) if ranks > 1 else None  # noqa: B023  # called at once

        note(f"{where}, planning", size, ranks, lambda: planning(size, others(), effort))  # noqa: B023
        note(f"{where}, epoch", size, ranks, lambda: handing_out(size, others(), effort))  # noqa: B023
        note(f"{where}, memory", size, ranks, lambda: memory(size, others()))  # noqa: B023
    for name, quantiles in (("mean", None), ("quantiles", PAPER_QUANTILES)):
        sent = wire(min(share, 100_000), Alike(options.ranks), quantiles)
        note(f"wire, {name}", min(share, 100_000), options.ranks, lambda: sent)  # noqa: B023


if __name__ == "__main__":
    main()
