"""Several processes, killed and restarted with another number of them: digits under DDP.

    torchrun --standalone --nproc-per-node 2 examples/ddp.py --checkpoint run.pt

Stop it with Ctrl-C, or kill it, and start it again, with 1 or 3 processes if you like: it goes on
where it stood. The three lines are those of training in one process.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--checkpoint", type=Path, default=Path("ddp.pt"))
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--global-batch", type=int, default=64)
args = parser.parse_args()

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")

images, labels = load_digits(return_X_y=True)
train_set = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
model = DistributedDataParallel(model.to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

pruner = InfoBatch(train_set, num_epochs=args.epochs)  # 1: no rank, no DistributedSampler
loader = DataLoader(train_set, args.global_batch // world_size, sampler=pruner.sampler)  # 2

if args.checkpoint.exists():
    checkpoint = torch.load(args.checkpoint, weights_only=True)
    model.module.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    pruner.load_state_dict(checkpoint["pruner"])


def save():
    pruner.synchronize()  # on every rank: within an epoch the state needs the losses of all
    if rank == 0:
        checkpoint = {
            "model": model.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "pruner": pruner.state_dict(),
        }
        new = args.checkpoint.with_suffix(".new")
        torch.save(checkpoint, new)
        new.replace(args.checkpoint)  # never half a file


for _ in range(pruner.epoch, args.epochs):
    for step, (x, y) in enumerate(loader):
        losses = F.cross_entropy(model(x.to(device)), y.to(device), reduction="none")
        loss = pruner.update(losses)  # 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            save()
    save()
    if rank == 0:
        record = pruner.history[-1]
        print(f"epoch {record.epoch}: loss {record.mean_loss:.4f}, kept {record.kept}", flush=True)

if rank == 0:
    print(pruner.summary())
dist.destroy_process_group()
