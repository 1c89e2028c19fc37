"""timm: digits as pictures, with its models, loader, prefetcher, Mixup and schedule.

    python examples/timm_digits.py --epochs 12 --model test_efficientnet

The loop is that of timm's train.py, without what is not needed here.
"""

import argparse

import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm import create_model
from timm.data import FastCollateMixup, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy, random_seed
from torch.utils.data import Dataset

from infobatch import InfoBatch
from infobatch.integrations.timm import ProgressUpdates, PrunedLoss, prune_loader

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="test_resnet")
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--budget", type=float, help="0.7: 70%% of the sample passes")
args = parser.parse_args()
random_seed(0)


class Digits(Dataset):
    """Pictures for timm's loader, which sets `transform`."""

    def __init__(self, images, labels):
        self.images, self.labels, self.transform = images, labels, None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        picture = Image.fromarray((self.images[index] * 15.9).astype("uint8")).convert("RGB")
        return self.transform(picture), int(self.labels[index])


data = load_digits()
split = train_test_split(data.images, data.target, test_size=0.3, random_state=0)
train_set, test_set = Digits(split[0], split[2]), Digits(split[1], split[3])
settings = {"num_workers": 0, "persistent_workers": False, "device": torch.device("cpu")}
mixup = FastCollateMixup(mixup_alpha=0.2, num_classes=10)
augment = {"is_training": True, "scale": (0.7, 1.0), "hflip": 0.0, "collate_fn": mixup}
loader = create_loader(train_set, (3, 32, 32), batch_size=32, **augment, **settings)
test_loader = create_loader(test_set, (3, 32, 32), batch_size=256, crop_pct=1.0, **settings)

model = create_model(args.model, num_classes=10)
optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
scheduler, num_epochs = create_scheduler_v2(
    optimizer,
    num_epochs=args.epochs,
    warmup_epochs=1,
    updates_per_epoch=len(loader),
    step_on_epochs=False,
)
pruner = InfoBatch(train_set, num_epochs, budget=args.budget)  # 1
scheduler = ProgressUpdates(scheduler, pruner, num_epochs * len(loader))  # the full run's updates
loader = prune_loader(loader, pruner)  # 2
loss_fn = PrunedLoss(SoftTargetCrossEntropy(), pruner)  # 3

updates = 0
for epoch in range(num_epochs):
    model.train()
    for x, y in loader:
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        scheduler.step_update(updates)

    model.eval()
    top1 = AverageMeter()
    with torch.no_grad():
        for x, y in test_loader:
            top1.update(accuracy(model(x), y)[0].item(), len(y))
    kept = pruner.history[-1].kept
    print(f"epoch {epoch}: kept {kept}, accuracy {top1.avg / 100:.3f}", flush=True)
    scheduler.step(epoch + 1)

print(pruner.summary())
print(f"test accuracy {top1.avg / 100:.3f}")
