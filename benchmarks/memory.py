"""Memory a sample: held through an epoch, and at the peak while an epoch is planned."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import torch
from contestants import Theirs, half_below_mean
from reference import Reference, one_pass
from torch.utils.data import BatchSampler, RandomSampler

from infobatch import InfoBatch

BATCH_SIZE, SMALL_BATCH = 4096, 128
Bytes = dict[str, float]


def memory(size: int, reference: Reference | None) -> dict[str, Bytes]:
    """Bytes a sample of the full data set, by contestant.

    "steady" is what is held in the middle of a pruned epoch, "peak" the most that was held from
    the end of the epoch before to the first batch of this one, during which it is planned. numpy
    and Python report their allocations to tracemalloc; torch does not, so the storages of tensors
    that a contestant holds are added by hand.
    """
    result = {"infobatch": ours(size), "RandomSampler": plain(size)}
    if reference is not None:
        result["reference"] = theirs(reference, size)
    return result


def ours(size: int) -> Bytes:
    """A pruner that has trained an epoch, measured as it moves on to a pruned one."""
    losses, batch_size = torch.from_numpy(half_below_mean(size)), min(BATCH_SIZE, size // 16)
    with Tracing() as trace:
        pruner = InfoBatch(size, 10)
        # The warm-up epoch: full, and every sample gets a score.
        for batch in BatchSampler(pruner.sampler, batch_size, drop_last=False):
            pruner.update(losses[torch.tensor(batch)])
        del batch
        trace.reset_peak()
        # Small batches: the list of indices that a loader holds is not the pruner's.
        batches = iter(BatchSampler(pruner.sampler, SMALL_BATCH, drop_last=False))
        len(pruner.sampler)  # as a progress bar would ask before the epoch
        pruner.update(losses[: len(next(batches))])
        pruner._run.planner.ahead.wait()  # the order of the next epoch
        peak = trace.peak() + storage_bytes(pruner)
        pruner.update(losses[: len(next(batches))])
        steady = trace.current() + storage_bytes(pruner)
    assert len(pruner.plan) < 0.8 * size
    return {"steady": steady / size, "peak": peak / size}


def plain(size: int) -> Bytes:
    """RandomSampler in the middle of an epoch; the permutation itself is torch's, 8 bytes."""
    with Tracing() as trace:
        batches = iter(BatchSampler(RandomSampler(range(size)), SMALL_BATCH, drop_last=False))
        next(batches)
        steady, peak = trace.current(), trace.peak() + 8 * size
    return {"steady": steady / size, "peak": peak / size}


def theirs(reference: Reference, size: int) -> Bytes:
    """The reference, as it moves on from one pruned epoch to the next."""
    with Tracing() as trace:
        contestant = Theirs(reference, size)
        iter(contestant.sampler)
        gc.collect()
        tracemalloc.reset_peak()
        batches = iter(BatchSampler(one_pass(contestant.sampler), SMALL_BATCH, drop_last=False))
        next(batches)
        held = storage_bytes(contestant.pruner)
        steady, peak = trace.current() + held, trace.peak() + held
        # The copy of the scores that only this benchmark needs was made by numpy.
        own = 4 * size
    return {"steady": (steady - own) / size, "peak": (peak - own) / size}


class Tracing:
    """tracemalloc, counted from where it was switched on."""

    def __enter__(self) -> Tracing:
        gc.collect()
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *exception: object) -> None:
        tracemalloc.stop()

    def current(self) -> int:
        """Bytes that are allocated now."""
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        tracemalloc.reset_peak()

    def peak(self) -> int:
        """The most bytes that were allocated at once."""
        return tracemalloc.get_traced_memory()[1] - self._before


def storage_bytes(root: object) -> int:
    """Bytes in the storages of all tensors that can be reached from an object's attributes.

    Storages that lie in numpy's memory would be counted twice; none is kept by a contestant.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(root, set())}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value[:64]:  # long lists here hold plain numbers
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith("infobatch"):
        yield from _tensors(vars(value), seen)
