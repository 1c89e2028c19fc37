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


# What is run in two processes, and resumed.
TASKS = {
    "ddp": {"name": "lightning"},
    "pytorch_lightning": {"name": "pytorch_lightning"},
    "accumulated": {"accumulate_grad_batches": 3},
    "validated": {"val_check_interval": 0.5},
}


def train_and_resume(folder, name="lightning", **settings):
    """One rank's run, and the same resumed within a pruned epoch."""
    pl, _ = package(name)
    settings = {"strategy": "ddp", "devices": 2, "batch": BATCH // 2, **settings}
    step = 25 // settings.get("accumulate_grad_batches", 1)
    saves = pl.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=step, save_top_k=-1, auto_insert_metric_name=False
    )
    run, _, trainer = fit(name, callbacks=[saves], enable_checkpointing=True, **settings)
    resumed, _, _ = fit(name, ckpt=f"{folder}/{step}.ckpt", **settings)
    resumed.rates = run.rates[:step] + resumed.rates
    return run, resumed, trainer.global_rank


if __name__ == "__main__":
    torch.set_num_threads(1)
    for task, settings in TASKS.items():
        *runs, rank = train_and_resume(f"{sys.argv[1]}/{task}", **settings)
        torch.save(runs, f"{sys.argv[1]}/{task}-{rank}.pt")
