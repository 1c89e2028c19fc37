"""Several processes with FSDP2 (fully_shard): digits, with checkpoints for any number of them.

    torchrun --standalone --nproc-per-node 2 examples/fsdp.py --checkpoint run

Start it again, with 1 or 3 processes if you like: it goes on where it stood.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--checkpoint", type=Path, default=Path("fsdp"), help="a folder")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--stop-at", type=int, help="save and stop after this step")
parser.add_argument("--global-batch", type=int, default=48)
args = parser.parse_args()

kind = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if kind == "cuda" else "gloo")
if kind == "cuda":
    torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
mesh = init_device_mesh(kind, (dist.get_world_size(),))

images, labels = load_digits(return_X_y=True)
train_set = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
for layer in (model[0], model[2], model):
    fully_shard(layer, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

pruner = InfoBatch(train_set, num_epochs=args.epochs)  # 1: no rank, no DistributedSampler
batch_size = args.global_batch // dist.get_world_size()
loader = DataLoader(train_set, batch_size, sampler=pruner.sampler)  # 2


def parts():
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "pruner": pruner}


def save():
    pruner.synchronize()  # on every rank: within an epoch the state needs the losses of all
    dcp.save(parts(), storage_writer=dcp.FileSystemWriter(args.checkpoint, overwrite=True))


if args.checkpoint.exists():
    loaded = parts()
    dcp.load(loaded, checkpoint_id=args.checkpoint)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
    )

step = 0
for _ in range(pruner.epoch, args.epochs):
    for x, y in loader:
        losses = F.cross_entropy(model(x.to(kind)), y.to(kind), reduction="none")
        loss = pruner.update(losses)  # 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step == args.stop_at:
            save()  # inside the loop, so that the run will go on within the epoch
            break
    if step == args.stop_at:
        break
    save()

if dist.get_rank() == 0:
    loss = f", loss {pruner.history[-1].mean_loss:.6f}" if pruner.history else ""
    print(f"epoch {pruner.epoch} of {args.epochs}{loss}; {pruner.summary()}")
dist.destroy_process_group()
