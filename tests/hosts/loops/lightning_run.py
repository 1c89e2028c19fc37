"""A LightningModule and a run of it; as a program, one rank of a run in several processes."""

import importlib
import sys

import torch
import torch.nn.functional as F
from tests.hosts.support import BATCH, EPOCHS, Run, build_model, digits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from infobatch import InfoBatch

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
PACKAGES = {
    "lightning": ("lightning.pytorch", "infobatch.integrations.lightning"),
    "pytorch_lightning": ("pytorch_lightning", "infobatch.integrations.pytorch_lightning"),
}


def package(name):
    """The framework under one of its names, and our callback for it."""
    framework, ours = PACKAGES[name]
    return importlib.import_module(framework), importlib.import_module(ours).InfoBatchCallback


def build_net(pl):
    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build_model()
            self.rates, self.lengths, self.validated = [], [], []

        def training_step(self, batch, batch_idx):
            x, y = batch
            return self.pruner.update(F.cross_entropy(self.model(x), y, reduction="none"))

        def validation_step(self, batch, batch_idx):
            if not self.trainer.sanity_checking:
                self.validated.append(self.current_epoch)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            self.estimated = self.trainer.estimated_stepping_batches
            schedule = OneCycleLR(optimizer, 0.2, total_steps=self.estimated)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def on_before_optimizer_step(self, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])

        def on_train_epoch_start(self):
            self.lengths.append(self.trainer.num_training_batches)

    return Net()


def fit(
    name="lightning",
    *,
    net=None,
    batch=BATCH,
    workers=0,
    ckpt=None,
    callbacks=(),
    pruner=None,
    settings=None,
    **trainer_settings,
):
    """Train; a Run, the module and the trainer."""
    pl, callback = package(name)
    data = digits()
    pruner = pruner or InfoBatch(data, EPOCHS, **(settings or {}))
    net = net or build_net(pl)
    loader = DataLoader(
        data, batch, sampler=pruner.sampler, num_workers=workers, persistent_workers=workers > 0
    )
    trainer = pl.Trainer(
        **{
            **QUIET,
            "max_epochs": EPOCHS,
            "callbacks": [*callbacks, callback(pruner)],
            **trainer_settings,
        }
    )
    trainer.fit(net, loader, DataLoader(data, 100), ckpt_path=ckpt)
    weights = [p.detach().clone() for p in net.parameters()]
    run = Run(
        trainer.global_step,
        net.rates,
        pruner.scores,
        pruner.history,
        weights,
        pruner.saved_fraction,
    )
    return run, net, trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, strategy = sys.argv[1:3]
    ranks = {"strategy": strategy, "devices": 2, "num_nodes": 1}
    pl, _ = package("lightning")
    saves = pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=25, save_top_k=-1)
    run, _, trainer = fit(batch=BATCH // 2, callbacks=[saves], enable_checkpointing=True, **ranks)
    torch.save(run, f"{folder}/{trainer.global_rank}.pt")
    resumed, net, _ = fit(batch=BATCH // 2, ckpt=f"{folder}/epoch=1-step=25.ckpt", **ranks)
    resumed.rates = run.rates[:25] + resumed.rates
    torch.save(resumed, f"{folder}/resumed-{trainer.global_rank}.pt")
