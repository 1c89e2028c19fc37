"""What can be seen of the loader that draws from the sampler, at the moment when it begins to."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Sampler

from infobatch._loading.batches import Record, RecordedBatches
from infobatch.errors import MisalignedUpdateError

_FRAMES = 10  # between the sampler and the loader's iterator are three, with a host's wrapper five


def nothing() -> None:
    """Stands where a weak reference to an iterator will be."""


@dataclass(frozen=True)
class LoaderFacts:
    """What is known of a loader; the values of this class stand for "not seen".

    Attributes:
        iterator: a weak reference to the iterator of the `DataLoader`, which knows how many
            batches it has delivered.
        is_seen: whether there is such an iterator.
        num_workers: of the loader.
        is_kept: whether the loader itself keeps a reference to the iterator.
        batch_size: of a `BatchSampler` that draws from the pruner's sampler; 1 where the loader
            does not form batches.
        drop_last: of that `BatchSampler`.
        in_order: whether batches are delivered in the order in which they were drawn.
        reordered_by: the class that stands between sampler and loader and may change the order.
        recorded: the record of this iteration's batches, where they are of the user's own making.
        sharded_by: the class of a host that takes a part of each rank's share.
        skips: whether a host leaves out batches at the loader's start.
        dataset_size: length of the loader's data set.
    """

    iterator: Callable[[], Any] = nothing
    is_seen: bool = False
    num_workers: int = 0
    is_kept: bool = False
    batch_size: int | None = None
    drop_last: bool = False
    in_order: bool = True
    reordered_by: str | None = None
    recorded: Record | None = None
    sharded_by: str | None = None
    skips: bool = False
    dataset_size: int | None = None

    @classmethod
    def of_caller(cls, sampler: object) -> LoaderFacts:
        """Look up the call stack for what is iterating the sampler."""
        between: list[Any] = []  # from the sampler outwards
        ahead: list[Any] = []  # what iterates the sampler in another method than its __iter__
        frame = sys._getframe(2)
        for _ in range(_FRAMES):
            caller: Any = frame.f_locals.get("self")
            if hasattr(caller, "_index_sampler") and hasattr(caller, "_num_workers"):
                if not isinstance(caller, DataLoader):
                    return cls._of_iterator(caller, sampler)
            elif (
                caller is not None
                and caller is not sampler
                and all(caller is not other for other in between)
                and (frame.f_code.co_name == "__iter__" or isinstance(caller, RecordedBatches))
                and not isinstance(caller, DataLoader)
            ):
                between.append(caller)
            elif hasattr(type(caller), "__iter__") and not isinstance(
                caller, (DataLoader, BatchSampler)
            ):
                ahead.append(caller)
            if frame.f_back is None:
                break
            frame = frame.f_back
        facts: dict[str, Any] = {}
        for wrapper in between:
            if isinstance(wrapper, (Sampler, RecordedBatches)):
                facts.update(_of_wrapper(wrapper))
        for cache in ahead[:1]:  # such as batches that are made in set_epoch, for a later iteration
            if all(cache is not wrapper for wrapper in between) and cache is not sampler:
                facts["reordered_by"] = type(cache).__name__
        return cls(**facts)

    @classmethod
    def _of_iterator(cls, iterator: Any, sampler: object) -> LoaderFacts:
        facts: dict[str, Any] = {}
        outer: Any = iterator._index_sampler
        while outer is not None and outer is not sampler:
            facts.update(_of_wrapper(outer))
            if "reordered_by" in facts or "recorded" in facts:
                break
            inner = getattr(outer, "batch_sampler", None)  # its truth would be its length
            outer = getattr(outer, "sampler", None) if inner is None else inner
        if outer is sampler and not facts:
            facts["batch_size"] = 1
        workers = int(iterator._num_workers)
        data = getattr(iterator, "_dataset", None)
        return cls(
            iterator=weakref.ref(iterator),
            is_seen=True,
            num_workers=workers,
            is_kept=bool(getattr(iterator, "_persistent_workers", False))
            or type(iterator).__module__.startswith("torchdata."),
            in_order=workers == 0 or bool(getattr(iterator, "_in_order", True)),
            dataset_size=_length_of(data),
            **facts,
        )

    def deliverable(self, total: int) -> int:
        """How many of `total` samples are delivered: those in whole batches under drop_last."""
        return total - total % self.batch_size if self.drop_last and self.batch_size else total

    def check_usable(self, num_samples: int) -> None:
        """Check that the loader is one of the pruner's data, and that no host changes its share.

        Args:
            num_samples: N, of the pruner.

        Raises:
            MisalignedUpdateError: it is not, or a host does.
        """
        if self.dataset_size not in (None, num_samples):
            raise MisalignedUpdateError(
                f"the loader's data set has {self.dataset_size} samples, but the pruner was built "
                f"for {num_samples}, so its indices would name other samples; build pruner and "
                "loader from the same data set, such as one torch.utils.data.Subset"
            )
        if self.sharded_by is not None:
            raise MisalignedUpdateError(
                f"the host shards this sampler a second time (by {self.sharded_by}), although it "
                "already gives each rank its own share. Use the host's integration in "
                "infobatch.integrations, or have the host leave the loader's sampler alone"
            )
        if self.skips:
            raise MisalignedUpdateError(
                "the host skips batches at the start of the loader, but after load_state_dict this "
                "sampler by itself goes on where the saved run stood; iterate the loader without "
                "skip_first_batches"
            )


def _of_wrapper(wrapper: Any) -> dict[str, Any]:
    """The facts that one object between the sampler and the loader tells."""
    if isinstance(wrapper, RecordedBatches):
        return {"recorded": wrapper.record}
    shards = max(getattr(wrapper, "num_processes", 1), getattr(wrapper, "num_replicas", 1))
    if shards > 1:
        return {"sharded_by": type(wrapper).__name__}
    if getattr(wrapper, "skip_batches", 0) > 0:
        return {"skips": True}
    if isinstance(wrapper, BatchSampler) and _keeps_order(wrapper):
        if getattr(wrapper, "batch_sampler", None) is not None:
            return {}  # a host's, around the one that forms the batches
        return {"batch_size": wrapper.batch_size, "drop_last": wrapper.drop_last}
    return {"reordered_by": type(wrapper).__name__}


def _keeps_order(batches: BatchSampler) -> bool:
    """Whether a batch sampler forms batches in the order of its sampler.

    That is known of those of torch and torchdata, and of Accelerate's for one process, which hands
    on the batches of another.
    """
    return type(batches).__iter__ is BatchSampler.__iter__ or type(batches).__module__.startswith(
        ("torchdata.stateful_dataloader.", "accelerate.data_loader")
    )


def _length_of(data: object) -> int | None:
    if not isinstance(data, Sized):
        return None
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # some classes have the method and no answer
        return None
