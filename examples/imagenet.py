"""ImageNet with torchvision: ResNet on images in class folders, in one process or several.

    python examples/imagenet.py --data-dir path/to/imagenet --arch resnet50 --epochs 90
    torchrun --nproc-per-node 8 examples/imagenet.py --data-dir path/to/imagenet

Without --data-dir it draws a small folder of its own: stripes, squares, rings and noise.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from infobatch import InfoBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-dir", type=Path, help="with train/CLASS/* and val/CLASS/*")
parser.add_argument("--arch", default="resnet18", help="a model of torchvision")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
parser.add_argument("--lr", type=float, default=0.02)
parser.add_argument("--size", type=int, help="of images; 224, and 32 for the drawn ones")
parser.add_argument("--workers", type=int, default=2)
args = parser.parse_args()


def draw(folder, count, noise):
    """So many images of 48x40 pixels in each of four classes."""
    across, down = np.meshgrid(np.arange(48), np.arange(40))
    for number in range(count):
        x, y = across - noise.integers(16, 32), down - noise.integers(12, 28)
        shapes = {
            "noise": x * 0,
            "rings": np.hypot(x, y) // 4 % 2,
            "squares": (x // 8 + y // 8) % 2,
            "stripes": x // 4 % 2,
        }
        for name, shape in shapes.items():
            pixels = 90 + 60 * shape[..., None] + noise.normal(0, 30, (40, 48, 3))
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if device.type == "cuda":
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
if world_size > 1:
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
torch.manual_seed(0)

drawn = tempfile.TemporaryDirectory()
if args.data_dir is None:
    noise = np.random.default_rng(0)
    draw(Path(drawn.name) / "train", 100, noise)
    draw(Path(drawn.name) / "val", 20, noise)
data_dir = args.data_dir or Path(drawn.name)
size = args.size or (224 if args.data_dir else 32)
normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
to_train = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
to_test = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
to_train, to_test = (
    transforms.Compose([*crops, transforms.ToTensor(), normalize]) for crops in (to_train, to_test)
)
train_set = ImageFolder(str(data_dir / "train"), to_train)
test_set = ImageFolder(str(data_dir / "val"), to_test)
settings = {"num_workers": args.workers, "pin_memory": device.type == "cuda"}

pruner = InfoBatch(train_set, num_epochs=args.epochs)  # 1: no rank, no DistributedSampler
loader = DataLoader(
    train_set,
    args.batch_size // world_size,
    sampler=pruner.sampler,  # 2
    drop_last=True,  # batch normalisation cannot do with a single sample
    **settings,
)
test_loader = DataLoader(test_set, 256, **settings)

model = torchvision.models.get_model(args.arch, num_classes=len(train_set.classes)).to(device)
if world_size > 1:
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = DistributedDataParallel(model)
criterion = nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=5e-5)


def accuracy(net):
    net.eval()
    right = 0
    with torch.no_grad():
        for images, labels in test_loader:
            right += int((net(images.to(device)).argmax(1).cpu() == labels).sum())
    return right / len(test_set)


for _ in range(args.epochs):
    model.train()
    for images, labels in loader:
        for group in optimizer.param_groups:  # down to nothing by progress, not by steps
            group["lr"] = args.lr * (1 - pruner.progress)
        losses = criterion(model(images.to(device)), labels.to(device))
        loss = pruner.update(losses)  # 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        record = pruner.history[-1]
        print(f"epoch {record.epoch}: kept {record.kept}, loss {record.mean_loss:.3f}", flush=True)

if rank == 0:
    print(pruner.summary())
    print(f"test accuracy {accuracy(model.module if world_size > 1 else model):.3f}")
if world_size > 1:
    dist.destroy_process_group()
