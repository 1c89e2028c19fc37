"""Lightning: digits, with a one-cycle learning rate, validation, a logger and checkpoints.

    python examples/lightning_digits.py --epochs 20
    python examples/lightning_digits.py --epochs 20 --resume digits/epoch=7.ckpt

The second goes on where the first stood after its eighth epoch, and comes to the same end.
"""

import argparse

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from infobatch import InfoBatch
from infobatch.integrations.lightning import InfoBatchCallback

LOGGERS = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--budget", type=float, help="0.7: 70%% of the sample passes")
parser.add_argument("--logger", choices=LOGGERS, default="csv")
parser.add_argument("--folder", default="digits", help="for checkpoints and logs")
parser.add_argument("--resume", metavar="CHECKPOINT")
args = parser.parse_args()


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self.model(x), y, reduction="none")
        return self.pruner.update(losses)  # 3

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_accuracy", (self.model(x).argmax(1) == y).float().mean(), prog_bar=True)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        steps = self.trainer.estimated_stepping_batches  # of a full run: the callback sees to it
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


seed_everything(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
train_set, val_set, test_set = random_split(TensorDataset(x, torch.tensor(labels)), [0.6, 0.1, 0.3])

pruner = InfoBatch(train_set, args.epochs, budget=args.budget)  # 1
train_loader = DataLoader(train_set, batch_size=32, sampler=pruner.sampler)  # 2

trainer = Trainer(
    max_epochs=args.epochs,
    callbacks=[
        InfoBatchCallback(pruner),  # and this, for the trainer
        ModelCheckpoint(args.folder, filename="{epoch}", save_top_k=-1),
    ],
    logger=LOGGERS[args.logger](args.folder),
    accelerator="cpu",
    log_every_n_steps=10,
)
net = Net()
trainer.fit(net, train_loader, DataLoader(val_set, batch_size=256), ckpt_path=args.resume)
[result] = trainer.test(net, DataLoader(test_set, batch_size=256), verbose=False)

print(pruner.summary())
print(f"test accuracy {result['test_accuracy']:.3f}")
