"""Accelerate: digits in a plain loop; alone, or in several processes.

    python examples/accelerate_digits.py --epochs 20
    python examples/accelerate_digits.py --epochs 20 --resume digits/epoch-7
    torchrun --standalone --nproc-per-node 2 examples/accelerate_digits.py --epochs 20

The second goes on where the first stood after its eighth epoch, and comes to the same end.
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

from infobatch import InfoBatch
from infobatch.integrations.accelerate import prepare

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--budget", type=float, help="0.7: 70%% of the sample passes")
parser.add_argument("--folder", default="digits", help="for the states")
parser.add_argument("--resume", metavar="STATE")
args = parser.parse_args()

accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
set_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
train_set, test_set = TensorDataset(x_train, y_train), TensorDataset(x_test, y_test)

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
pruner = InfoBatch(train_set, args.epochs, budget=args.budget)  # 1
loader = DataLoader(train_set, batch_size=16, sampler=pruner.sampler)  # 2
test_loader = DataLoader(test_set, batch_size=64)
steps = args.epochs * -(-len(loader) // accelerator.gradient_accumulation_steps)  # of a full run
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
model, optimizer, loader, test_loader, schedule = prepare(  # was: accelerator.prepare
    accelerator, pruner, model, optimizer, loader, test_loader, schedule
)
if args.resume:
    accelerator.load_state(args.resume)

for epoch in range(pruner.epoch, args.epochs):
    model.train()
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            losses = F.cross_entropy(model(inputs), targets, reduction="none")
            accelerator.backward(pruner.update(losses))  # 3
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    accelerator.save_state(f"{args.folder}/epoch-{epoch}")

model.eval()
right = []
with torch.no_grad():
    for inputs, targets in test_loader:
        right.append(accelerator.gather_for_metrics(model(inputs).argmax(1) == targets))
accelerator.print(pruner.summary())
accelerator.print(f"test accuracy {torch.cat(right).float().mean():.3f}")
