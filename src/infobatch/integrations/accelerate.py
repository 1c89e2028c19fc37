"""Accelerate (`pip install "infobatch[accelerate]"`): `prepare` for a loop with a pruner.

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher
from accelerate.scheduler import AcceleratedScheduler

from infobatch.errors import MisalignedUpdateError
from infobatch.integrations.hosts import check_host
from infobatch.pruner import DataPruner
from infobatch.schedule import ProgressScheduler, counts_steps


def prepare(accelerator: Accelerator, pruner: DataPruner, *objects: Any) -> Any:
    """`accelerator.prepare` for a run with a pruner.

        pruner = InfoBatch(train_set, num_epochs)
        loader = DataLoader(train_set, batch_size=64, sampler=pruner.sampler)
        model, optimizer, loader = prepare(accelerator, pruner, model, optimizer, loader)

    The loader keeps the shares that the pruner plans for each process, instead of being sharded
    again. LR schedulers follow the progress of the run: step them after each batch, as always.
    `accelerator.save_state` and `load_state` take the pruner along, within an epoch too.

    Args:
        accelerator: of any number of processes.
        pruner: the run's pruner; the loaders among `objects` that have its sampler are the
            train loaders.
        objects: what `accelerator.prepare` takes, in any order. A scheduler is one of torch's
            that says for how many steps it was built, as OneCycleLR does, or a
            `ProgressScheduler`; the steps are those of a full run.

    Returns:
        what `accelerator.prepare` returns: the objects in the same order.

    Raises:
        MisalignedUpdateError: no loader has the pruner's sampler, or batches are dispatched
            from the main process.
        DistributedError, StateError: the pruner is for other ranks, or sharded.
        ValueError: a scheduler does not say for how many steps it was built.
    """
    check_host(pruner)
    others = [item for item in objects if not _is_scheduler(item)]
    done = accelerator.prepare(*others)
    prepared = iter([done] if len(others) == 1 else done)
    results = [None if _is_scheduler(item) else next(prepared) for item in objects]
    ours = [
        result
        for item, result in zip(objects, results, strict=True)
        if getattr(item, "sampler", None) is pruner.sampler
    ]
    if not ours:
        raise MisalignedUpdateError(
            "none of the loaders has this pruner's sampler; build the train loader with "
            "DataLoader(train_set, ..., sampler=pruner.sampler) and pass it to prepare"
        )
    for loader in ours:
        keep_shares(loader, pruner)
    pruner.sampler.host_counts_epochs = False  # its loaders call set_epoch with their own count
    optimizers = [item for item in results if hasattr(item, "step_was_skipped")]
    for place, item in enumerate(objects):
        if _is_scheduler(item):
            results[place] = _Following(item, pruner, optimizers)
            accelerator.register_for_checkpointing(results[place])
    accelerator.register_for_checkpointing(pruner)
    accelerator.register_save_state_pre_hook(lambda *_: pruner.synchronize())
    return results[0] if len(results) == 1 else tuple(results)


def keep_shares(loader: Any, pruner: DataPruner) -> None:
    """Let a loader that Accelerate has prepared give each process the pruner's share of it.

    Args:
        loader: what `accelerator.prepare` has made of a loader with the pruner's sampler.
        pruner: the run's pruner.

    Raises:
        DistributedError: Accelerate would shard the data for other ranks than the pruner does.
        MisalignedUpdateError: it dispatches batches from the main process.
    """
    if isinstance(loader, DataLoaderDispatcher):
        raise MisalignedUpdateError(
            "with dispatch_batches=True only the main process draws samples, so the others cannot "
            "tell whose losses they have; use DataLoaderConfiguration(dispatch_batches=False)"
        )
    shard = loader.batch_sampler
    is_sharded = isinstance(shard, BatchSamplerShard)
    check_host(pruner, place=(shard.process_index, shard.num_processes) if is_sharded else (0, 1))
    if is_sharded:
        if shard.split_batches:  # the loader's batch size is that of all processes together
            shard.batch_sampler.batch_size //= shard.num_processes
            shard.batch_size, shard.split_batches = shard.batch_sampler.batch_size, False
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
    pruner.sampler.batches_ahead = 1  # to know at the last batch that it is the last
    # gather_for_metrics would cut the last batch to what an unpruned epoch leaves over.
    loader._drop_last = True


def _is_scheduler(item: Any) -> bool:
    return counts_steps(item) or isinstance(item, ProgressScheduler)


class _Following(AcceleratedScheduler):
    """Steps by progress, where the optimizer has stepped."""

    def __init__(self, scheduler: Any, pruner: DataPruner, optimizers: list[Any]) -> None:
        if not isinstance(scheduler, ProgressScheduler):
            scheduler = ProgressScheduler(scheduler, pruner)
        super().__init__(scheduler, optimizers)

    def step(self, *args: Any, **kwargs: Any) -> None:
        skipped = any(optimizer.step_was_skipped for optimizer in self.optimizers)
        if self.gradient_state.sync_gradients and not skipped:
            self.scheduler.step()
