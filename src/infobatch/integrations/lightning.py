"""Lightning (`pip install "infobatch[lightning]"`): a callback, beside the sampler.

Source of what it sets right: docs/hosts.md.
"""

from __future__ import annotations

import lightning.pytorch as pl

from infobatch.integrations._lightning import PruningHooks


class InfoBatchCallback(PruningHooks, pl.Callback):
    """Trains with a pruner under Lightning's `Trainer`.

        class Net(LightningModule):
            def training_step(self, batch, batch_idx):
                x, y = batch
                return self.pruner.update(F.cross_entropy(self(x), y, reduction="none"))

        pruner = InfoBatch(train_set, num_epochs=30)
        loader = DataLoader(train_set, batch_size=64, sampler=pruner.sampler)
        Trainer(max_epochs=30, callbacks=[InfoBatchCallback(pruner)]).fit(Net(), loader)

    It sets `module.pruner`; tells the trainer the length of every epoch (batches, validation
    interval, progress bar); lets LR schedulers with `interval="step"` follow the run, whatever
    `estimated_stepping_batches` they were built with; logs `pruner.metrics()` at the end of each
    epoch; and puts the pruner's state into checkpoints, also within an epoch. Works with
    `strategy="ddp"` and `use_distributed_sampler` as it is.

    Args:
        pruner: of the data set that the train dataloader has.

    Raises:
        TypeError: not a pruner.
        DistributedError, EpochError, MisalignedUpdateError, StateError, ValueError: in `fit`: the
            trainer's ranks, its `max_epochs` or `max_steps`, its train dataloader, its checkpoint
            or `overfit_batches` do not go with the pruner.
    """
