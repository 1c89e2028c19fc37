"""What modules for hosts need beside the public pruner: its loader, its place, its next weights."""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from infobatch.errors import DistributedError, EpochError, StateError
from infobatch.pruner import DataPruner

_KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
)


def planned_loader(
    loader: DataLoader[Any], pruner: DataPruner, *, persistent_workers: bool | None = None
) -> DataLoader[Any]:
    """A loader like this one that draws from the pruner's sampler.

    Its data set, batch size, `drop_last`, workers and all other settings are kept; its own
    sampler and shuffling are not. The given loader is left as it is. A loader of a derived class
    (one that repeats its sampler for ever, say) becomes a plain `DataLoader`.

    Args:
        loader: the loader that the host has built, over the pruner's data set.
        pruner: the run's pruner.
        persistent_workers: as of `DataLoader`, if there are workers; None: as the given loader's.

    Raises:
        ValueError: the loader's data set is an `IterableDataset`, has another length than the
            pruner's, or its batches do not come from a plain `BatchSampler`.
    """
    data = loader.dataset
    if isinstance(data, IterableDataset):
        raise ValueError(
            "planned_loader needs a data set with a length and indices, got an IterableDataset; "
            "see pruner.stream_filter"
        )
    if len(data) != pruner.num_samples:  # type: ignore[arg-type]
        raise ValueError(
            f"the loader's data set has {len(data)} samples, the pruner was built for "  # type: ignore[arg-type]
            f"{pruner.num_samples}; build it from the data set that the host trains on"
        )
    batch_size, drop_last = loader.batch_size, loader.drop_last
    given: Any = loader.batch_sampler
    if batch_size is None and given is not None:
        if type(given) is not BatchSampler:
            raise ValueError(
                f"the loader's batches come from a {type(given).__name__}, which decides itself "
                "which samples go together; give it pruner.sampler as its sampler"
            )
        batch_size, drop_last = given.batch_size, given.drop_last
    settings = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)}
    if persistent_workers is not None:
        settings["persistent_workers"] = persistent_workers and loader.num_workers > 0
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=pruner.sampler,
        drop_last=drop_last,
        **settings,
    )


def check_host(
    pruner: DataPruner, *, num_epochs: float | None = None, place: tuple[int, int] | None = None
) -> None:
    """Check that the run of a host with epochs and checkpoints of its own can be this one.

    Args:
        pruner: of the run.
        num_epochs: of the host's run, if it has such a number.
        place: (rank, world size) for which the host would shard data, once it knows.

    Raises:
        EpochError: the number of epochs is not that of the pruner.
        DistributedError: the pruner's place is another, such as under tensor parallelism.
        StateError: `sharded=True`: hosts save the state of one process.
    """
    if num_epochs is not None and num_epochs != pruner.num_epochs:
        raise EpochError(
            f"the host's number of epochs must be the pruner's num_epochs={pruner.num_epochs}, "
            f"as the last part of the run is annealed, got {num_epochs:g}"
        )
    world = pruner._run.world()
    if place is not None and place != (world.rank, world.size):
        raise DistributedError(
            f"the host gives this process the data of rank {place[0]} of {place[1]}, the "
            f"pruner that of rank {world.rank} of {world.size}; build the pruner with "
            f"process_group= of the data-parallel ranks, or with rank= and world_size="
        )
    if pruner.sharded:
        raise StateError(
            "sharded=True gives each rank a state of its own, of which this host's checkpoints "
            "would have one; use sharded=False, or a loop of your own that saves them all"
        )


def coming_divisor(pruner: DataPruner, count: int) -> float:
    """What `update` will divide the sum of the next weighted losses by under "mean".

    `count`; or, where a rank has padding, the mean number over ranks of samples that are not.
    """
    if pruner.sampler.is_paused:
        return float(count)
    share, batch = pruner._run.coming(count)
    divisor = share.divisor(batch.start, batch.start + count)
    return float(count) if divisor is None else divisor
