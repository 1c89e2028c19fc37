"""What the callbacks for `lightning` and `pytorch_lightning` share: all but their base class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infobatch.errors import EpochError, MisalignedUpdateError, StateError
from infobatch.pruner import DataPruner
from infobatch.schedule import ProgressScheduler


class PruningHooks:
    """The hooks of the callback; see `infobatch.integrations.lightning.InfoBatchCallback`."""

    def __init__(self, pruner: DataPruner) -> None:
        if not isinstance(pruner, DataPruner):
            raise TypeError(f"pruner must be an InfoBatch or a DataPruner, got {pruner!r}")
        self.pruner = pruner
        self._saved: Mapping[str, Any] | None = None
        self._after_reset: int | None = None

    # ------------------------------------------------------------------ start

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Hand the pruner to the module and take the first place among the callbacks."""
        if stage != "fit":
            return
        pl_module.pruner = self.pruner
        trainer.callbacks.remove(self)
        trainer.callbacks.insert(0, self)  # so that progress bars read the lengths set here

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Let step-wise LR schedulers follow progress; then go on from the checkpoint, if any.

        In this order, and after the module has built its schedulers: `estimated_stepping_batches`
        has then been that of a full run, in a resumed run too.
        """
        self._check_run(trainer)
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and not config.reduce_on_plateau:
                steps = getattr(config.scheduler, "total_steps", None)
                if steps is None:
                    steps = max(1, int(trainer.estimated_stepping_batches) // config.frequency)
                config.scheduler = ProgressScheduler(
                    config.scheduler, self.pruner, total_steps=steps
                )
        if self._saved is not None:
            self.pruner.load_state_dict(self._saved)

    def _check_run(self, trainer: Any) -> None:
        pruner = self.pruner
        if trainer.overfit_batches:
            raise ValueError(
                "overfit_batches trains on the same few batches again and again, so there is "
                "nothing to prune, and it replaces the sampler; leave InfoBatchCallback and "
                "pruner.update away while you use it"
            )
        if trainer.max_epochs != pruner.num_epochs and not trainer.fast_dev_run:
            raise EpochError(
                f"Trainer(max_epochs={trainer.max_epochs}) must be the pruner's "
                f"num_epochs={pruner.num_epochs}, as the last part of the run is annealed"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that the trainer draws from this pruner's sampler and stands at its epoch."""
        loop = trainer.fit_loop
        loaders = loop._combined_loader.flattened
        if all(getattr(loader, "sampler", None) is not self.pruner.sampler for loader in loaders):
            raise MisalignedUpdateError(
                "no train dataloader has this pruner's sampler; build it with "
                "DataLoader(train_set, ..., sampler=pruner.sampler)"
            )
        if len(loaders) > 1 and loop._combined_loader._mode == "max_size_cycle":
            raise MisalignedUpdateError(
                "beside other train dataloaders, the pruned one would be iterated several times in "
                'an epoch; wrap them in CombinedLoader({...}, mode="min_size") or "max_size"'
            )
        if self.pruner.epoch != trainer.current_epoch:
            where = f"the pruner stands at epoch {self.pruner.epoch}, the trainer at epoch"
            raise StateError(
                f"{where} {trainer.current_epoch} (0-based). Build a new pruner for a new run; to "
                "resume, the checkpoint must have been saved with this callback"
            )
        self._resume(trainer)

    def _resume(self, trainer: Any) -> None:
        """Start the loader anew where a checkpoint says; the trainer counts from the epoch on."""
        if self._saved is None:
            self._set_lengths(trainer)
            return
        self._saved = None
        loop = trainer.fit_loop
        done = int(loop.epoch_loop.batch_progress.current.ready)
        within = self.pruner.is_within_epoch
        self._set_lengths(trainer, done=done if within else 0)
        loop._data_fetcher.setup(loop._combined_loader)
        iter(loop._data_fetcher)  # it may have read ahead before the state was loaded
        loop._data_fetcher.length = loop.max_batches
        if not within and done:  # saved with the last batch of an epoch, which has to be closed
            self._after_reset, loop.max_batches = loop.max_batches, done

    # ------------------------------------------------------------------ epochs

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the trainer how long this epoch is: it has kept the length of the first."""
        self._set_lengths(trainer)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a resume between two epochs: the length of the second."""
        if self._after_reset is not None:
            trainer.fit_loop.max_batches, self._after_reset = self._after_reset, None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what the epoch has saved."""
        self.pruner.end_epoch()  # where limit_train_batches has left it early
        pl_module.log_dict(self.pruner.metrics(), rank_zero_only=True)

    def _set_lengths(self, trainer: Any, done: int = 0) -> None:
        loop = trainer.fit_loop
        combined = loop._combined_loader
        limit = trainer.limit_train_batches
        whole = [done + len(loader) for loader in combined.flattened]
        combined.limits = [
            min(length, limit) if isinstance(limit, int) else max(1, int(length * limit))
            for length in whole
        ]
        shorter = combined._mode == "min_size"
        loop.max_batches = min(combined.limits) if shorter else max(combined.limits)
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The pruner's state; a collective operation within an epoch of a distributed run."""
        self.pruner.synchronize()
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the state until the module has built its optimizers and schedulers."""
        self._saved = state_dict
