"""What the callbacks for `lightning` and `pytorch_lightning` share: all but their base class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infobatch.errors import EpochError, MisalignedUpdateError, StateError
from infobatch.integrations.hosts import check_host
from infobatch.pruner import DataPruner
from infobatch.schedule import ProgressScheduler, counts_steps

_FINDERS = {"LearningRateFinder", "BatchSizeFinder"}  # of either package, and what is derived


class PruningHooks:
    """The hooks of the callback; see `infobatch.integrations.lightning.InfoBatchCallback`."""

    def __init__(self, pruner: DataPruner) -> None:
        if not isinstance(pruner, DataPruner):
            raise TypeError(f"pruner must be an InfoBatch or a DataPruner, got {pruner!r}")
        self.pruner = pruner
        self._saved: Mapping[str, Any] | None = None
        self._after_reset: int | None = None
        self._before: Mapping[str, Any] | None = None  # of a fast_dev_run, which does not count
        self._is_training = False

    # ------------------------------------------------------------------ start

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Hand the pruner to the module and take the first place among the callbacks."""
        self._saved = None  # of an evaluation's checkpoint
        if stage != "fit":
            return
        self._stop()
        self._check_run(trainer)
        self.pruner.sampler.host_counts_epochs = False  # compared once, in on_train_start
        pl_module.pruner = self.pruner
        trainer.callbacks.remove(self)
        trainer.callbacks.insert(0, self)  # so that progress bars read the lengths set here

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Let step-wise LR schedulers follow progress; then go on from the checkpoint, if any.

        In this order, and after the module has built its schedulers: `estimated_stepping_batches`
        has then been that of a full run, in a resumed run too.

        A finder of learning rates or batch sizes comes next: it takes the callbacks away, trains,
        undoes its steps, and restores the callbacks' states.
        """
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and counts_steps(config.scheduler):
                steps = getattr(config.scheduler, "total_steps", None)
                if steps is None:
                    steps = max(1, int(trainer.estimated_stepping_batches) // config.frequency)
                config.scheduler = ProgressScheduler(
                    config.scheduler, self.pruner, total_steps=steps
                )
        if self._saved is not None:
            self.pruner.load_state_dict(self._saved)
        if trainer.fast_dev_run:
            self._before = self.pruner.state_dict()
        else:
            self.pruner.sampler.is_paused = any(map(_is_finder, trainer.callbacks))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget a fast_dev_run; go on from a tuner, which ends like this."""
        self._stop()
        if self._before is not None:
            self.pruner.load_state_dict(self._before)
            self._before = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Go on from what has failed."""
        self._stop()

    def _stop(self) -> None:
        self.pruner.sampler.is_paused = self._is_training = False

    def _check_run(self, trainer: Any) -> None:
        pruner = self.pruner
        if trainer.overfit_batches:
            raise ValueError(
                "overfit_batches trains on the same few batches again and again, so there is "
                "nothing to prune, and it replaces the sampler; leave InfoBatchCallback and "
                "pruner.update away while you use it"
            )
        if trainer.fast_dev_run:
            return
        if trainer.max_steps != -1:
            raise EpochError(
                "pruned epochs have fewer steps, and the last ones are annealed, so the run must "
                f"be measured in epochs, got max_steps={trainer.max_steps}; set max_epochs alone"
            )
        check_host(pruner, num_epochs=trainer.max_epochs)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that the trainer draws the pruner's share and stands at its epoch."""
        ranks = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
        check_host(self.pruner, place=(ranks["rank"], ranks["num_replicas"]) if ranks else (0, 1))
        self._check_loaders(trainer.fit_loop._combined_loader)
        fetcher = trainer.fit_loop._data_fetcher
        if self.pruner.sampler.is_paused:  # no finder has come
            self.pruner.sampler.is_paused = False
            iter(fetcher)
        if hasattr(fetcher, "prefetch_batches") and fetcher.length is not None:
            self.pruner.sampler.batches_ahead = 0  # it reads ahead where it knows no length
        state, self._saved = self._saved, None
        if state is not None:  # again, for strategies that restore after on_fit_start
            self.pruner.load_state_dict(state)
        epochs_ahead = trainer.current_epoch - self.pruner.epoch
        if state is not None and epochs_ahead == 1 and self.pruner.is_within_epoch:
            self.pruner.end_epoch()  # saved with the last batch that limit_train_batches allows
            epochs_ahead = 0
        is_to_close = state is not None and epochs_ahead == -1 and not self.pruner.is_within_epoch
        if epochs_ahead and not is_to_close:
            raise StateError(
                f"the pruner stands at epoch {self.pruner.epoch}, the trainer at epoch "
                f"{trainer.current_epoch} (0-based). Build a new pruner for a new run; to resume, "
                "the checkpoint must have been saved with this callback"
            )
        if state is None:
            self._set_lengths(trainer)
        else:
            self._resume(trainer, is_to_close=is_to_close)
        self._is_training = True

    def _check_loaders(self, combined: Any) -> None:
        loaders = combined.flattened
        if all(getattr(loader, "sampler", None) is not self.pruner.sampler for loader in loaders):
            raise MisalignedUpdateError(
                "no train dataloader has this pruner's sampler; build it with "
                "DataLoader(train_set, ..., sampler=pruner.sampler)"
            )
        if len(loaders) > 1 and combined._mode == "max_size_cycle":
            raise MisalignedUpdateError(
                "beside other train dataloaders, the pruned one would be iterated several times in "
                'an epoch; wrap them in CombinedLoader({...}, mode="min_size") or "max_size"'
            )

    def _resume(self, trainer: Any, *, is_to_close: bool) -> None:
        """Start the loader anew where a checkpoint says; the trainer counts from the epoch on.

        A checkpoint made with the last batch of an epoch has all of its losses, but the trainer
        has not closed it. It does so when it finds that so many batches are what the epoch has:
        as the epoch that it stands at, after validation, or else before it starts the next.
        """
        loop = trainer.fit_loop
        done = int(loop.epoch_loop.batch_progress.current.ready)
        within = self.pruner.is_within_epoch
        self._set_lengths(trainer, done=done if within else 0)
        loop._data_fetcher.setup(loop._combined_loader)
        iter(loop._data_fetcher)  # it may have read ahead before the state was loaded
        loop._data_fetcher.length = loop.max_batches
        if is_to_close:
            self._set_max_batches(trainer, done)
        elif not within and done:
            self._after_reset, loop.max_batches = loop.max_batches, done

    # ------------------------------------------------------------------ epochs

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the trainer how long this epoch is: it has kept the length of the first.

        An epoch behind the last is a pass that trains nothing, as weight averaging makes for the
        means of batch norm.
        """
        self.pruner.sampler.is_paused = self.pruner.epoch >= self.pruner.num_epochs
        self._set_lengths(trainer)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a resume between two epochs: the length of the second."""
        if self._after_reset is not None:
            trainer.fit_loop.max_batches, self._after_reset = self._after_reset, None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what the epoch has saved."""
        if self.pruner.sampler.is_paused:
            self.pruner.sampler.is_paused = False
            return
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
        self._set_max_batches(trainer, (min if shorter else max)(combined.limits))

    def _set_max_batches(self, trainer: Any, batches: int) -> None:
        trainer.fit_loop.max_batches = batches
        by_time = trainer.val_check_batch is None
        if not by_time and isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(batches * trainer.val_check_interval))

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The pruner's state; a collective operation within an epoch of a distributed run."""
        self.pruner.synchronize()
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the state until the module has built its optimizers and schedulers.

        Or undo at once what a finder has drawn, also one that comes at the start of an epoch.
        """
        if self._is_training or self.pruner.sampler.is_paused:
            self.pruner.sampler.is_paused = False
            self.pruner.load_state_dict(state_dict)
        else:
            self._saved = state_dict


def _is_finder(callback: object) -> bool:
    return bool(_FINDERS & {base.__name__ for base in type(callback).__mro__})
