"""Digits with torchdata's StatefulDataLoader: stop within an epoch, and go on with the workers.

    python examples/stateful_dataloader.py --checkpoint run.pt --stop-at 40
    python examples/stateful_dataloader.py --checkpoint run.pt

The second run prints the same summary as one that has never been stopped. Needs
`pip install "infobatch[torchdata]"`.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from infobatch import InfoBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--checkpoint", type=Path, default=Path("stateful.pt"))
parser.add_argument("--stop-at", type=int, help="save and stop after this step")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--workers", type=int, default=2)
args = parser.parse_args()

images, labels = load_digits(return_X_y=True)
train_set = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

pruner = InfoBatch(train_set, num_epochs=args.epochs)
loader = StatefulDataLoader(train_set, 64, sampler=pruner.sampler, num_workers=args.workers)
parts = {"model": model, "optimizer": optimizer, "pruner": pruner, "loader": loader}

step = 0
if args.checkpoint.exists():
    checkpoint = torch.load(args.checkpoint, weights_only=True)
    step = checkpoint.pop("step")
    for name, part in parts.items():  # the pruner decides where to go on, so it comes first
        part.load_state_dict(checkpoint[name])

for _ in range(pruner.epoch, args.epochs):
    for x, y in loader:
        loss = pruner.update(F.cross_entropy(model(x), y, reduction="none"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step == args.stop_at:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step, **states}, args.checkpoint)
            raise SystemExit(f"stopped after step {step}, in epoch {pruner.epoch}")

last = pruner.history[-1]
print(f"{step} steps, loss {last.mean_loss!r}; {pruner.summary()}")
