"""For hosts that build the loader themselves: the same loader, with the pruner's sampler."""

from __future__ import annotations

from typing import Any, Protocol

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from infobatch._loading.sampler import PlanSampler

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


class Plans(Protocol):
    """Anything that plans epochs of a data set, such as a `DataPruner`."""

    num_samples: int
    sampler: PlanSampler


def planned_loader(
    loader: DataLoader[Any], pruner: Plans, *, persistent_workers: bool | None = None
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
